"""Shares to counts, and the order of the rows."""

from collections.abc import Sequence

import numpy as np

STRETCH = 100_000
"""Rows that `interleave` sorts at once."""


def largest_remainder(shares: Sequence[float] | np.ndarray, total: int) -> list[int]:
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


def grouped_counts(
    shares: Sequence[float], groups: Sequence[str], total: int, rng: np.random.Generator | None = None
) -> list[int]:
    """Counts that add up to `total`: exact between groups, and within each group exact too, or drawn if `rng` is given.

    Drawing reproduces recipes that pool the corpora of a stage and take rows at random: each row's corpus is then a draw
    by the shares within its group.

    >>> grouped_counts([0.3, 0.2, 0.5], ["a", "a", "b"], 10)
    [3, 2, 5]
    """
    names = list(dict.fromkeys(groups))
    members = [[i for i, group in enumerate(groups) if group == name] for name in names]
    totals = largest_remainder([sum(shares[i] for i in indices) for indices in members], total)
    counts = [0] * len(shares)
    for indices, size in zip(members, totals, strict=True):
        parts = np.array([shares[i] for i in indices], dtype=np.float64)
        drawn = largest_remainder(parts, size) if rng is None else rng.multinomial(size, parts / parts.sum())
        for index, count in zip(indices, drawn, strict=True):
            counts[index] = int(count)
    return counts


def interleave(counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The order in which rows are laid out: corpus u16[R] and place within the corpus i32[R] of each row.

    Each corpus is spread evenly: its k-th of n rows falls at a random point of the k-th n-th part of the whole, so every
    long run of rows holds the corpora in their shares, and each corpus keeps its own order.
    """
    total = sum(counts)
    corpora, places = np.empty(total, np.uint16), np.empty(total, np.int32)
    # Stretch by stretch, so that sorting takes little memory; each takes its part of every corpus.
    bounds = np.linspace(0, 1, total // STRETCH + 2)
    cuts = (np.asarray(counts, np.int64)[:, None] * bounds + 1e-9).astype(np.int64)
    start = 0
    for firsts, ends in zip(cuts.T, cuts.T[1:]):
        corpus = np.repeat(np.arange(len(counts), dtype=np.uint16), ends - firsts)
        place = np.concatenate([np.zeros(0, np.int64), *(np.arange(first, end) for first, end in zip(firsts, ends))])
        order = np.argsort((place + rng.random(len(place))) / np.asarray(counts)[corpus], kind="stable")
        corpora[start : start + len(order)], places[start : start + len(order)] = corpus[order], place[order]
        start += len(order)
    return corpora, places
