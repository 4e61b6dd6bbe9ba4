"""Generated poems in classical forms: lines of 2+3 or 2+2+3 characters that rhyme, after `typed_tables/verses.txt`.

Even lines end in one rhyme (level tone), the others but the first in an oblique tone; no character occurs twice in a
quatrain's or an octave's different lines. The order of tones within a line is not kept.
"""

import random

from gemma_keras.builtin.lists import lists, words

FORMS = {"五言绝句": (5, 4), "七言绝句": (7, 4), "五言律诗": (5, 8), "七言律诗": (7, 8)}
_WEIGHTS = (4, 4, 1, 1)
_ATTEMPTS = 50


def row(rng: random.Random) -> dict[str, str]:
    """{"context": title, "instruction": form, "response": poem, a couplet a line}."""
    form = rng.choices(tuple(FORMS), _WEIGHTS)[0]
    width, count = FORMS[form]
    season = rng.choice(words("verses", "season"))
    hour, written = rng.choice(lists("verses")["hour"])
    lines: list[str] | None = None
    while lines is None:
        lines = _lines(width, count, {season, hour}, rng)
    couplets = [f"{first}，{second}。" for first, second in zip(lines[::2], lines[1::2], strict=True)]
    title = season + written + rng.choice(words("verses", "scene"))
    return {"context": title, "instruction": form, "response": "\n".join(couplets)}


def _lines(width: int, count: int, tags: set[str], rng: random.Random) -> list[str] | None:
    """The lines of a poem, views before a turn and a close; None where the segments ran out."""
    rhyme = rng.choice(words("verses", "rhyme"))
    kinds = iter(rng.sample(words("verses", "class"), count - 2))
    lines: list[str] = []
    for i in range(count):
        rhymed = i % 2 == 1 or (i == 0 and width == 7)
        if i == count - 2:
            line = _whole("转", width, tags, lines, rng)
        elif i == count - 1:
            line = _whole(f"合{rhyme}", width, tags, lines, rng)
        else:
            line = _view(next(kinds), rhyme if rhymed else "仄", width, tags, lines, rng)
        if not line:
            return None
        lines.append(line)
    return lines


def _fitting(symbol: str, tags: set[str]) -> list[str]:
    """Segments of a symbol that belong to no season or time, or to these."""
    return [sides[0] for sides in lists("verses")[symbol] if set(sides[1:]) <= tags]


def _view(kind: str, end: str, width: int, tags: set[str], before: list[str], rng: random.Random) -> str:
    """What a thing does: (prefix,) subject and tail; "" where every draw repeats a character."""
    parts = [_fitting(symbol, tags) for symbol in ((f"{kind}前",) if width == 7 else ()) + (kind, f"{kind}{end}")]
    for _ in range(_ATTEMPTS):
        line = "".join(rng.choice(part) for part in parts)
        if _is_new(line, before):
            return line
    return ""


def _whole(symbol: str, width: int, tags: set[str], before: list[str], rng: random.Random) -> str:
    """A line written as a whole, whose first two characters a line of five leaves out; "" where none fits."""
    found = [line.replace("，", "")[7 - width :] for line in _fitting(symbol, tags)]
    fresh = [line for line in found if _is_new(line, before)]
    return rng.choice(fresh) if fresh else ""


def _is_new(line: str, before: list[str]) -> bool:
    return len(set(line)) == len(line) and not set(line) & set("".join(before))
