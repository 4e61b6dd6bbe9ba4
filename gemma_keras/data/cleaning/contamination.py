"""Training rows that hold text of evaluation corpora, found by n-grams (as in Brown et al. 2020, appendix C)."""

import itertools
import re
from collections.abc import Iterable

import numpy as np

from gemma_keras.data.cleaning.ngrams import batched, span_hashes, units, windows
from gemma_keras.data.cleaning.rules import contaminated

_SHORTEST = 6  # units of an item that is looked for at all
_BOILERPLATE = 3  # different items that share an n-gram which says nothing
_SENTENCES = 5  # sentences in a row that may together be an item: a question and four options
_BATCH = 1000, 300_000  # items, characters
_FILTER_BITS = 24
_FILTER_SHIFT = np.uint64(64 - _FILTER_BITS)

_SENTENCE_END = re.compile(r"[。！？!?；;…\n]+|\.(?=\s|$)")


class Contamination:
    """Which training rows share text with the items of evaluation corpora.

    A row is hit if it holds n consecutive units (`ngrams`) of an item, whatever punctuation, blanks and case.
    N-grams of three or more different items are boilerplate and do not count, unless they make up more than half of an
    item: then it is the item that recurs, such as an abstract in several tasks or a case with several questions. An
    item of 6 to n - 1 units hits where a turn, or up to five sentences of it, are this item and nothing else; shorter
    items are not looked for.

    Attributes:
        corpora: names, in the order of their first item.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], n: int = 13):
        """Reads the items, each with the name of its corpus; the sentences of a pair are best given as two items."""
        self.corpora: list[str] = []
        self._n = n
        parts = [
            self._read(batch) for batch in itertools.chain([[]], batched(texts, *_BATCH, lambda item: len(item[1])))
        ]
        self._hashes, self._corpora = _telling(*(np.concatenate(part) for part in zip(*parts)))
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[self._hashes >> _FILTER_SHIFT] = True

    def _read(self, batch: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each n-gram of the items and of each short item: its hash, the hash of its item, the item's corpus."""
        self.corpora += [name for name in dict.fromkeys(name for name, _ in batch) if name not in self.corpora]
        corpora = np.array([self.corpora.index(name) for name, _ in batch], np.int16)
        words, offsets = units([text for _, text in batch])
        hashes, bounds = windows(words, offsets, self._n)
        wholes = span_hashes(words, offsets[:-1], offsets[1:])
        lengths, grams = np.diff(offsets), np.diff(bounds)
        short = (lengths >= _SHORTEST) & (grams == 0)
        return (
            np.concatenate([hashes, wholes[short]]),
            np.concatenate([np.repeat(wholes, grams), wholes[short]]),
            np.concatenate([np.repeat(corpora, grams), corpora[short]]),
        )

    def hits(self, rows: list[list[str]]) -> np.ndarray:
        """i64[R]: index into `corpora` of what each row (its turns) hits, of several the first in `corpora`; -1: clean."""
        turns = [turn for row in rows for turn in row]
        sentences = [_SENTENCE_END.split(turn) for turn in turns]
        words, offsets = units([sentence for turn in sentences for sentence in turn])
        turn_bounds = np.cumsum([0, *(len(turn) for turn in sentences)])
        row_of_turn = np.repeat(np.arange(len(rows)), np.array([len(row) for row in rows], np.int64))
        found = np.full(len(rows), len(self.corpora))

        grams, bounds = windows(words, offsets[turn_bounds], self._n)
        place, corpus = self._look_up(grams)
        np.minimum.at(found, row_of_turn[np.searchsorted(bounds, place, side="right") - 1], corpus)

        starts, ends, turn = _passages(offsets, turn_bounds, self._n)
        place, corpus = self._look_up(span_hashes(words, starts, ends))
        np.minimum.at(found, row_of_turn[turn[place]], corpus)
        return np.where(found < len(self.corpora), found, -1)

    def rules(self, rows: list[list[str]]) -> list[str]:
        """For each row the name of the rule that removes it; empty: it is clean."""
        return [contaminated(self.corpora[hit]) if hit >= 0 else "" for hit in self.hits(rows).tolist()]

    def _look_up(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `hashes` that are known, and their corpora."""
        places = np.flatnonzero(self._filter[hashes >> _FILTER_SHIFT])
        if not len(places):
            return places, places
        at = np.minimum(np.searchsorted(self._hashes, hashes[places]), len(self._hashes) - 1)
        known = self._hashes[at] == hashes[places]
        return places[known], self._corpora[at[known]].astype(np.int64)


def _telling(hashes: np.ndarray, items: np.ndarray, corpora: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes that are no boilerplate, in ascending order, and the first corpus of each."""
    if not len(hashes):
        return hashes, corpora
    order = np.lexsort((items, hashes))
    hashes, items, corpora = hashes[order], items[order], corpora[order]
    firsts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    another = np.diff(items, prepend=~items[:1]) != 0
    another[firsts] = True
    counts = np.diff(np.append(firsts, len(hashes)))
    common = np.repeat(np.add.reduceat(another, firsts, dtype=np.int64) >= _BOILERPLATE, counts)
    _, number = np.unique(items, return_inverse=True)
    share = np.bincount(number, common) / np.bincount(number)
    told = ~common | (share[number] > 0.5)
    kept = np.logical_or.reduceat(told, firsts)
    return hashes[firsts][kept], np.minimum.reduceat(corpora, firsts)[kept]


def _passages(offsets: np.ndarray, turn_bounds: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans of units, of 6 to n - 1, that are a turn or up to five sentences of it: starts, ends, turns."""
    turn_of = np.repeat(np.arange(len(turn_bounds) - 1), np.diff(turn_bounds))
    starts, ends, turns = [offsets[turn_bounds[:-1]]], [offsets[turn_bounds[1:]]], [np.arange(len(turn_bounds) - 1)]
    for more in range(_SENTENCES):
        first = np.flatnonzero(turn_of[: max(len(turn_of) - more, 0)] == turn_of[more:])
        starts.append(offsets[first])
        ends.append(offsets[first + more + 1])
        turns.append(turn_of[first])
    start, end, turn = np.concatenate(starts), np.concatenate(ends), np.concatenate(turns)
    fits = (end - start >= _SHORTEST) & (end - start < n)
    return start[fits], end[fits], turn[fits]
