"""Which records of which corpora make up a split, and in what order: fixed when the data is prepared."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig, DataConfig
from gemma_keras.data.mixing.shares import grouped_counts, interleave
from gemma_keras.data.pools.outcomes import NOT_DRAWN
from gemma_keras.data.pools.pool import Pool
from gemma_keras.data.records import Record


@dataclasses.dataclass(slots=True)
class Mixture:
    """The records of a split, train or valid, in order: slot i holds record `places[i]` of pool `corpora[i]`.

    Of each pool so many records are `wanted` by its share, and so many `available`; `reserves` yields, for each pool, the records
    that take the place of those that prove unusable; `kinds` are those of the slots' system prompts (see `prompting`).
    """

    split: str
    pools: list[Pool]
    corpora: np.ndarray
    places: np.ndarray
    wanted: list[int]
    available: list[int]
    reserves: list[Iterator[int]]
    kinds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint8))

    def __len__(self) -> int:
        return len(self.places)

    def record(self, slot: int) -> Record:
        return self.pools[self.corpora[slot]].record(self.places[slot])


def mix(split: str, pools: list[Pool], rows: int, config: DataConfig) -> Mixture:
    """Draws `rows` records from the pools by their shares (0: all of them) and lays them out.

    Raises:
        UserError: shares have no rows to be of, or a pool is too small for its share and the configuration allows no way out.
    """
    queues = [_queue(pool, config.seed, index) for index, pool in enumerate(pools)]
    available = [len(queue) for queue in queues]
    wanted = _wanted([pool.corpus for pool in pools], available, rows, config)
    _complain(pools, wanted, available, rows, config)
    repeat = config.too_small == "repeat"
    taken = [want if repeat and have else min(want, have) for want, have in zip(wanted, available, strict=True)]
    corpora, places = interleave(taken, np.random.default_rng([config.seed, 3]))
    reserves = []
    for number, (pool, queue, count) in enumerate(zip(pools, queues, taken, strict=True)):
        mine = corpora == number
        places[mine] = np.resize(queue, count)
        reserves.append(_reserve(pool, queue, count))
    return Mixture(split, pools, corpora, places, wanted, available, reserves)


def validation_counts(pools: list[Pool], sources: list[Pool], rows: int) -> list[int]:
    """How many records are set apart for each training pool: by the corpora's shares, else by their sizes.

    Args:
        sources: the pool that they are taken from: the training pool itself, or an earlier stage's validation rows.

    Raises:
        UserError: there are too few, or nothing would be left to train on.
    """
    available = [len(pool.available()) for pool in sources]
    kept = any(source is pool for pool, source in zip(pools, sources, strict=True))
    if rows > sum(available) or (rows == sum(available) and kept):
        raise UserError(
            f"data.validation_rows is {rows}, but the corpora hold only {sum(available)} usable rows; set fewer apart"
        )
    shares = [pool.corpus.share for pool in pools]
    counts = grouped_counts(shares if all(shares) else available, [pool.corpus.group for pool in pools], rows)
    for pool, source, count, have in zip(pools, sources, counts, available, strict=True):
        if count > have or (source is pool and count == have and count):
            raise UserError(
                f"data.validation_rows is {rows}, of which {count} would come from {pool.corpus.name}, which has only {have} "
                "usable rows; set fewer apart"
            )
    return counts


def _queue(pool: Pool, seed: int, index: int) -> np.ndarray:
    """The usable records of a pool in the order in which they are drawn, cut to the corpus's limit."""
    queue = np.random.default_rng([seed, 1, index]).permutation(pool.available())
    if pool.corpus.limit:
        pool.fates.settle(queue[pool.corpus.limit :], NOT_DRAWN)
        queue = queue[: pool.corpus.limit]
    return queue


def _wanted(corpora: list[CorpusConfig], available: list[int], rows: int, config: DataConfig) -> list[int]:
    shares = [corpus.share for corpus in corpora]
    if not rows:
        if any(shares) and len(set(shares)) > 1:
            raise UserError(
                f"the corpora have shares {shares}, but data.rows is 0; set data.rows to the mixture's size"
            )
        return available
    rng = np.random.default_rng([config.seed, 4]) if config.sampling == "random" else None
    if not any(shares):
        shares = [float(have) for have in available]
    return grouped_counts(shares, [corpus.group for corpus in corpora], rows, rng)


def _complain(pools: list[Pool], wanted: list[int], available: list[int], rows: int, config: DataConfig) -> None:
    lacking = [(pool, want, have) for pool, want, have in zip(pools, wanted, available, strict=True) if have < want]
    if lacking and (config.too_small == "error" or not all(have for _, _, have in lacking)):
        told = "; ".join(
            f"{pool.corpus.name} has {have} usable rows of {want}, {want - have} too few"
            for pool, want, have in lacking
        )
        raise UserError(
            f"data.rows is {rows}, but {told}; lower data.rows, change the shares, or set data.too_small to repeat or less"
        )


def _reserve(pool: Pool, queue: np.ndarray, taken: int) -> Iterator[int]:
    """Records not drawn; after them, where rows may occur several times, those that have proved usable, over and over."""
    yield from queue[taken:].tolist()
    while taken > len(queue):
        usable = pool.fates.usable(queue)
        if not len(usable):
            return
        yield from usable.tolist()
