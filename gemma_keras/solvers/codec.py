"""Traces as JSON and back: every dataclass an object of its fields, and the work of a solver with its `kind` besides."""

import dataclasses
import functools
import json
import types
import typing
from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.solvers.trace import Trace, Work

_FORM = "give what solvers.codec wrote"
_KINDS = frozenset(typing.get_args(Work))
_hints = functools.cache(typing.get_type_hints)


def to_json(trace: Trace) -> str:
    """The trace in one line."""
    return json.dumps(to_plain(trace), ensure_ascii=False)


def from_json(text: str) -> Trace:
    """Inverse of `to_json`.

    Raises:
        UserError: the text is not JSON, or describes no trace.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"a trace is not JSON ({error}); {_FORM}.") from error
    return from_plain(values)


def to_plain(value: Any) -> Any:
    """A trace, or a part of one, as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": _name_kind(type(value)), **fields} if type(value) in _KINDS else fields
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_plain(values: Any) -> Trace:
    """Inverse of `to_plain` for a whole trace.

    Raises:
        UserError: the values describe no trace.
    """
    return _read(values, Trace, "trace")


def _name_kind(part: Any) -> str:
    return part.__name__.lower()


def _read(value: Any, expected: Any, path: str) -> Any:
    """`value` as the annotated type `expected`."""
    if isinstance(expected, types.UnionType):
        options = {_name_kind(option): option for option in typing.get_args(expected) if option is not types.NoneType}
        if value is None and types.NoneType in typing.get_args(expected):
            return None
        if len(options) > 1:
            kind = str(value.get("kind")) if isinstance(value, dict) else ""
            _require(kind in options, kind, f"one of {', '.join(options)}", f"{path}.kind")
            return _read_fields(value, options[kind], path)
        (expected,) = options.values()
    if dataclasses.is_dataclass(expected):
        return _read_fields(value, expected, path)
    origin = typing.get_origin(expected)
    if origin in (list, tuple):
        _require(isinstance(value, list), value, "a list", path)
        item = typing.get_args(expected)[0]
        return origin(_read(entry, item, f"{path}.{index}") for index, entry in enumerate(value))
    if expected is float and type(value) is int:
        return float(value)
    _require(type(value) is expected, value, expected.__name__, path)
    return value


def _read_fields(value: Any, part: Any, path: str) -> Any:
    _require(isinstance(value, dict), value, "an object", path)
    hints, has_kind = _hints(part), part in _KINDS
    names = {field.name for field in dataclasses.fields(part)} | ({"kind"} if has_kind else set())
    _require(value.keys() == names, ", ".join(value), f"an object of {', '.join(sorted(names))}", path)
    _require(not has_kind or value["kind"] == _name_kind(part), value.get("kind"), _name_kind(part), f"{path}.kind")
    return part(**{name: _read(entry, hints[name], f"{path}.{name}") for name, entry in value.items() if name in hints})


def _require(holds: bool, value: Any, expected: str, path: str) -> None:
    if not holds:
        raise UserError(f"{path} is {value!r}, but {expected} is expected; {_FORM}.")
