"""Generated classical Chinese with its modern wording, after `typed_tables/classical.txt`."""

import random

from gemma_keras.builtin.lists import draw


def row(rng: random.Random) -> dict[str, str]:
    """One pair: {"inputs": classical sentences, "truth": the same in modern Chinese}."""
    old, new = draw("classical", "text", rng)
    return {"inputs": old, "truth": new}
