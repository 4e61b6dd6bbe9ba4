"""Configurations as what JSON can hold, and back with a check of all types."""

import dataclasses
import typing
from typing import Any, TypeVar

from gemma_keras.config.errors import require
from gemma_keras.config.fields import STRINGS, fields_read

C = TypeVar("C")

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", STRINGS: "a list of texts"}


def to_dict(config: Any, read: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is read of a configuration as nested dictionaries, lists and scalars (what JSON can hold)."""
    return {field.name: _plain(getattr(config, field.name), below) for field, below in fields_read(config, read)}


def from_dict(values: Any, kind: type[C], path: str = "config") -> C:
    """Builds a fresh configuration of dataclass `kind`; absent fields take their defaults, sections are never shared.

    Raises:
        UserError: an unknown field, or a value of another type than the field's.
    """
    require(isinstance(values, dict), f"{path} is {values!r}, but a {kind.__name__} is expected: give its fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        require(name in fields, f"{path} has no field {name!r}: use one of {', '.join(fields)}")
    return kind(**{name: _typed(value, fields[name].type, f"{path}.{name}") for name, value in values.items()})


def _plain(value: Any, read: tuple[str, ...]) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value, read)
    if isinstance(value, (tuple, list)):
        return [_plain(item, read) for item in value]
    return value


def _typed(value: Any, kind: Any, path: str) -> Any:
    """`value` as the field type `kind`; only int -> float and list -> tuple are converted."""
    if dataclasses.is_dataclass(kind):
        return from_dict(value, kind, path)  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        expected = "a list of texts" if item is str else f"a list of {item.__name__}"
        require(isinstance(value, (list, tuple)), f"{path} is {value!r}, but {expected} is expected: give a tuple")
        return tuple(_typed(entry, item, f"{path}.{index}") for index, entry in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, f"{path} is {value!r}, but {_KINDS[kind]} is expected: correct the value")
    return value
