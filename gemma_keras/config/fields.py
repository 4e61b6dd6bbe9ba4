"""How fields of a configuration are declared, and its leaves: one object per value that a flag, a check or `--help` refers to."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import GenericAlias
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Interval

from gemma_keras.config.errors import telling_of

STRINGS = tuple[str, ...]
SCALARS = (bool, int, float, str, STRINGS)  # what a leaf may be
# Names of things that later packages own, such as architectures, by the section and the field that may have them.
Names = Mapping[tuple[type, str], tuple[str, ...]]

# What the string or strings of a leaf are; `field` says it of each, and `values` how a flag is read.
NAMES = "names"
PATHS = "paths"
TEXTS = "texts"
ESCAPED_TEXTS = "escaped texts"


NOT_NEGATIVE = Interval(ge=0)
POSITIVE = Interval(gt=0)
COUNT = Interval(ge=1)
SHARE = Interval(ge=0, le=1)
BELOW_ONE = Interval(ge=0, lt=1)
DECAY = Interval(gt=0, lt=1)


def field(default: Any, doc: str, holds: str = NAMES, within: Interval | tuple[str, ...] = ()) -> Any:
    """A field of a section.

    Args:
        default: its value where none is given.
        doc: the sentence that `--help` shows for it.
        holds: what its strings are (`Leaf.holds`).
        within: the numbers, or the names, that it may have; every number has an interval.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "holds": holds, "within": within})


def section(kind: Any, *read: str, but: tuple[str, ...] = ()) -> Any:
    """A field that is a section.

    Args:
        kind: the dataclass.
        read: the fields of it that count, such as `path` or `corpora.name`; all without any. Only they are flags, are
            checked and written down; the others keep their defaults.
        but: those that do not, where all others do.
    """
    if but:
        read = tuple(entry.name for entry in dataclasses.fields(kind) if entry.name not in but)
    return dataclasses.field(default_factory=kind, metadata={"read": read})


@dataclasses.dataclass(slots=True)
class Leaf:
    """One scalar (or tuple of strings) of a configuration.

    Attributes:
        path: its place from the root on, e.g. `data.corpora.0.share`.
        section: the dataclass instance that holds it.
        name: its attribute in `section`.
        kind: bool, int, float, str or `tuple[str, ...]`.
        doc: the sentence of `field`.
        holds: what its strings are: NAMES (and whatever else is short), PATHS (`~` is the home folder), TEXTS (never split
            at commas) or ESCAPED_TEXTS (the same, and a flag may spell line ends).
        within: the numbers or names that it may have; names that are not listed are any.
    """

    path: str
    section: Any
    name: str
    kind: Any
    doc: str
    holds: str = NAMES
    within: Interval | tuple[str, ...] = ()

    @property
    def value(self) -> Any:
        return getattr(self.section, self.name)

    @value.setter
    def value(self, value: Any) -> None:
        setattr(self.section, self.name, value)

    def check(self, path: str) -> None:
        """Raises `UserError`, which calls the leaf `path`, for a value that it may not have."""
        with telling_of(path):
            _reader(self.kind, self.holds, self.within).validate_python(self.value)


@functools.cache  # every request of a server has its settings checked
def _reader(kind: Any, holds: str, within: Interval | tuple[str, ...]) -> pydantic.TypeAdapter[Any]:
    each: Any = {float: pydantic.FiniteFloat, STRINGS: str}.get(kind, kind)
    if isinstance(within, Interval):
        each = Annotated[each, within]
    elif holds in (TEXTS, ESCAPED_TEXTS):  # blanks and line ends may end an answer, but ask nothing
        each = Annotated[str, pydantic.StringConstraints(min_length=1, strip_whitespace=holds == TEXTS)]
    elif within:
        each = Literal[within]
    every: Any = GenericAlias(tuple, (each, ...)) if kind == STRINGS else each
    return pydantic.TypeAdapter(every)


def fields_read(kind: Any, read: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yields (field, what is read of it) for the fields of dataclass `kind` that are among `read`, or all for none."""
    for entry in dataclasses.fields(kind):
        below = [name.partition(".")[2] for name in read if name.partition(".")[0] == entry.name]
        if not read or below:
            yield entry, entry.metadata.get("read", ()) or (() if "" in below else tuple(below))


def sections(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, section) for `config` itself and every section below it, in the order of the fields."""
    yield path, config
    for entry in dataclasses.fields(config):
        for here, below in _nested(getattr(config, entry.name), _joined(path, entry.name)):
            yield from sections(below, here)


def leaves(config: Any, names: Names | None = None, path: str = "", read: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yields every leaf below `config` that is read; an entry of a tuple of sections is addressed by its index.

    Args:
        names: names that fields may have whose own declaration lists none, added to what is told of them.
    """
    for entry, below in fields_read(config, read):
        here = _joined(path, entry.name)
        if entry.type in SCALARS:
            leaf = Leaf(here, config, entry.name, entry.type, **entry.metadata)
            if known := (names or {}).get((type(config), entry.name)):
                leaf.within, leaf.doc = known, f"{leaf.doc} ({', '.join(known)})"
            yield leaf
        for place, nested in _nested(getattr(config, entry.name), here):
            yield from leaves(nested, names, place, below)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _nested(value: Any, path: str) -> list[tuple[str, Any]]:
    """The sections that the value of a field is or holds, with their paths."""
    if dataclasses.is_dataclass(value):
        return [(path, value)]
    entries = enumerate(value) if isinstance(value, tuple) else ()
    return [(f"{path}.{index}", entry) for index, entry in entries if dataclasses.is_dataclass(entry)]


def validate(config: Any, names: Names | None = None) -> None:
    """Checks every leaf by itself, and every section that has a method `check` by that.

    Raises:
        UserError: names the first field at fault, its value, what is allowed and what to do.
    """
    for leaf in leaves(config, names):
        leaf.check(f"config.{leaf.path}")
    for place, each in sections(config, "config"):
        if hasattr(each, "check"):
            each.check(place)
