"""How the time to read a reply grows with its length: every reader, over shapes that make careless patterns backtrack.

Prints, for each shape, the slowest reader's seconds at 100,000 and at 200,000 characters and their largest ratio of any
reader (2 is linear). Processor seconds, the least of several runs; ratios are of readings above five milliseconds
only, 0 where there is none.

    python -m benchmarks.reply_readers [--length=100000] [--rounds=3]
"""

import time
from collections.abc import Callable

from absl import app, flags

from gemma_keras.solvers.replies.plain import normalize
from tests.solvers.shapes import READERS, SHAPES, reply

LENGTH = flags.DEFINE_integer("length", 100_000, "characters of the shorter replies")
ROUNDS = flags.DEFINE_integer("rounds", 3, "runs, of which the quickest counts")
NOTICEABLE = 5e-3


def main(_: list[str]) -> None:
    """Prints the table."""
    print(f"{'shape':24}{'reader':>16}{'seconds':>10}{'twice':>10}{'ratio':>7}")
    worst = 0.0
    for unit, end in SHAPES:
        short, long = (reply(unit, end, length) for length in (LENGTH.value, 2 * LENGTH.value))
        rows = [(name, _seconds(reader, short), _seconds(reader, long)) for name, reader in READERS.items()]
        name, once, twice = max(rows, key=lambda row: row[2])
        ratio = max((second / first for _, first, second in rows if first > NOTICEABLE), default=0.0)
        worst = max(worst, ratio)
        print(f"{unit + '…' + end!r:24}{name:>16}{once:10.4f}{twice:10.4f}{ratio:7.2f}", flush=True)
    print(f"largest ratio {worst:.2f} over {len(SHAPES)} shapes and {len(READERS)} readers")


def _seconds(reader: Callable[[str], object], text: str) -> float:
    times = []
    for _ in range(ROUNDS.value):
        normalize.cache_clear()
        start = time.process_time()
        reader(text)
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    app.run(main)
