"""Generated news sentences in English and Chinese, after `typed_tables/news.txt`."""

import random

from gemma_keras.builtin.lists import draw

_OPINIONS = 0.3  # of the rows: one-sentence views instead of reports


def row(rng: random.Random) -> dict[str, dict[str, str]]:
    """One pair: {"translation": {"en": sentence, "zh": the same in Chinese}}."""
    english, chinese = draw("news", "statement" if rng.random() < _OPINIONS else "report", rng)
    return {"translation": {"en": english[0].upper() + english[1:], "zh": chinese}}
