"""A recipe (DataConfig) to a prepared dataset on disk.

    out/train, out/valid   rows as Arrow (tokens, kinds, type, source, id), packed_offsets.npy, packed_rows.npy
    out/report.json, out/report.md, out/charts/*.png, out/quarantine.jsonl

The result is a function of the configuration, the tokenizer and the source files: the same bytes each time.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import CorpusConfig, DataConfig
from gemma_keras.data.cleaning import content_key
from gemma_keras.data.encoding import Encoded, EncodedRow, encode_records
from gemma_keras.data.mixing import interleave
from gemma_keras.data.packing import pack
from gemma_keras.data.pools import (
    NOT_DRAWN,
    USED,
    Candidate,
    Pool,
    clean,
    read_pool,
    set_apart,
    shuffled,
    wanted_counts,
)
from gemma_keras.data.records import ChatRecord
from gemma_keras.data.report import split_report, write_report
from gemma_keras.data.sources import find_files, shown_path
from gemma_keras.data.system_prompts import OWN, assign_kinds, with_system_prompt
from gemma_keras.text.templates import Template, get_template
from gemma_keras.text.tokenizer import Tokenizer

FORMAT = 1
"""Raised whenever the prepared bytes change, so that older prepared data is made again."""

TOO_LONG = "no_answer_within_sequence_length"
ENCODE_BATCH = 2048

Progress = Callable[[str], None]


def print_progress(line: str) -> None:
    """Writes a progress line to stderr."""
    print(line, file=sys.stderr, flush=True)


def prepare(
    config: DataConfig, tokenizer: Tokenizer, out: str | Path, progress: Progress = print_progress
) -> dict[str, Any]:
    """Prepares training and validation rows under `out`, or finds them there already; returns the report.

    Validation rows come first; training rows equal to one of them are removed. The folder appears only when it is
    complete.

    Raises:
        UserError: a corpus is missing or too small, a setting makes no sense, or `out` holds something else.
    """
    out = Path(out)
    template = get_template(config.template)
    _check(config)
    root = Path(config.root) if config.root else builtin.data_root()
    fingerprint = _fingerprint(config, tokenizer, root)
    finished = _finished_report(out)
    if finished is not None and finished.get("fingerprint") == fingerprint:
        progress(f"prepared data in {out} is up to date")
        return finished

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    train, valid = _pools(config, root, progress)
    splits = {}
    for name, pools, rows in (("valid", valid, 0), ("train", train, config.rows)):
        chosen = _choose(pools, rows, config, tokenizer, template, progress)
        splits[name] = _write_split(partial / name, pools, chosen, config.sequence_length, fingerprint)
    if config.corpora and not splits["train"]["rows"]:
        raise UserError("no training row is left after cleaning; check data.corpora against data.validation")
    report = {
        "fingerprint": fingerprint,
        "sequence_length": config.sequence_length,
        **splits["train"],
        "validation": splits["valid"],
        "overlap": len(_used_keys(train) & _used_keys(valid)),
        "files": {pool.corpus.name: pool.files for pool in train},
        "validation_files": {pool.corpus.name: pool.files for pool in valid},
    }
    assert report["overlap"] == 0
    write_report(partial, report, [q for pool in [*train, *valid] for q in pool.quarantined])
    _replace(partial, out)
    progress(
        f"prepared {report['rows']} training and {report['validation']['rows']} validation rows in {out}, "
        f"useful token share {report['useful_token_share']:.4f}"
    )
    return report


def _check(config: DataConfig) -> None:
    if not config.corpora and not config.validation:
        raise UserError("data.corpora and data.validation are both empty; name at least one corpus")
    if config.sequence_length < 8:
        raise UserError(f"data.sequence_length is {config.sequence_length}; give at least 8 tokens")
    if config.validation and config.validation_rows:
        raise UserError("data.validation and data.validation_rows are both set; set only one of them")


def _pools(config: DataConfig, root: Path, progress: Progress) -> tuple[list[Pool], list[Pool]]:
    """Training and validation pools, read and cleaned."""
    valid = [_read(corpus, root, progress) for corpus in config.validation]
    clean(valid, forbidden=set())
    train = [_read(corpus, root, progress) for corpus in config.corpora]
    # Every validation row counts, also those that a limit leaves out.
    clean(train, forbidden={content_key(c.record) for pool in valid for c in pool.candidates})
    if config.validation_rows:
        valid = set_apart(train, config.validation_rows, config.seed)
        clean(train, forbidden={content_key(c.record) for pool in valid for c in pool.candidates})
    return train, valid


def _read(corpus: CorpusConfig, root: Path, progress: Progress) -> Pool:
    start = time.monotonic()
    pool = read_pool(corpus, root)
    rate = pool.rows_in / max(time.monotonic() - start, 1e-6)
    progress(f"read {pool.rows_in} rows of {corpus.name} from {len(pool.files)} files, {rate:,.0f} rows/s")
    return pool


class _Pace:
    """Tells how far a count is, how fast and how long it will take, every few seconds and at the end."""

    SECONDS = 5.0

    def __init__(self, verb: str, total: int, progress: Progress):
        self._verb, self._total, self._progress = verb, total, progress
        self._start = self._told = time.monotonic()

    def done(self, count: int) -> None:
        now = time.monotonic()
        if now - self._told < self.SECONDS and count < self._total:
            return
        self._told = now
        rate = count / max(now - self._start, 1e-6)
        left = (self._total - count) / rate
        self._progress(f"{self._verb} {count} of {self._total} rows, {rate:,.0f} rows/s, {left:.0f} s left")


@dataclasses.dataclass(slots=True)
class _Chosen:
    """The prepared rows of a split, and counts over the records that they come from."""

    rows: list[EncodedRow] = dataclasses.field(default_factory=list)
    by_source: Counter[str] = dataclasses.field(default_factory=Counter)
    by_type: Counter[str] = dataclasses.field(default_factory=Counter)
    by_system_prompt: Counter[str] = dataclasses.field(default_factory=Counter)
    truncated: int = 0


def _choose(
    pools: list[Pool], rows: int, config: DataConfig, tokenizer: Tokenizer, template: Template, progress: Progress
) -> _Chosen:
    """Draws, orders and encodes the rows of a split.

    A record of which nothing is left to learn within the sequence length gives way to the next of its corpus.
    """
    queues = shuffled(pools, config.seed)
    counts = wanted_counts(pools, [len(queue) for queue in queues], rows)
    rng = np.random.default_rng([config.seed, 3])
    order = interleave(counts, rng)
    slots = [queues[corpus][place] for corpus, place in order]
    reserves = [iter(queue[count:]) for queue, count in zip(queues, counts, strict=True)]
    prompts = _SystemPrompts([candidate.record for candidate in slots], config, rng)

    def encode(numbers: range, candidates: list[Candidate]) -> list[Encoded]:
        items = [(c.record, prompts.messages(i, c.record)) for i, c in zip(numbers, candidates, strict=True)]
        return encode_records(items, tokenizer, template, config.sequence_length)

    chosen = _Chosen()
    pace = _Pace("encoded", len(slots), progress)
    for first in range(0, len(slots), ENCODE_BATCH):
        numbers = range(first, min(first + ENCODE_BATCH, len(slots)))
        for number, encoded in zip(numbers, encode(numbers, slots[first : numbers.stop]), strict=True):
            candidate: Candidate | None = slots[number]
            while candidate is not None and not encoded.rows:
                candidate.fate = TOO_LONG
                candidate = next(reserves[order[number][0]], None)
                if candidate is not None:
                    encoded = encode(range(number, number + 1), [candidate])[0]
            if candidate is not None:
                candidate.fate = USED
                _add(chosen, candidate, encoded, prompts.kind(number, candidate.record))
            elif rows:
                corpus = pools[order[number][0]].corpus.name
                raise UserError(
                    f"data.rows is {rows}, but too few rows of {corpus} fit into data.sequence_length; lower it"
                )
        pace.done(numbers.stop)
    for reserve in reserves:
        for candidate in reserve:
            candidate.fate = NOT_DRAWN
    return chosen


def _add(chosen: _Chosen, candidate: Candidate, encoded: Encoded, kind: str) -> None:
    record = candidate.record
    chosen.rows.extend(encoded.rows)
    chosen.by_source[record.source] += 1
    chosen.by_type[record.type] += 1
    chosen.truncated += encoded.truncated
    if kind:
        chosen.by_system_prompt[kind] += 1


class _SystemPrompts:
    """Which slot of a split gets which system prompt; documents get none."""

    def __init__(self, records: list[Any], config: DataConfig, rng: np.random.Generator):
        chats = [i for i, record in enumerate(records) if isinstance(record, ChatRecord)]
        kinds = assign_kinds([records[i].messages for i in chats], config.system_prompts, rng)
        self._kinds = dict(zip(chats, kinds, strict=True))
        self._choices = rng.integers(0, 2**31, len(records))

    def kind(self, slot: int, record: Any) -> str:
        if not isinstance(record, ChatRecord):
            return ""
        if record.messages[0]["role"] == "system":
            return OWN
        kind = self._kinds.get(slot, "none")
        return "none" if kind == OWN else kind

    def messages(self, slot: int, record: Any) -> list[dict[str, str]]:
        kind = self.kind(slot, record)
        return with_system_prompt(record.messages, kind, int(self._choices[slot])) if kind else []


def _write_split(
    folder: Path, pools: list[Pool], chosen: _Chosen, sequence_length: int, fingerprint: str
) -> dict[str, Any]:
    """Writes rows and packing plan; returns the split's part of the report."""
    folder.mkdir()
    lengths = np.array([len(row.tokens) for row in chosen.rows], dtype=np.int64)
    offsets, packed = pack(lengths, sequence_length)
    name = hashlib.sha256(f"{fingerprint} {folder.name}".encode()).hexdigest()[:16]
    table = datasets.table.InMemoryTable(_table(chosen.rows))
    dataset = datasets.Dataset(table, fingerprint=name)
    datasets.disable_progress_bars()
    # Without rows, datasets would write no file, and fail to load what it wrote.
    dataset.save_to_disk(str(folder), num_shards=None if chosen.rows else 1)
    np.save(folder / "packed_offsets.npy", offsets)
    np.save(folder / "packed_rows.npy", packed)
    return split_report(
        pools,
        lengths,
        packed_rows=len(offsets) - 1,
        sequence_length=sequence_length,
        by_source=chosen.by_source,
        by_type=chosen.by_type,
        by_system_prompt=chosen.by_system_prompt,
        truncated=chosen.truncated,
    )


