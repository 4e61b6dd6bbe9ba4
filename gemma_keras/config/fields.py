"""The leaves of a configuration: one object per value that a flag, a check or `--help` refers to."""

import dataclasses
from collections.abc import Iterator
from typing import Any

STRINGS = tuple[str, ...]

# What the string or strings of a leaf are; `schema.field` says it of each, and `values` how a flag is read.
NAMES = "names"
PATHS = "paths"
TEXTS = "texts"
ESCAPED_TEXTS = "escaped texts"


@dataclasses.dataclass(slots=True)
class Leaf:
    """One scalar (or tuple of strings) of a configuration.

    Attributes:
        path: its place from the root on, e.g. `data.corpora.0.share`.
        section: the dataclass instance that holds it.
        name: its attribute in `section`.
        kind: bool, int, float, str or `tuple[str, ...]`.
        doc: the sentence of `schema.field`.
        holds: what its strings are: NAMES (and whatever else is short), PATHS (`~` is the home folder), TEXTS (never split
            at commas) or ESCAPED_TEXTS (the same, and a flag may spell line ends).
    """

    path: str
    section: Any
    name: str
    kind: Any
    doc: str
    holds: str = NAMES

    @property
    def value(self) -> Any:
        return getattr(self.section, self.name)

    @value.setter
    def value(self, value: Any) -> None:
        setattr(self.section, self.name, value)


def sections(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, section) for `config` itself and every section below it, in the order of the fields."""
    yield path, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        here = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value):
            yield from sections(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from sections(item, f"{here}.{index}")


def leaves(config: Any) -> Iterator[Leaf]:
    """Yields every leaf below `config`; an entry of a tuple of sections is addressed by its index."""
    for path, section in sections(config):
        for field in dataclasses.fields(section):
            if field.type in (bool, int, float, str, STRINGS):
                here = f"{path}.{field.name}" if path else field.name
                yield Leaf(here, section, field.name, field.type, field.metadata["doc"], field.metadata["holds"])
