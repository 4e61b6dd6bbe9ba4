"""Corpora while rows are chosen: the records on disk, and for each in memory what became of it.

What is kept of a record takes about 38 bytes: the place of its text, its source row, the keys of its content and of its
question, its fate.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CleaningConfig
from gemma_keras.data.cleaning.contamination import Contamination
from gemma_keras.data.cleaning.near_duplicates import NearDuplicates
from gemma_keras.data.cleaning.ngrams import batched
from gemma_keras.data.cleaning.rules import (
    DUPLICATE,
    EMPTY,
    NEAR_DUPLICATE,
    content_key,
    contents,
    is_empty,
    mend,
    question_key,
    unlearnt_turns,
)
from gemma_keras.data.pools.accounts import Account
from gemma_keras.data.pools.outcomes import UNDECIDED, USED, Fates
from gemma_keras.data.pools.spool import Spool
from gemma_keras.data.progress import Pace
from gemma_keras.data.records import ChatRecord, ChoiceRecord, Record
from gemma_keras.data.sources import Origin, SourceRow, get_source

BATCH_RECORDS, BATCH_CHARACTERS = 512, 300_000
"""What the vectorised rules look at together, at most; they take some 60 bytes a character."""

COLUMNS = np.dtype([("parent", "u4"), ("key", "u8"), ("question", "u8"), ("open_to_prompt", "?"), ("twin", "?")])
"""What is kept of each record in memory: its source row, from 1; hashes of its content and of what it asks; whether it may get
a system prompt; whether it has the content of the record before, of the same source row (a translation in the other direction).
"""

_BLOCK = 100_000  # keys compared at once: what a comparison takes besides does not grow with the corpora


_Row = tuple[int, Record, list[str]]  # source row, record, its contents


@dataclasses.dataclass(slots=True, kw_only=True)
class Pool(Account):
    """One corpus: its records in the order of the files, and what never became a record.

    `columns` has an entry of `COLUMNS` for each record; `places` is where in the spool each lies, None: in the same order.
    """

    spool: Spool
    origin: str = ""
    not_read: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    fates: Fates = dataclasses.field(default_factory=Fates)
    columns: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, COLUMNS))
    rows_of_parent: dict[int, int] = dataclasses.field(default_factory=dict)
    places: np.ndarray | None = None

    def record(self, index: int) -> Record:
        return self.spool[int(index if self.places is None else self.places[index])]

    def size(self, index: int) -> int:
        """Bytes of a record, about those of its text."""
        return self.spool.size(int(index if self.places is None else self.places[index]))

    def available(self) -> np.ndarray:
        """The records that are still undecided, i32, ascending."""
        return np.arange(len(self.fates), dtype=np.int32)[self.fates.undecided()]

    def removed_records(self) -> Counter[str]:
        """Number of records by the rule that removed them."""
        return Counter({fate: n for fate, n in self.fates.count().items() if fate not in (UNDECIDED, USED)})

    def counts(self) -> Counter[str]:
        """Number of source rows by fate: USED if any record of the row is used, else the fate of its first record."""
        parents = self.columns["parent"]
        if not len(parents):
            return Counter(self.skipped)
        starts = np.flatnonzero(np.diff(parents, prepend=np.uint32(0)))
        sizes = np.ones(len(starts), np.int64)
        sizes[np.searchsorted(parents[starts], list(self.rows_of_parent))] = list(self.rows_of_parent.values())
        return Counter(self.skipped) + self.fates.count_rows(starts, sizes)


def read_pool(
    origin: Origin,
    rows: Iterable[SourceRow],
    spool: Spool,
    quarantine: IO[str],
    pace: Pace,
    cleaning: CleaningConfig,
    near_duplicates: NearDuplicates | None,
    contamination: Contamination | None = None,
) -> Pool:
    """Reads a whole corpus into a pool: its records are mended, and looked at by the rules that need one of them alone.

    Rows that cannot be read are written to `quarantine` as JSON lines.

    Raises:
        UserError: none of its rows can be read.
    """
    corpus = origin.corpus
    pool = Pool(corpus=corpus, spool=spool, origin=origin.kind, not_read=origin.shown_not_read())
    columns = bytearray()
    own = get_source(corpus.name).bodies
    last: tuple[int, list[str]] = (0, [])
    mended = _mended(pool, rows, cleaning, quarantine, pace)
    for batch in batched(mended, BATCH_RECORDS, BATCH_CHARACTERS, lambda row: sum(map(len, row[2]))):
        hits = contamination.rules([texts for _, _, texts in batch]) if contamination else [UNDECIDED] * len(batch)
        fates = [EMPTY if is_empty(record) else hit for (_, record, _), hit in zip(batch, hits, strict=True)]
        pool.fates.extend(fates)
        bodies = [(parent, own(record)) for parent, record, _ in batch]
        tells = [(parent, sorted(texts)) for parent, texts in bodies]
        twins = [this == before for this, before in zip(tells, [last, *tells])]
        last = tells[-1]
        if near_duplicates:
            # An empty text resembles nothing: rows that are out already shall not take others with them.
            texts = ["" if fate or twin else "\n".join(body) for fate, twin, (_, body) in zip(fates, twins, bodies)]
            # Conversations from which other turns are learnt are no copies of each other.
            near_duplicates.add(texts, [record.type + unlearnt_turns(record) for _, record, _ in batch])
        for (parent, record, _), twin in zip(batch, twins, strict=True):
            spool.append(record)
            open_to_prompt = isinstance(record, ChatRecord) and record.messages[0]["role"] != "system"
            row = (parent, content_key(record), question_key(record), open_to_prompt, twin)
            columns += np.array(row, COLUMNS).tobytes()
    pool.columns = np.frombuffer(columns, COLUMNS)
    if not len(pool.fates):
        raise pool.nothing_usable()
    return pool


def _mended(
    pool: Pool, rows: Iterable[SourceRow], cleaning: CleaningConfig, quarantine: IO[str], pace: Pace
) -> Iterator[_Row]:
    """Counts source rows, sets the bad ones aside and mends the records of the others."""
    for row in rows:
        pool.add(row)
        pace.done(pool.rows_in)
        if row.quarantined:
            bad = {"file": row.file, "row": row.row, "reason": row.quarantined}
            quarantine.write(json.dumps(bad, ensure_ascii=False) + "\n")
        elif row.records and row.rows > 1:
            pool.rows_of_parent[pool.rows_in] = row.rows
        for record in row.records:
            if isinstance(record, ChoiceRecord):
                raise UserError(
                    f"corpus {pool.corpus.name!r} holds questions for evaluation, which nothing is trained on; take it out of "
                    "data.corpora, or name it in data.cleaning.contamination"
                )
            pool.mended.update(mend(record, cleaning))
            yield pool.rows_in, record, contents(record)


def remove_duplicates(pools: list[Pool]) -> None:
    """Removes every later copy of a record, over all pools in their order."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(pool.columns["key"][pool.fates.undecided()] for pool in pools)])
    keys.sort()
    repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys  # mostly there is little left to do, which takes little memory
    copies = [np.flatnonzero(among(pool.columns["key"], repeated) & pool.fates.undecided()) for pool in pools]
    keys = np.concatenate(
        [repeated[:0], *(pool.columns["key"][rows] for pool, rows in zip(pools, copies, strict=True))]
    )
    order = np.argsort(keys, kind="stable")
    later = np.zeros(len(keys), bool)
    later[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    start = 0
    for pool, rows in zip(pools, copies, strict=True):
        pool.fates.settle(rows[later[start : start + len(rows)]], DUPLICATE)
        start += len(rows)


def remove_near_duplicates(pools: list[Pool], before: list[Pool], near_duplicates: NearDuplicates) -> None:
    """Removes the records that resemble an earlier one, or one of the pools that were read `before` these."""
    later = near_duplicates.later_copies()
    start = sum(len(pool.fates) for pool in before)
    for pool in pools:
        mine = later[start : start + len(pool.fates)]
        twins = np.flatnonzero(pool.columns["twin"])
        mine[twins] = mine[twins - 1]
        pool.fates.settle(mine, NEAR_DUPLICATE)
        start += len(pool.fates)


def among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool[n]: which of `keys` occur in `others`, which is sorted."""
    found = np.zeros(len(keys), bool)
    for start in range(0, len(keys) if len(others) else 0, _BLOCK):
        block = keys[start : start + _BLOCK]
        found[start : start + _BLOCK] = others[np.minimum(np.searchsorted(others, block), len(others) - 1)] == block
    return found
