"""Tables of facts and the grammar that the generator draws from (`tables/*.txt`, written for this project)."""

import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path(__file__).parent / "tables"
_SLOT = re.compile(r"\{(\w+)\}")


@functools.cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """Rows of `tables/<name>.txt`, whose first line names the columns, which `|` separates."""
    header, *lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(dict(zip(header.split("|"), line.split("|"), strict=True)) for line in lines)


@functools.cache
def grammar() -> dict[str, tuple[str, ...]]:
    """Symbol -> its alternatives, from `tables/grammar.txt`."""
    rules: dict[str, list[str]] = {}
    symbol = ""
    for line in (_FOLDER / "grammar.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            rules[symbol].append(line.strip())
        elif line and not line.startswith("#"):
            symbol = line
            rules[symbol] = []
    return {name: tuple(alternatives) for name, alternatives in rules.items()}


def texts() -> Iterator[str]:
    """All wording of the tables and of the grammar, without column names and slots."""
    for path in sorted(_FOLDER.glob("*.txt")):
        if path.stem != "grammar":
            for row in table(path.stem):
                yield from row.values()
    for alternatives in grammar().values():
        yield from (_SLOT.sub("", text) for text in alternatives)


def expand(template: str, rng: random.Random, bound: dict[str, str]) -> str:
    """Fill the slots of `template`: from `bound`, else by a draw from the grammar.

    The draw of a symbol in capitals is added to `bound`, so that it stays the same in the rest of the text.
    """

    def fill(match: re.Match[str]) -> str:
        symbol = match[1]
        if symbol in bound:
            return bound[symbol]
        text = expand(rng.choice(grammar()[symbol]), rng, bound)
        if symbol.isupper():
            bound[symbol] = text
        return text

    return _SLOT.sub(fill, template)
