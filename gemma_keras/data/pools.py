"""Corpora in memory while rows are chosen, and the account of what became of every source row."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import CorpusConfig
from gemma_keras.data.cleaning import DUPLICATE, EMPTY, IN_VALIDATION, content_key, exact_key, is_empty
from gemma_keras.data.mixing import largest_remainder
from gemma_keras.data.records import Quarantined, Record
from gemma_keras.data.sources import read_corpus

NOT_DRAWN = "not_drawn"
SET_APART = "set_apart_for_validation"
UNDECIDED, USED = "", "used"


@dataclasses.dataclass(slots=True)
class Candidate:
    """A record that may be used; `fate` is UNDECIDED, USED or the rule that removed it; `parent` is its source row."""

    record: Record
    parent: int
    fate: str = UNDECIDED


@dataclasses.dataclass(slots=True)
class Pool:
    """One corpus: its candidates in the order of the files, and what never became a candidate."""

    corpus: CorpusConfig
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    rows_in: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    quarantined: list[Quarantined] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)

    def undecided(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.fate == UNDECIDED]

    def fates(self) -> Counter[str]:
        """Number of source rows by fate: USED if any record of the row is used, else the fate of its first record."""
        of_parent: dict[int, str] = {}
        for candidate in self.candidates:
            if candidate.fate == USED or candidate.parent not in of_parent:
                of_parent[candidate.parent] = candidate.fate
        return Counter(of_parent.values()) + self.skipped


def read_pool(corpus: CorpusConfig, root: Path) -> Pool:
    """Reads a whole corpus.

    Raises:
        UserError: none of its files exists, or none of its rows can be used.
    """
    pool = Pool(corpus)
    for row in read_corpus(corpus, root):
        pool.rows_in += 1
        if pool.files[-1:] != [row.file]:
            pool.files.append(row.file)
        if row.quarantined:
            pool.quarantined.append(row.quarantined)
        elif not row.records:
            pool.skipped[row.skipped or EMPTY] += 1
        pool.candidates.extend(Candidate(record, pool.rows_in) for record in row.records)
    if not pool.candidates:
        reason = (
            pool.quarantined[0].reason if pool.quarantined else f"all rows are left out ({', '.join(pool.skipped)})"
        )
        raise UserError(
            f"no usable row of corpus {corpus.name!r} in {', '.join(pool.files)}: {reason}; "
            "check that the corpus's name fits the files"
        )
    return pool


def clean(pools: Iterable[Pool], forbidden: set[bytes]) -> None:
    """Removes empty rows, rows whose content is among `forbidden`, and every later copy of a row."""
    seen: set[bytes] = set()
    for pool in pools:
        for candidate in pool.undecided():
            key = exact_key(candidate.record)
            if is_empty(candidate.record):
                candidate.fate = EMPTY
            elif content_key(candidate.record) in forbidden:
                candidate.fate = IN_VALIDATION
            elif key in seen:
                candidate.fate = DUPLICATE
            seen.add(key)


def set_apart(pools: list[Pool], rows: int, seed: int) -> list[Pool]:
    """Draws `rows` validation rows from training pools by their shares, else their sizes; returns them as pools.

    The other records of a source row of which one is drawn are used nowhere.

    Raises:
        UserError: the pools hold fewer.
    """
    sizes = [len(pool.undecided()) for pool in pools]
    if rows >= sum(sizes):
        raise UserError(
            f"data.validation_rows is {rows}, but the corpora hold only {sum(sizes)} usable rows; set fewer apart"
        )
    apart = []
    shares = [pool.corpus.share for pool in pools]
    counts = largest_remainder(shares if all(shares) else sizes, rows)
    for index, (pool, count) in enumerate(zip(pools, counts, strict=True)):
        available = pool.undecided()
        rng = np.random.default_rng([seed, 2, index])
        drawn = [available[i] for i in sorted(rng.permutation(len(available))[:count])]
        parents = {candidate.parent for candidate in drawn}
        copies = [Candidate(candidate.record, candidate.parent) for candidate in drawn]
        corpus = dataclasses.replace(pool.corpus, share=0.0, limit=0)
        apart.append(Pool(corpus, copies, rows_in=len(parents), files=list(pool.files)))
        for candidate in available:
            if candidate.parent in parents:
                candidate.fate = SET_APART
    return apart


def shuffled(pools: list[Pool], seed: int) -> list[list[Candidate]]:
    """What is left of each pool, in the order in which it is drawn, cut to the corpus's limit."""
    queues = []
    for index, pool in enumerate(pools):
        available = pool.undecided()
        order = np.random.default_rng([seed, 1, index]).permutation(len(available))
        queue = [available[i] for i in order]
        if pool.corpus.limit:
            for candidate in queue[pool.corpus.limit :]:
                candidate.fate = NOT_DRAWN
            queue = queue[: pool.corpus.limit]
        queues.append(queue)
    return queues


def wanted_counts(pools: list[Pool], available: list[int], rows: int) -> list[int]:
    """How many records each pool gives: all of them, or exact shares of `rows`.

    Raises:
        UserError: shares make no sense, or a pool is too small for its share.
    """
    shares = [pool.corpus.share for pool in pools]
    names = [pool.corpus.name for pool in pools]
    if min(shares, default=0) < 0 or (any(shares) and not all(shares)):
        raise UserError(f"the shares of {', '.join(names)} are {shares}; give every corpus a positive share, or none")
    if not rows:
        if any(shares) and len(set(shares)) > 1:
            raise UserError(
                f"the corpora have shares {shares}, but data.rows is 0; set data.rows to the mixture's size"
            )
        return available
    counts = largest_remainder(shares if any(shares) else available, rows)
    lacking = [
        f"{name} has {have} usable rows of {want}, {want - have} too few"
        for name, have, want in zip(names, available, counts, strict=True)
        if have < want
    ]
    if lacking:
        raise UserError(f"data.rows is {rows}, but {'; '.join(lacking)}; lower data.rows or change the shares")
    return counts
