"""The folder of one stage: what was asked, what was logged, what came out. Files are replaced whole or appended."""

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gemma_keras import runtime
from gemma_keras.config.errors import UserError

# Sections whose change makes a resumed run another run.
_BINDING = ("tokenizer", "model", "data", "adapter", "optim", "train")
# Fields of those sections that may change between a run and its resumption.
_FREE = {
    "model": ("attention",),
    "train": ("log_every", "eval_every", "save_every", "keep_checkpoints", "remat"),
    "data": (
        "system_prompts.cache",
        "system_prompts.dry_run",
        *(f"system_prompts.endpoint.{name}" for name in ("url", "key_variable", "concurrency", "retries", "timeout")),
    ),
}
# What a run goes on from; until one of these is there, a workdir is free for another configuration.
_PROGRESS = ("result.json", "tokenizer/tokenizer.model", "checkpoints/[0-9]*")
# Of how many places of a file `fingerprints` reads how much.
_PIECES, _PIECE = 1024, 4096
# Lock files of the workdirs of this process, held open until it ends; the system frees them however it ends.
_LOCKS: dict[Path, int] = {}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by way of a temporary file, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # Half a surrogate pair, as an undecodable byte of the command line becomes one, is then spelled as JSON spells it.
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The value of a JSON file; None when there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, or give another --workdir.") from error


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file directly in a folder, by name; empty for an empty path."""
    return (
        {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()} if folder.name else {}
    )


def fingerprints(paths: Iterable[Path]) -> dict[str, str]:
    """What tells the contents of files apart without reading large ones whole, by name; a copy has the same."""
    return {path.name: _fingerprint(path) for path in sorted(paths) if path.is_file()}


def _fingerprint(path: Path) -> str:
    # From all over the file: header, norms and layers without an adapter, so both ends, may be alike in two fine-tunes.
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb", buffering=0) as file:
            for start in (*range(0, size, max(_PIECE, size // _PIECES)), max(0, size - _PIECE)):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a folder whose files can.") from error
    return digest.hexdigest()


def begin(workdir: Path, config: dict) -> None:
    """`claim`, then `record`.

    Raises:
        UserError: as these.
    """
    claim(workdir, config)
    record(workdir, config)


def claim(workdir: Path, config: dict) -> None:
    """Makes the folder where it is missing and keeps other processes from it; what a run wrote there stays as it is.

    Raises:
        UserError: the folder belongs to a run with another configuration or to something else, is in use by another
            process, or cannot be written.
    """
    with _written(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _lock(workdir)
        path = workdir / "config.json"
        if path.exists():
            _check_same_run(path, config)


def record(workdir: Path, config: dict) -> None:
    """Writes `config.json`: the resolved configuration, the command, the versions.

    What another stage read besides stays, so that preparing data again does not hide what a training run began with.

    Raises:
        UserError: the folder cannot be written.
    """
    with _written(workdir):
        before = (read_json(workdir / "config.json") or {}).get("config", {})
        for name, value in config.items():
            before[name] = (before.get(name) or {}) | value if isinstance(value, dict) else value
        write_json(workdir / "config.json", {"config": before, "argv": sys.argv, "versions": runtime.versions()})


@contextlib.contextmanager
def _written(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written ({error.strerror}); give a folder that can.") from error


def _lock(workdir: Path) -> None:
    if workdir.resolve() in _LOCKS:
        return
    descriptor = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            f"--workdir={workdir} is in use by another run; wait for it, or give another --workdir."
        ) from error
    _LOCKS[workdir.resolve()] = descriptor


def check_inputs(workdir: Path, inputs: dict[str, Any], resuming: bool) -> None:
    """Writes `inputs.json`: what a run reads besides its configuration, as far as `inputs` tells it apart.

    Raises:
        UserError: the run is resumed, and something that it had read is not what it was.
    """
    path = workdir / "inputs.json"
    before = read_json(path) if resuming else None
    for name, value in (before or {}).items():
        if inputs.get(name) != value:
            raise UserError(
                f"--workdir={workdir} holds a run on other {name}, which have changed since it began; bring them back, or "
                "give another --workdir."
            )
    write_json(path, inputs)


def _check_same_run(path: Path, config: dict) -> None:
    written = read_json(path)
    if not isinstance(written, dict) or "config" not in written:
        raise UserError(f"{path} is not from a run of gemma_keras; give another --workdir.")
    before = written["config"]
    if not any(any(path.parent.glob(pattern)) for pattern in _PROGRESS):
        return
    for section in _BINDING:
        old, new = (copy.deepcopy(c.get(section) or {}) for c in (before, config))
        for name in _FREE.get(section, ()):
            _drop(old, name)
            _drop(new, name)
        changed = [name for name in new if name in old and old[name] != new[name]]
        if changed:
            name = changed[0]
            raise UserError(
                f"--workdir={path.parent} holds a run with config.{section}.{name}={_short(old.get(name))}, this one has "
                f"{_short(new[name])}; give the same configuration to resume it, or another --workdir."
            )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _drop(section: dict, name: str) -> None:
    """Takes a field, such as `system_prompts.endpoint.url`, out of a section."""
    *parents, field = name.split(".")
    for parent in parents:
        section = section.get(parent) or {}
    section.pop(field, None)


class MetricsFile:
    """`metrics.jsonl`: one object a logged step."""

    def __init__(self, path: Path):
        self.path = path

    def truncate(self, step: int) -> None:
        """Drops lines after `step` and a line cut short by a kill: the run goes on from the checkpoint of `step`."""
        lines = [json.dumps(line, ensure_ascii=False) for line in self.read() if line["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(temporary, self.path)

    def append(self, line: dict) -> None:
        """Adds one object."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def read(self) -> list[dict]:
        """All complete lines."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines


class TensorBoard:
    """Scalars of logged steps, from `first_step` on, as TensorBoard events; TensorFlow is not needed."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        # Tells TensorBoard to forget what an interrupted run logged from here on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(step=first_step, session_log=start))

    def append(self, line: dict) -> None:
        """Writes the scalars of one object of `metrics.jsonl`."""
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        ]
        self._writer.add_event(self._event(step=line["step"], summary=self._summary(value=values)))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
