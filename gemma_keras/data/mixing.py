"""Shares to exact counts, and the order of the rows."""

from collections.abc import Sequence

import numpy as np


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, each within 1 of its exact share; of equal remainders the first gains.

    >>> largest_remainder([1, 1, 1], 10)
    [4, 3, 3]
    """
    exact = np.asarray(shares, dtype=np.float64)
    exact = exact / exact.sum() * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    remainders = np.round(exact - counts, 9)
    for index in np.argsort(-remainders, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    return [int(count) for count in counts]


def interleave(counts: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """The order (corpus, place within the corpus) in which rows are laid out.

    Each corpus is spread evenly: its k-th of n rows falls at a random point of the k-th n-th part of the whole, so every
    long run of rows holds the corpora in their shares, and each corpus keeps its own order.
    """
    corpus = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(n) for n in counts]) if len(counts) else np.zeros(0, np.int64)
    size = np.asarray(counts, dtype=np.float64)[corpus] if len(counts) else np.zeros(0)
    order = np.argsort((place + rng.random(len(place))) / size, kind="stable")
    return [(int(corpus[i]), int(place[i])) for i in order]
