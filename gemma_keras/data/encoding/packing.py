"""Rows to packed rows of T tokens.

Best-fit decreasing within blocks of about 1,000 rows in their fixed order, so that a packed row mixes what lies close
together; a bin that a block leaves partly empty stays open for one more block, after which it is closed as it is.
"""

from array import array
from collections.abc import Sequence

import numpy as np


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
    open_bins = _Bins(sequence_length)

    def close(before: int) -> None:
        for rows in open_bins.take(before):
            flat.extend(sorted(rows))
            offsets.append(len(flat))

    for start in range(0, len(lengths), block):
        part = lengths[start : start + block]
        for place in np.argsort(-part.astype(np.int64), kind="stable").tolist():
            open_bins.put(start + place, int(part[place]))
        close(start)
    close(len(lengths))
    return np.frombuffer(offsets, np.int64), np.frombuffer(flat, np.int32)


class _Bins:
    """Bins of row numbers by the space left in them; the fullest one that takes a row is found in O(T / 64)."""

    def __init__(self, size: int):
        self._size = size
        self._by_space: list[list[list[int]]] = [[] for _ in range(size + 1)]
        self._open = 0  # bit s is set if a bin with space s is open

    def put(self, row: int, length: int) -> None:
        fitting = self._open >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            rows = self._by_space[space].pop()
            if not self._by_space[space]:
                self._open &= ~(1 << space)
        else:
            space, rows = self._size, []
        rows.append(row)
        self._by_space[space - length].append(rows)
        self._open |= 1 << (space - length)

    def take(self, before: int) -> list[list[int]]:
        """Removes the bins with a row `before` this one, and returns them in the order of their lowest rows."""
        taken = []
        for space, bins in enumerate(self._by_space):
            taken += [rows for rows in bins if min(rows) < before]
            self._by_space[space] = [rows for rows in bins if min(rows) >= before]
        self._open = sum(1 << space for space, bins in enumerate(self._by_space) if bins)
        return sorted(taken, key=min)
