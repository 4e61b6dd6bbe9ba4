"""Prepared datasets to batches, any step at once.

B rows of a batch, P packed rows, E augmentations (`data.editions`). `batch_arrays` says what a batch is.

Training visits the packed rows in a new order every epoch, by a keyed permutation that needs no memory; so the batch of
any step follows from (seed, step) alone. Epoch e packs augmentation e modulo E of the rows whose wording is drawn anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gemma_keras.batch_arrays import Batch, padding_batch
from gemma_keras.config.errors import UserError
from gemma_keras.data.hashing import mixed
from gemma_keras.data.prepared import is_current, read_report
from gemma_keras.text.templates import CLOSING, CONTENT, PROMPT

LOSS_KINDS = {"response": (CLOSING, CONTENT), "all": (PROMPT, CLOSING, CONTENT)}


class PreparedSplit:
    """One split of a prepared dataset, memory-mapped.

    Attributes:
        packed_count: packed rows (P) of the first augmentation.
        starts: of each augmentation in the sequence of all augmentations' packed rows, i64[E+1].
        pairs: whether rows 2i and 2i + 1 are the sides of a preference pair, and plans count pairs.
        tokens, kinds: ragged columns; `split.tokens[r]` is row r.
    """

    def __init__(self, folder: Path, sequence_length: int, pairs: bool):
        import datasets

        self.sequence_length = sequence_length
        self.pairs = pairs
        self._dataset = datasets.load_from_disk(str(folder))
        self.tokens = _Ragged(self._dataset.data.column("tokens"))
        self.kinds = _Ragged(self._dataset.data.column("kinds"))
        self._plans = [
            [np.load(folder / f"plan_{augmentation}_{part}.npy", mmap_mode="r") for part in ("offsets", "rows")]
            for augmentation in range(len(list(folder.glob("plan_*_rows.npy"))))
        ]
        self.starts = np.cumsum([0] + [len(offsets) - 1 for offsets, _ in self._plans])
        self.packed_count = int(self.starts[1])

    @classmethod
    def load(cls, folder: str | Path) -> "PreparedSplit":
        """The split in `folder` (`.../train` or `.../valid` of a prepared dataset).

        Raises:
            UserError: there is none.
        """
        folder = Path(folder)
        try:
            report = read_report(folder.parent)
            if not is_current(report):
                raise ValueError("it was prepared by another version of this package")
            part = report["validation"] if folder.name == "valid" else report
            split = cls(folder, report["sequence_length"], part["pairs"])
            if np.diff(split.starts).tolist() != part["packed_rows_of_editions"]:
                raise ValueError("its packing plans are not those of its report")
            return split
        except (OSError, ValueError, LookupError) as error:
            raise UserError(
                f"no readable prepared data in {folder} ({error}); delete {folder.parent} if it is there, and prepare it again"
            ) from error

    def __len__(self) -> int:
        return len(self._dataset)

    def row_ids(self, rows: np.ndarray | list[int]) -> list[str]:
        """Names of prepared rows for people: corpus, file and row that they come from."""
        return [self._dataset[int(row)]["id"] for row in rows]

    def packed_row(self, index: int, augmentation: int = 0) -> np.ndarray:
        """The prepared rows (of pairs: the pairs) that packed row `index` of an augmentation holds."""
        offsets, rows = self._plans[augmentation]
        return rows[offsets[index] : offsets[index + 1]]


class _Ragged:
    """Rows of a list column, without copying the column."""

    def __init__(self, column: Any):
        self._column = column

    def __getitem__(self, row: int) -> np.ndarray:
        values: np.ndarray = self._column[int(row)].values.to_numpy()
        return values


def permuted(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends each `index`; the key is (seed, epoch).

    A Feistel network over the next even number of bits; what falls outside of the range is sent on until it falls
    inside (cycle walking), so the result is a permutation and needs no table.
    """
    half = max(4, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.default_rng([seed, epoch]).integers(0, 2**64, size=8, dtype=np.uint64)
    values = np.array(index, dtype=np.uint64)
    pending = np.ones(values.shape, bool)
    while pending.any():
        left, right = values[pending] >> np.uint64(half), values[pending] & mask
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        values[pending] = left << np.uint64(half) | right
        pending = values >= size
    return values.astype(np.int64)


def packed_rows_at(split: PreparedSplit, step: int, batch_rows: int, seed: int) -> np.ndarray:
    """The global batch of a step: augmentation and packed row, i64[B,2]; one epoch may end and the next begin within it."""
    places = np.arange(step * batch_rows, (step + 1) * batch_rows)
    # Epochs follow each other without end, in cycles that train once on each augmentation.
    cycles, rests = np.divmod(places, split.starts[-1])
    augmentations = np.searchsorted(split.starts, rests, side="right") - 1
    epochs = cycles * (len(split.starts) - 1) + augmentations
    rows = rests - split.starts[augmentations]
    for epoch in np.unique(epochs).tolist():
        mine = epochs == epoch
        size = np.diff(split.starts)[epoch % (len(split.starts) - 1)]
        rows[mine] = permuted(rows[mine], int(size), seed, epoch)
    return np.stack([augmentations, rows], axis=1)


def batch_at(
    split: PreparedSplit,
    step: int,
    *,
    batch_rows: int,
    seed: int,
    loss_on: str = "response",
    process_index: int = 0,
    process_count: int = 1,
) -> Batch:
    """This process's part of the training batch of `step`: rows of the global batch from one place on.

    Args:
        batch_rows: rows of the global batch, all processes together.

    Raises:
        UserError: the split is empty, or rows cannot be shared out evenly.
    """
    if not split.packed_count:
        raise UserError("there are no training rows; name corpora in data.corpora")
    mine = _share(batch_rows, process_index, process_count)
    return _build(split, packed_rows_at(split, step, batch_rows, seed)[mine], loss_on)


def batches(split: PreparedSplit, *, start_step: int, steps: int | None, **settings: Any) -> Iterator[Batch]:
    """The training batches from `start_step` on; `steps` of them, or without end if None.

    They are built by tf.data, on two threads and a few steps ahead.

    Args:
        settings: those of `batch_at`.
    """
    # Built here once: for names and shapes, and so that a user's mistake comes out as itself.
    sample = batch_at(split, start_step, **settings)

    from gemma_keras.runtime import hide_accelerators_from_tensorflow

    hide_accelerators_from_tensorflow()
    import tensorflow as tf

    names = list(sample)
    stop = np.iinfo(np.int64).max if steps is None else start_step + steps

    def arrays(step: np.int64) -> list[np.ndarray]:
        batch = batch_at(split, int(step), **settings)
        return [batch[name] for name in names]

    def in_graph(step: Any) -> dict[str, Any]:
        values = tf.numpy_function(arrays, [step], [sample[name].dtype for name in names], stateful=False)
        for name, value in zip(names, values, strict=True):
            value.set_shape(sample[name].shape)
        return dict(zip(names, values, strict=True))

    dataset = (
        tf.data.Dataset.range(start_step, stop).map(in_graph, num_parallel_calls=2, deterministic=True).prefetch(4)
    )
    return dataset.as_numpy_iterator()


def evaluation_batches(
    split: PreparedSplit,
    *,
    batch_rows: int,
    rows: np.ndarray | None = None,
    loss_on: str = "response",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every packed row (or those of `rows`) once, in order; the last batch is filled up with rows of padding."""
    mine = _share(batch_rows, process_index, process_count)
    rows = np.arange(split.packed_count) if rows is None else rows
    for start in range(0, len(rows), batch_rows):
        batch = rows[start : start + batch_rows]
        packed = np.pad(batch, (0, batch_rows - len(batch)), constant_values=-1)[mine]
        yield _build(split, np.stack([np.zeros_like(packed), packed], axis=1), loss_on)


def _share(batch_rows: int, process_index: int, process_count: int) -> slice:
    if batch_rows < 1 or batch_rows % process_count:
        raise UserError(
            f"train.batch_rows is {batch_rows}, but {process_count} processes share the rows; give a multiple of that"
        )
    size = batch_rows // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _build(split: PreparedSplit, packed_rows: np.ndarray, loss_on: str) -> Batch:
    """The batch of these packed rows i64[B,2] (augmentation, packed row); packed row -1 stands for a row of padding."""
    rows = [
        split.packed_row(packed, augmentation) if packed >= 0 else () for augmentation, packed in packed_rows.tolist()
    ]
    if not split.pairs:
        return _fill(split, rows, loss_on)
    sides = [_fill(split, [[2 * int(pair) + side for pair in pairs] for pairs in rows], loss_on) for side in (0, 1)]
    return {name: np.stack([side[name] for side in sides]) for name in sides[0]}


def _fill(split: PreparedSplit, rows: list[Any], loss_on: str) -> Batch:
    """Lays rows side by side; a row of a pair takes the room of the pair's longer side, so that both sides lie alike."""
    batch = padding_batch(len(rows), split.sequence_length)
    for b, packed in enumerate(rows):
        start = 0
        for segment, row in enumerate(packed, start=1):
            tokens, kinds = split.tokens[row], split.kinds[row]
            end = start + len(tokens)
            batch["tokens"][b, start:end] = tokens
            batch["targets"][b, start : end - 1] = tokens[1:]
            batch["target_kinds"][b, start : end - 1] = kinds[1:]
            batch["segment_ids"][b, start:end] = segment
            batch["positions"][b, start:end] = np.arange(end - start)
            batch["row_index"][b, start:end] = row
            start = max(end, start + len(split.tokens[row ^ 1])) if split.pairs else end
    batch["loss_weights"][:] = np.isin(batch["target_kinds"], LOSS_KINDS[loss_on])
    return batch
