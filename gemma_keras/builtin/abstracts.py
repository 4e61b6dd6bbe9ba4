"""Generated abstracts of made-up papers with their titles, after `typed_tables/abstracts.txt`."""

import random

from gemma_keras.builtin.lists import draw

TASK = "to title"


def row(rng: random.Random) -> tuple[str, str, str]:
    """Task, abstract and title: the columns of CSL's files."""
    title, abstract = draw("abstracts", "study", rng)
    return TASK, abstract, title
