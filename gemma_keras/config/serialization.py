"""Configurations as JSON and back, and the type check that both ways share."""

import dataclasses
import json
import typing
from typing import Any, TypeVar

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import STRINGS
from gemma_keras.config.schema import require

C = TypeVar("C")

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", STRINGS: "a list of texts"}


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries, lists and scalars (what JSON can hold)."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


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


def to_json(config: Any) -> str:
    """The configuration as indented JSON text, every field spelt out."""
    return json.dumps(to_dict(config), ensure_ascii=False, indent=2)


def from_json(text: str, kind: type[C]) -> C:
    """Inverse of `to_json`.

    Raises:
        UserError: the text is not JSON, or does not describe a `kind`.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the configuration is not JSON ({error}): give a text that to_json wrote") from error
    return from_dict(values, kind)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
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
