"""Configuration files: Python modules with a function `get_config()`."""

import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import require
from gemma_keras.config.serialization import from_dict, to_dict

C = TypeVar("C")


def load_config(path: str, kind: type[C]) -> C:
    """Runs `get_config()` of the file and returns a fresh copy of its result, types checked, ranges not.

    The copy keeps overrides of one section from reaching another one that the file happened to share with it.

    Raises:
        UserError: the file is missing, fails, lacks `get_config` or gives something else than a `kind`.
    """
    require(Path(path).is_file(), f"--config={path} is not a file: give one such as configs/pretrain.py")
    module = _execute(path)
    get_config = getattr(module, "get_config", None)
    require(
        callable(get_config),
        f"--config={path} has no function get_config(): give a file whose get_config() returns a {kind.__name__}",
    )
    config = _guarded(path, get_config)
    require(
        type(config) is kind,
        f"get_config() of --config={path} gives a {type(config).__name__}, but this script reads a {kind.__name__}: "
        "give the configuration file of this stage",
    )
    return from_dict(to_dict(config), kind)


def _execute(path: str) -> ModuleType:
    """Runs the file as a module of its own: not cached, so that the file as it is now counts."""
    module = ModuleType("gemma_keras_config_file")
    module.__file__ = path
    source = _guarded(path, Path(path).read_text, "utf-8")
    code = _guarded(path, compile, source, path, "exec")
    _guarded(path, exec, code, module.__dict__)
    return module


def _guarded(path: str, function: Any, *arguments: Any) -> Any:
    """Calls into the user's file; whatever goes wrong in there is told in one sentence with its line."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--config={path} fails{_line_of(path, error)} with {type(error).__name__}: "
            f"{' '.join(str(error).split())}; mend the file"
        ) from error


def _line_of(path: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" in line {lines[-1]}" if lines else ""
