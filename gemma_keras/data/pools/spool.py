"""Records on disk while a mixture is chosen, so that memory does not grow with the corpora."""

import dataclasses
import os
import pickle
import tempfile
from array import array
from pathlib import Path

from gemma_keras.data.records import ChatRecord, ChoiceRecord, PreferenceRecord, Record, TextRecord

_KINDS = (ChatRecord, TextRecord, PreferenceRecord, ChoiceRecord)
_FIELDS = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _KINDS}


class Spool:
    """A file of records that grows at its end and is read at any place; in memory it holds 8 bytes a record."""

    def __init__(self, folder: Path):
        # Without a name: nothing is left of it when the process ends, however it ends.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._ends = array("Q", [0])

    def append(self, record: Record) -> None:
        kind = type(record)
        fields = [getattr(record, name) for name in _FIELDS[kind]]
        # A private file of this process: nobody else's pickle is ever read.
        data = pickle.dumps((_KINDS.index(kind), fields), protocol=5)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def __getitem__(self, index: int) -> Record:
        start, end = self._ends[index], self._ends[index + 1]
        number, fields = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        kind = _KINDS[number]
        return kind(**dict(zip(_FIELDS[kind], fields, strict=True)))

    def size(self, index: int) -> int:
        """Bytes of a record on disk, about those of its text."""
        return self._ends[index + 1] - self._ends[index]
