"""Rows to packed rows of T tokens.

Best-fit decreasing within blocks of about 1,000 rows in their fixed order, so that a packed row mixes what lies close
together; a bin that a block leaves partly empty stays open for one more block, after which it is closed as it is.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

_space = itemgetter(0)


def one_each(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The plan, as of `pack`, by which each of `count` rows is a packed row of its own, filled up with padding."""
    return np.arange(count + 1, dtype=np.int64), np.arange(count, dtype=np.int32)


def pack(lengths: Sequence[int] | np.ndarray, sequence_length: int, block: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The packing plan of rows with these `lengths` in tokens.

    Returns:
        offsets i64[P+1] and rows i32[R]: packed row p holds rows[offsets[p]:offsets[p+1]], in ascending order.

    Raises:
        ValueError: a row is empty or longer than `sequence_length`.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > sequence_length):
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens cannot be packed into {sequence_length}")
    offsets, flat = array("q", [0]), array("i")
    bins: list[
        tuple[int, list[int]]
    ] = []  # those that are open, the space left and the rows of each; the fullest first

    def put(row: int, length: int) -> None:
        """Puts a row into the fullest bin that takes it, of equally full ones into that which was last filled."""
        place, space, rows = bisect_left(bins, length, key=_space), sequence_length, list[int]()
        if place < len(bins):
            space, rows = bins.pop(bisect_right(bins, bins[place][0], key=_space) - 1)
        insort(bins, (space - length, [*rows, row]), key=_space)

    def close(before: int) -> None:
        """Closes the bins with a row `before` this one, in the order of their lowest rows."""
        for rows in sorted((rows for _, rows in bins if min(rows) < before), key=min):
            flat.extend(sorted(rows))
            offsets.append(len(flat))
        bins[:] = [(space, rows) for space, rows in bins if min(rows) >= before]

    for start in range(0, len(lengths), block):
        part = lengths[start : start + block]
        for place in np.argsort(-part.astype(np.int64), kind="stable").tolist():
            put(start + place, int(part[place]))
        close(start)
    close(len(lengths))
    return np.frombuffer(offsets, np.int64), np.frombuffer(flat, np.int32)
