"""Rows that nearly repeat an earlier one: MinHash signatures, banded (Broder 1997; Leskovec et al., ch. 3.4).

The similarity of two texts is the Jaccard similarity of their sets of 5 consecutive units (`ngrams`), estimated
as the share of equal entries of their signatures: 128 entries, hence within 0.035 (one standard deviation at 0.8).
Only rows that agree in a whole band of entries are compared. Signatures lie in a temporary file, 512 bytes a row;
memory holds 4 bytes a row and band.
"""

import itertools
import tempfile
import zlib
from pathlib import Path

import numpy as np
from datasketch import MinHash

from gemma_keras.data.cleaning.ngrams import ngrams

UNITS = 5
ENTRIES = 128
_SEED = 1
_RECALL = 0.99
_COMPARED = 64  # kept rows of a bucket that a row is compared with: bounds the time where many rows share a template
_BLOCK = 4096  # n-grams signed at once: bounds the memory that a long document takes


class NearDuplicates:
    """Takes the rows' texts in order, then tells which of them nearly repeat an earlier one that stays.

    Rows are judged in order. One goes if its estimated similarity with an earlier row that stays is `threshold` or
    more, so a row that goes takes no others with it, and the first of equal rows always stays. Rows with fewer than
    5 units stay. A pair as similar as the threshold is found with probability 0.99, a more similar one almost surely,
    unless more than 64 rows that stay share all of its bands.
    """

    def __init__(self, threshold: float, folder: Path | None = None):
        """`folder` is where the signatures lie meanwhile, 512 bytes a row; None: the system's temporary folder."""
        self._equal_entries = int(np.ceil(threshold * ENTRIES - 1e-9))
        self._width = band_width(threshold)
        self._minhash = MinHash(ENTRIES, seed=_SEED, hashfunc=int)
        self._signatures = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._signed: list[np.ndarray] = []

    def add(self, texts: list[str], kinds: list[str] | None = None) -> None:
        """Takes the next rows, about 1,000 at best; rows of different `kinds` of task are never alike."""
        hashes, offsets = ngrams(texts, UNITS)
        hashes = hashes >> np.uint64(32)
        if kinds is not None:
            salts = np.array([zlib.crc32(kind.encode()) for kind in kinds], np.uint64)
            hashes ^= np.repeat(salts, np.diff(offsets))
        for start, end in itertools.pairwise(offsets.tolist()):
            if end > start:
                self._minhash.clear()
                for block in range(start, end, _BLOCK):
                    self._minhash.update_batch(hashes[block : min(block + _BLOCK, end)].tolist())
                self._signatures.write(self._minhash.hashvalues.tobytes())
        self._signed.append(np.diff(offsets) > 0)

    def later_copies(self) -> np.ndarray:
        """bool[n]: the rows that nearly repeat an earlier one that stays."""
        signed = np.concatenate([np.zeros(0, bool), *self._signed])
        copies = np.zeros(len(signed), bool)
        if signed.any():
            self._signatures.flush()
            signatures = np.memmap(self._signatures, np.uint32, "r", shape=(int(signed.sum()), ENTRIES))
            copies[signed] = _judge(signatures, _neighbours(signatures, self._width), self._equal_entries)
        return copies


def band_width(threshold: float) -> int:
    """Entries in a band: the most with which rows as similar as `threshold` share a band with probability 0.99.

    >>> band_width(0.8)
    6
    """
    widths = range(ENTRIES, 0, -1)
    return next((r for r in widths if (1 - threshold**r) ** (ENTRIES // r) <= 1 - _RECALL), 1)


def _neighbours(signatures: np.ndarray, width: int) -> np.ndarray:
    """i32[n, bands]: the last earlier row with the same entries in this band; -1: none."""
    count, bands = len(signatures), ENTRIES // width
    neighbours = np.full((count, bands), -1, np.int32)
    for band in range(bands):
        keys = np.zeros(count, np.uint64)
        for column in range(band * width, (band + 1) * width):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + signatures[:, column]
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys = keys[order]
        equal = keys[1:] == keys[:-1]
        neighbours[order[1:][equal], band] = order[:-1][equal]
    return neighbours


def _judge(signatures: np.ndarray, neighbours: np.ndarray, equal_entries: int) -> np.ndarray:
    """bool[n]: the rows that go. Changes `neighbours`: once a row is judged, its neighbours are rows that stay."""
    goes = np.zeros(len(signatures), bool)
    gone, links = goes.data, neighbours.data
    for row in np.flatnonzero((neighbours >= 0).any(axis=1)).tolist():
        candidates = set()
        for band, other in enumerate(neighbours[row].tolist()):
            if other >= 0 and gone[other]:
                other = links[row, band] = links[other, band]
            for _ in range(_COMPARED):
                if other < 0:
                    break
                candidates.add(other)
                other = links[other, band]
        if candidates:
            equal = np.count_nonzero(signatures[list(candidates)] == signatures[row], axis=1)
            gone[row] = bool(equal.max() >= equal_entries)
    return goes
