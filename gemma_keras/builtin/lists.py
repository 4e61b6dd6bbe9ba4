"""Word lists of the typed rows (`typed_tables/*.txt`), and templates of one or more sides filled from them.

A file holds symbols, each with its alternatives below it, indented; `|` parts the sides of an alternative, such as an
English and a Chinese wording. Sides name the same slots. They lie apart from `tables/`, on which the builtin tokenizer
is trained.
"""

import functools
import random
import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "typed_tables"
SLOT = re.compile(r"\{([a-z_]+)(\d?)\}")

Sides = tuple[str, ...]
Lists = Mapping[str, tuple[Sides, ...]]


@functools.cache
def lists(name: str) -> Lists:
    """Symbol -> its alternatives, of `typed_tables/<name>.txt`; lines that start with `#` are comments."""
    found: dict[str, list[Sides]] = {}
    symbol = ""
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            found[symbol].append(tuple(side.strip() for side in line.split("|")))
        elif line and not line.startswith("#"):
            symbol = line.strip()
            found.setdefault(symbol, [])
    return {key: tuple(alternatives) for key, alternatives in found.items()}


def words(name: str, symbol: str) -> list[str]:
    """The first sides of a symbol's alternatives."""
    return [sides[0] for sides in lists(name)[symbol]]


def fill(sides: Sides, rng: random.Random, table: Lists, bound: dict[str, Sides]) -> Sides:
    """Fill the slots of every side alike: from `bound`, else by a draw from `table`, which is added to `bound`.

    `{town}` and `{town2}` are different draws of one symbol. A slot that was drawn keeps its value in all that is
    filled with the same `bound`; sides of an alternative that has fewer than the template repeat its last one.
    """
    for slot, symbol in dict.fromkeys(match.group(0, 1) for side in sides for match in SLOT.finditer(side)):
        if slot not in bound:
            taken = [value for key, value in bound.items() if key.strip("{}0123456789") == symbol]
            bound[slot] = fill(rng.choice([value for value in table[symbol] if value not in taken]), rng, table, bound)

    def side(text: str, i: int) -> str:
        return SLOT.sub(lambda match: bound[match[0]][min(i, len(bound[match[0]]) - 1)], text)

    return tuple(side(text, i) for i, text in enumerate(sides))


def draw(name: str, symbol: str, rng: random.Random, bound: dict[str, Sides] | None = None) -> Sides:
    """One alternative of a symbol of `typed_tables/<name>.txt`, filled."""
    table = lists(name)
    return fill(rng.choice(table[symbol]), rng, table, {} if bound is None else bound)
