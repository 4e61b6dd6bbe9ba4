"""Rows of a split to disk as they are made: Arrow in the layout of `datasets`, and the packing plans.

rows        tokens, kinds
            type, source, system_prompt (see `records`, `prompting.Prompted`)
            parent, part (see `records.Sourced`), edition (of augmentation), side, piece (see `encode.EncodedRow`): how
            rows belong together
            record: the messages as JSON, before system prompt and wording, which a later stage draws on; in the first row
            of a record only, and never of a document
            id: all of these relations in a name, for people only: nothing takes it apart
plan_E_offsets.npy, plan_E_rows.npy   packed rows of augmentation E, see `packing.pack`; of pairs the rows are 2i and 2i + 1
"""

import hashlib
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import orjson
import pyarrow as pa

from gemma_keras.data.encoding.encode import EVERY_AUGMENTATION, EncodedRow
from gemma_keras.data.encoding.packing import one_each, pack
from gemma_keras.data.prepared import ROWS_FILE
from gemma_keras.data.records import SIDES, ChatRecord, PreferenceRecord, Record


class _Row(NamedTuple):
    """A row to be written; `text` is its record as JSON, in the first row of a record."""

    encoded: EncodedRow
    record: Record
    system_prompt: str
    text: str | None


_COLUMNS: dict[str, tuple[pa.DataType, Callable[[_Row], Any]]] = {
    "type": (pa.string(), lambda row: row.record.type),
    "source": (pa.string(), lambda row: row.record.source),
    "id": (pa.string(), lambda row: _shown_id(row.record, row.encoded)),
    "system_prompt": (pa.string(), lambda row: row.system_prompt),
    "edition": (pa.uint8(), lambda row: row.encoded.augmentation),
    "record": (pa.string(), lambda row: row.text),
    "parent": (pa.string(), lambda row: row.record.parent),
    "part": (pa.uint32(), lambda row: row.record.part),
    "side": (pa.uint8(), lambda row: row.encoded.side),
    "piece": (pa.uint32(), lambda row: row.encoded.piece),
}
SCHEMA = pa.schema(
    {"tokens": pa.list_(pa.int32()), "kinds": pa.list_(pa.uint8())}
    | {name: type for name, (type, _) in _COLUMNS.items()}
)
BATCH = 1024


class SplitWriter:
    """Writes one split; memory holds a batch of rows, and 5 bytes of every row for the packing plans."""

    def __init__(self, folder: Path, pairs: bool):
        folder.mkdir()
        self._folder = folder
        self._pairs = pairs
        self._writer = pa.ipc.new_stream(str(folder / ROWS_FILE), SCHEMA)
        self._lengths, self._augmentations = array("i"), array("B")
        self._batch: list[_Row] = []

    def add(self, record: Record, rows: list[EncodedRow], system_prompt: str) -> None:
        for number, row in enumerate(rows):
            self._lengths.append(len(row.tokens))
            self._augmentations.append(row.augmentation)
            self._batch.append(_Row(row, record, system_prompt, None if number else _as_json(record)))
        if len(self._batch) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        rows = [row.encoded for row in self._batch]
        ends = pa.array(np.cumsum([0] + [len(row.tokens) for row in rows], dtype=np.int32))
        columns = [
            pa.ListArray.from_arrays(ends, pa.array(np.concatenate([row.tokens for row in rows]))),
            pa.ListArray.from_arrays(ends, pa.array(np.concatenate([row.kinds for row in rows]))),
            *(pa.array(map(value, self._batch), type) for type, value in _COLUMNS.values()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._batch = []

    def close(self, fingerprint: str, split: str, sequence_length: int, packing: bool) -> tuple[np.ndarray, list[int]]:
        """Completes the split; returns the lengths in tokens of augmentation 0's rows, i32, and all numbers of packed rows."""
        self._flush()
        self._writer.close()
        _describe(self._folder, hashlib.sha256(f"{fingerprint} {split}".encode()).hexdigest()[:16])
        lengths, augmentations = np.frombuffer(self._lengths, np.int32), np.frombuffer(self._augmentations, np.uint8)
        packed, kept = (
            (lengths.reshape(-1, 2).max(1, initial=0), augmentations[::2]) if self._pairs else (lengths, augmentations)
        )
        packed_counts = []
        for augmentation in range(int(augmentations[augmentations != EVERY_AUGMENTATION].max(initial=0)) + 1):
            chosen = np.flatnonzero((kept == EVERY_AUGMENTATION) | (kept == augmentation)).astype(np.int32)
            offsets, rows = pack(packed[chosen], sequence_length) if packing else one_each(len(chosen))
            np.save(self._folder / f"plan_{augmentation}_offsets.npy", offsets)
            np.save(self._folder / f"plan_{augmentation}_rows.npy", chosen[rows])
            packed_counts.append(len(offsets) - 1)
        return lengths[(augmentations == EVERY_AUGMENTATION) | (augmentations == 0)], packed_counts


def _shown_id(record: Record, row: EncodedRow) -> str:
    augmentation = f"~{row.augmentation}" if row.augmentation != EVERY_AUGMENTATION else ""
    side = f"/{SIDES[row.side]}" if row.side is not None else ""
    return record.id + augmentation + side + (f"@{row.piece}" if row.piece is not None else "")


def _as_json(record: Record) -> str | None:
    if isinstance(record, ChatRecord):
        value: dict = {"messages": record.messages} | ({"wording": record.wording} if record.wording else {})
    elif isinstance(record, PreferenceRecord):
        value = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    else:
        return None
    return orjson.dumps(value).decode()


def _describe(folder: Path, fingerprint: str) -> None:
    """The files by which `datasets.load_from_disk` knows the folder."""
    features = datasets.Features.from_arrow_schema(SCHEMA)
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": ROWS_FILE}],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
