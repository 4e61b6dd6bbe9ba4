"""Validation rows: which are held out, and what must leave the training rows for their sake.

Rows are held out by what they ask: a training row with the question of a validation row is removed, whatever its answer.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.data.cleaning.rules import ASKED_IN_VALIDATION, IN_VALIDATION
from gemma_keras.data.pools.outcomes import SET_APART, Fates
from gemma_keras.data.pools.pool import BATCH_RECORDS, Pool, among
from gemma_keras.data.records import Record


def remove_held_out(pools: list[Pool], held: Iterable[Pool]) -> None:
    """Removes the records with the content, or just the question, of any record of the pools that are `held` out."""
    held = list(held)
    contents = _sorted([pool.columns["key"] for pool in held])
    questions = _sorted([pool.columns["question"] for pool in held])
    for pool in pools:
        for column, forbidden, rule in (
            ("key", contents, IN_VALIDATION),
            ("question", questions, ASKED_IN_VALIDATION),
        ):
            pool.fates.settle(among(pool.columns[column], forbidden), rule)


def overlaps(train: list[Pool], valid: list[Pool]) -> dict[str, int]:
    """How many of the training records used have the content, and the question, of a validation record used."""
    return {
        name: sum(int(among(_used(pool, column), held).sum()) for pool in train)
        for name, column in (("overlap", "key"), ("question_overlap", "question"))
        for held in [_sorted([_used(pool, column) for pool in valid])]
    }


def _used(pool: Pool, column: str) -> np.ndarray:
    keys: np.ndarray = pool.columns[column]
    return keys[pool.fates.used()]


def _sorted(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))


def set_apart(
    pools: list[Pool], counts: list[int], seed: int, usable: Callable[[list[Record]], list[bool]]
) -> list[Pool]:
    """Draws that many usable validation records from each pool; returns them as pools of their own.

    Those whose question few records ask come first: what is drawn takes all records that ask the same from training, which
    of a request that a whole corpus shares would be the corpus. The other records of a source row of which one is drawn
    are used nowhere.

    Raises:
        UserError: a pool has fewer usable ones.
    """
    apart = []
    asked = _sorted([pool.columns["question"][pool.fates.undecided()] for pool in pools])
    for index, (pool, count) in enumerate(zip(pools, counts, strict=True)):
        rng = np.random.default_rng([seed, 2, index])
        order = rng.permutation(pool.available())
        wanted = pool.columns["question"][order]
        times = np.searchsorted(asked, wanted, "right") - np.searchsorted(asked, wanted, "left")
        order = order[np.argsort(times, kind="stable")]
        drawn = np.sort(np.fromiter(itertools.islice(_usable_ones(pool, order, usable), count), np.int32))
        if len(drawn) < count:
            raise UserError(
                f"data.validation_rows would take {count} rows of {pool.corpus.name}, of which only {len(drawn)} fit into "
                "data.sequence_length and the limits of data.cleaning; set fewer apart"
            )
        corpus = dataclasses.replace(pool.corpus, share=0.0, limit=0)
        columns = pool.columns[drawn]
        parents = np.unique(columns["parent"]).tolist()
        copy = Pool(corpus=corpus, spool=pool.spool, origin=pool.origin, files=pool.files, columns=columns)
        copy.rows_of_parent = {
            parent: pool.rows_of_parent[parent] for parent in parents if parent in pool.rows_of_parent
        }
        copy.rows_in = sum(copy.rows_of_parent.get(parent, 1) for parent in parents)
        copy.fates = Fates(len(drawn))
        copy.places = drawn if pool.places is None else pool.places[drawn]
        pool.fates.settle(np.isin(pool.columns["parent"], parents), SET_APART)
        apart.append(copy)
    return apart


def _usable_ones(pool: Pool, order: np.ndarray, usable: Callable[[list[Record]], list[bool]]) -> Iterator[int]:
    """The records that are usable, in this order."""
    for start in range(0, len(order), BATCH_RECORDS):
        places = order[start : start + BATCH_RECORDS].tolist()
        yield from itertools.compress(places, usable([pool.record(place) for place in places]))
