"""Shares to counts, and the order of the rows."""

from collections.abc import Sequence

import numpy as np


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
    starts = np.cumsum([0, *counts])
    points = rng.random(int(starts[-1]))
    for first, end in zip(starts, starts[1:]):
        points[first:end] += np.arange(end - first)
        points[first:end] /= max(1, end - first)
    order = np.argsort(points, kind="stable")
    corpus = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)[order]
    return corpus, (order - starts[corpus]).astype(np.int32)
