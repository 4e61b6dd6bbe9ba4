"""The folder of one stage: what was asked, what was logged, what came out. Files are replaced whole or appended."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gemma_keras import runtime
from gemma_keras.config.errors import UserError
from gemma_keras.config.writing import write_whole
from gemma_keras.stages.running import plots

# Sections whose change makes a resumed run another run.
_BINDING = ("tokenizer", "model", "data", "adapter", "optim", "train")
# Fields of those sections that may change between a run and its resumption.
_FREE = {
    "model.attention",
    *(f"train.{name}" for name in ("log_every", "eval_every", "save_every", "keep_checkpoints", "remat")),
    *(f"data.system_prompts.{name}" for name in ("cache", "dry_run")),
    *(f"data.system_prompts.endpoint.{name}" for name in ("url", "key_variable", "concurrency", "retries", "timeout")),
}
# What a run goes on from; until one of these is there, a workdir is free for another configuration.
_PROGRESS = ("result.json", "tokenizer/tokenizer.model", "checkpoints/[0-9]*")
# Of how many places of a file `fingerprints` reads how much.
_PIECES, _PIECE = 1024, 4096
# The workdirs of this process, locked until it ends; the system frees them however it ends.
_LOCKS: dict[Path, FileLock] = {}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, so that a reader never sees half of it."""
    # Half a surrogate pair, as an undecodable byte of the command line becomes one, is then spelled as JSON spells it.
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """The value of a JSON file; None when there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, or give another --workdir.") from error


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
        lock = _LOCKS.setdefault(workdir.resolve(), FileLock(workdir / ".lock", thread_local=False))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"--workdir={workdir} is in use by another run; wait for it, or give another --workdir."
            ) from error
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
        old, new = (dict(_leaves(section, values.get(section) or {})) for values in (before, config))
        for name, value in new.items():
            if name in old and old[name] != value and name not in _FREE:
                raise UserError(
                    f"--workdir={path.parent} holds a run with config.{name}={_short(old[name])}, this one has "
                    f"{_short(value)}; give the same configuration to resume it, or another --workdir."
                )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every field within a section, such as `data.system_prompts.none`, and its value."""
    if isinstance(value, dict):
        for field, inner in value.items():
            yield from _leaves(f"{name}.{field}", inner)
    else:
        yield name, value


class JsonLines:
    """A file of JSON objects, one a line, that grows as they come."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: dict) -> None:
        """Adds one object."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def read(self) -> list[dict]:
        """The objects up to a line cut short by a kill."""
        rows: list[dict] = []
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        with contextlib.suppress(json.JSONDecodeError):
            for line in text.split("\n"):
                rows.append(json.loads(line))
        return rows

    def write(self, rows: Iterable[dict]) -> None:
        """Puts these objects in the place of all."""
        write_whole(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


class RunLog:
    """What a training run logs: `metrics.jsonl`, the same for TensorBoard, and plots of it.

    Of a run that goes on after `completed` steps, what it logged of later ones is forgotten.
    """

    def __init__(self, workdir: Path, completed: int):
        from tensorboardX import SummaryWriter

        self._plots = workdir / "plots"
        self._metrics = JsonLines(workdir / "metrics.jsonl")
        self._metrics.write(line for line in self._metrics.read() if line["step"] <= completed)
        # A file of its own, even of runs that follow each other within a second, by which such files are named.
        suffix = f".{completed}"
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=completed + 1, filename_suffix=suffix
        )

    def append(self, line: dict) -> None:
        """Writes one logged step."""
        self._metrics.append(line)
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, line["step"])

    def close(self, matrices: list[str]) -> None:
        """Closes TensorBoard's file and draws what was logged."""
        self._tensorboard.close()
        plots.draw(self._metrics.read(), self._plots, matrices)
