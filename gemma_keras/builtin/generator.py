"""Volume for the builtin corpus: chat rows and plain text composed from tables and templates, by a seed.

The same arguments give the same text on every machine: draws come from `random.Random` alone, and nothing depends on
the order of sets or folders. Kinds of request that the held-out rows ask for are not generated.
"""

import random
from collections.abc import Iterator

from gemma_keras.builtin import documents, passages, phrases, sums

_SUMS_SHARE = 0.22  # of the chat rows


def chat_rows(count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows {"instruction", "input", "output"} that differ in (instruction, input).

    Raises ValueError when the templates cannot make so many different rows.
    """
    rng = random.Random(f"chat rows {seed}")
    weights = [weight for weight, _ in (*phrases.KINDS, *passages.KINDS)]
    makers = [make for _, make in (*phrases.KINDS, *passages.KINDS)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for _ in range(100 * count + 1000):
        if len(rows) >= count:
            return list(rows.values())
        make = rng.choice(sums.KINDS) if rng.random() < _SUMS_SHARE else rng.choices(makers, weights)[0]
        instruction, given, output = make(rng)
        rows.setdefault((instruction, given), {"instruction": instruction, "input": given, "output": output})
    raise ValueError(f"{count} different rows were asked for, but the templates make about {len(rows)}")


def text_lines(size: int, seed: int) -> Iterator[str]:
    """Different documents, one a line, until they hold `size` bytes of UTF-8."""
    rng = random.Random(f"documents {seed}")
    seen: set[str] = set()
    written = 0
    while written < size:
        line = documents.document(rng)
        if line not in seen:
            seen.add(line)
            written += len(line.encode()) + 1
            yield line


def articles(size: int, seed: int) -> Iterator[tuple[str, str]]:
    """Articles (title, body) until they hold `size` bytes of UTF-8."""
    rng = random.Random(f"articles {seed}")
    written = 0
    while written < size:
        title, body = documents.article(rng)
        written += len(f"{title}\n\n{body}\n".encode())
        yield title, body