def _table(rows: list[EncodedRow]) -> pa.Table:
    offsets = np.cumsum([0] + [len(row.tokens) for row in rows], dtype=np.int64)
    flat = {"tokens": np.zeros(0, np.int32), "kinds": np.zeros(0, np.uint8)}
    if rows:
        flat = {name: np.concatenate([getattr(row, name) for row in rows]) for name in flat}
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)) for name, values in flat.items()
    }
    columns |= {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in ("type", "source", "id")}
    return pa.table(columns)


def _used_keys(pools: list[Pool]) -> set[bytes]:
    return {content_key(c.record) for pool in pools for c in pool.candidates if c.fate == USED}


def _fingerprint(config: DataConfig, tokenizer: Tokenizer, root: Path) -> str:
    """Hash of everything that the prepared bytes follow from; files count by their content, not by where they lie."""
    digest = hashlib.sha256()
    settings = dataclasses.asdict(config) | {"root": ""}
    digest.update(json.dumps([FORMAT, settings, tokenizer.sha256], sort_keys=True).encode())
    for corpus in (*config.corpora, *config.validation):
        for path in [] if corpus.hub else find_files(corpus, root):
            with path.open("rb") as file:
                digest.update(shown_path(path, root).encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _finished_report(out: Path) -> dict[str, Any] | None:
    """The report of finished prepared data in `out`, or None where there is nothing yet.

    Raises:
        UserError: `out` holds something else, which must not be deleted.
    """
    if not out.exists():
        return None
    try:
        return json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise UserError(f"{out} exists but holds no prepared data; give another folder or delete it") from error


def _replace(partial: Path, out: Path) -> None:
    # Renamed aside first: an interruption leaves either the old data, or none, or the new, never half of them.
    aside = out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        out.rename(aside)
    partial.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
