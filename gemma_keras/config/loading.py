"""Configuration files: Python modules with a function `get_config()`."""

import dataclasses
import runpy
import traceback
from pathlib import Path
from typing import Any, TypeVar

from gemma_keras.config.errors import UserError, require
from gemma_keras.config.fields import SCALARS, sections
from gemma_keras.config.serialization import from_dict, to_dict
from gemma_keras.config.stages import StageConfig

C = TypeVar("C")
_MOVED = "each stage has a configuration of its own, such as SftConfig of gemma_keras.config.stages: "


def load_config(path: str, kind: type[C]) -> C:
    """Runs `get_config()` of the file and returns a fresh copy of its result, types checked, ranges not.

    The copy keeps overrides of one section from reaching another one that the file happened to share with it. From the
    configuration of another stage, such as the training that data is prepared for, what `kind` reads is taken.

    Raises:
        UserError: the file is missing, fails, lacks `get_config`, gives something else than a `kind`, or sets a field that
            the stage does not read.
    """
    require(Path(path).is_file(), f"--config={path} is not a file: give one such as configs/pretrain.py")
    get_config = _guarded(path, runpy.run_path, path).get("get_config")  # not cached: the file as it is now counts
    require(
        callable(get_config),
        f"--config={path} has no function get_config(): give a file whose get_config() returns a {kind.__name__}",
    )
    given = _guarded(path, get_config)
    if type(given) is kind:
        _require_read(path, from_dict(dataclasses.asdict(given), kind))  # type: ignore[call-overload]
        return from_dict(to_dict(given), kind)
    shared = taken(given, kind)
    require(
        shared is not None,
        f"get_config() of --config={path} gives a {type(given).__name__}, but this script reads a {kind.__name__}: "
        "give the configuration file of this stage",
    )
    return from_dict(to_dict(shared), kind)


def taken(given: Any, kind: type[C]) -> C | None:
    """The sections of another stage's configuration that a `kind` has, too; None where they are others."""
    shared = {field.name: field.type for field in dataclasses.fields(kind) if hasattr(given, field.name)}  # type: ignore[arg-type]
    values = {name: getattr(given, name) for name in shared}
    others = [
        name for name, value in values.items() if dataclasses.is_dataclass(value) and type(value) is not shared[name]
    ]
    return kind(**values) if isinstance(given, StageConfig) and not others else None


def _require_read(path: str, config: Any) -> None:
    """Raises `UserError` for a field that is set although the stage does not read it."""
    kept = dict(sections(from_dict(to_dict(config), type(config)), "config"))
    for place, given in sections(config, "config"):
        for field in dataclasses.fields(given):
            read = place in kept and getattr(kept[place], field.name) == getattr(given, field.name)
            require(
                read or field.type not in SCALARS,
                f"--config={path} sets {place}.{field.name}, which a {type(config).__name__} does not read: leave it out",
            )


def _guarded(path: str, function: Any, *arguments: Any) -> Any:
    """Calls into the user's file; whatever goes wrong in there is told in one sentence with its line."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--config={path} fails{_line_of(path, error)} with {type(error).__name__}: "
            f"{' '.join(str(error).split())}; {_MOVED if 'gemma_keras.config' in str(error) else ''}mend the file"
        ) from error


def _line_of(path: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" in line {lines[-1]}" if lines else ""
