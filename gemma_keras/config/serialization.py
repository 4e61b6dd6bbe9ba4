"""Dataclasses as what JSON can hold, and back with a check of all types."""

import dataclasses
import functools
import json
from typing import Any, TypeVar

import pydantic

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import fields_read

C = TypeVar("C")
_reader: Any = functools.cache(pydantic.TypeAdapter)


def to_dict(config: Any, read: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is read of a configuration, or all of another dataclass, as nested dictionaries, lists and scalars."""
    return {field.name: _plain(getattr(config, field.name), below) for field, below in fields_read(config, read)}


def from_json(text: str, kind: type[C], path: str) -> C:
    """Builds a `kind` of dataclass; absent fields take their defaults, whole numbers serve as numbers.

    Args:
        path: what errors call it.

    Raises:
        UserError: the text is no JSON, or has an unknown field or a value of another type than the field's.
    """
    try:
        return _reader(kind).validate_json(text, strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (path, *first["loc"])))
        raise UserError(f"{place} is {first['input']!r:.80}: {first['msg']}") from None


def from_dict(values: Any, kind: type[C], path: str = "config") -> C:
    """Inverse of `to_dict`, as `from_json`; no section is shared with another one."""
    return from_json(json.dumps(values, default=lambda value: {"no JSON": repr(value)}), kind, path)


def _plain(value: Any, read: tuple[str, ...]) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value, read)
    if isinstance(value, (tuple, list)):
        return [_plain(item, read) for item in value]
    return value
