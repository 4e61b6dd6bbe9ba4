"""Texts to hashes of n consecutive units, many texts at once.

A unit is a letter of a script without case (a Chinese character, a kana) or a run of other letters and digits, in
lower case and in half width; punctuation, blanks and symbols separate units and are dropped. With n = 2:

    "《春晓》, 第1首"    春 晓 第 1 首          (春 晓) (晓 第) (第 1) (1 首)
    "Don't ＳＴＯＰ!"    don t stop            (don t) (t stop)

Glossary: C characters of all texts, U units, M n-grams, R texts. No step loops over characters in Python. Hashes are
u64, the same in every process; of different n-grams they differ but for chance (2^-64 a pair).
"""

import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from gemma_keras.data.hashing import mixed

_PLANE = 0x10000
_RUN = np.uint32(1 << 31)  # marks characters that form units together with their neighbours
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))

T = TypeVar("T")


def batched(items: Iterable[T], most: int, largest: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of `most` items, or fewer where their sizes come to more than `largest`."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == most or total > largest:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def units(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes u64[U] of the units of all texts, and offsets i64[R+1]: text i has hashes[offsets[i]:offsets[i+1]]."""
    codes = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
    # Of the planes beyond the first, Chinese characters lie in the second and third.
    folded = np.where(codes < _PLANE, _table()[codes & 0xFFFF], np.where(codes >= 2 * _PLANE, codes, 0))
    kept = np.flatnonzero(folded)
    letters = folded[kept]
    in_run = letters >= _RUN
    joined = np.zeros(len(kept), bool)
    joined[1:] = in_run[1:] & in_run[:-1] & (kept[1:] == kept[:-1] + 1)
    starts = np.flatnonzero(~joined)
    hashes = span_hashes(letters, starts, np.append(starts[1:], len(kept)))
    return hashes, np.concatenate([[0], np.searchsorted(kept[starts], ends)])


def ngrams(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes u64[M] of the n-grams of all texts, in their order and with repeats, and offsets i64[R+1] as of `units`.

    >>> hashes, offsets = ngrams(["春晓, 第1首", "第1首", "无"], 2)
    >>> offsets.tolist(), bool(hashes[2] == hashes[4])
    ([0, 4, 6, 6], True)
    """
    return windows(*units(texts), n)


def windows(hashes: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes u64[M] of n consecutive units of the same text, and offsets i64[R+1], from the result of `units`."""
    counts = np.maximum(np.diff(offsets) - (n - 1), 0)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    starts = np.arange(bounds[-1]) + np.repeat(offsets[:-1] - bounds[:-1], counts)
    return span_hashes(hashes, starts, starts + n), bounds


def span_hashes(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """u64 hash of each values[start:end]: a polynomial in `_BASE` modulo 2^64, from differences of prefix sums, mixed."""
    powers, inverses = (numbers[: len(values)] for numbers in _powers(1 << len(values).bit_length()))
    sums = np.zeros(len(values) + 1, np.uint64)
    # The addition keeps values of 0 from vanishing.
    np.cumsum(mixed(values.astype(np.uint64) + _BASE) * powers, out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * inverses[starts])


@functools.lru_cache(maxsize=2)  # batches are of a few sizes; those of a huge document shall not stay
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.cumprod(np.full(count, _BASE)), np.cumprod(np.full(count, _INVERSE))


@functools.cache
def _table() -> np.ndarray:
    """u32[65536]: each character of the first plane as it counts, 0 where it is dropped."""
    table = np.zeros(_PLANE, np.uint32)
    for code in range(_PLANE):
        character = chr(code)
        folded = unicodedata.normalize("NFKC", character).lower()
        folded = folded if len(folded) == 1 else character
        category = unicodedata.category(folded)
        if category == "Lo":
            table[code] = ord(folded)
        elif category[0] in "LNM":
            table[code] = ord(folded) | int(_RUN)
    return table
