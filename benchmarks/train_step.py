"""Training throughput and peak memory against transformers + PEFT's AdaLoRA and keras-hub's `enable_lora`, in one run.

Every contestant lives in a process of its own and takes the same optimizer steps on the same rows, so with the same useful
(non-padding) tokens and the same tokens with loss; ours packs the rows, the others pad them. They take turns step by step, so
that whatever else the machine does falls on all alike. The first turns compile and are not counted.

    python -m benchmarks.train_step [--data_root=CORPORA] [--rounds=5] [--json=FILE]
    python -m benchmarks.train_step --platform=gpu --size=2b --dtype=bfloat16 --turn=4 --packed_rows=16   (with a GPU)
"""

import json
import math
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.turns import ON_CPU, Process
from gemma_keras import runtime

DATA_ROOT = flags.DEFINE_string("data_root", "", "folder of corpora with gemmalm_chinese; empty: rows of drawn lengths")
ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each contestant that count")
WARM_UP = flags.DEFINE_integer("warm_up", 2, "turns of each contestant before these")
TURN = flags.DEFINE_integer("turn", 1, "optimizer steps in a turn")
PACKED_ROWS = flags.DEFINE_integer("packed_rows", 8, "packed rows of 512 tokens that a step's rows make")
LENGTH = flags.DEFINE_integer("length", 512, "tokens of a packed row, and of a padded one")
OWN_ROWS = flags.DEFINE_list("own_rows", ["4"], "packed rows that ours takes at a time (0: all); the fastest counts")
PEER_ROWS = flags.DEFINE_list("peer_rows", ["8"], "rows that the others take at a time (0: all); the fastest counts")
ONLY = flags.DEFINE_list("only", ["ours", "peft:padded", "peft:dynamic", "keras_hub", "matmul"], "contestants")
PLATFORM = flags.DEFINE_enum("platform", "cpu", ["cpu", "gpu"], "where everything runs")
SIZE = flags.DEFINE_enum(
    "size", "small", ["small", "2b", "gemma3_270m"], "model: 512 wide with 8 layers, or a shape, 2b that of Gemma 2"
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of frozen weights and of matmuls")
JSON = flags.DEFINE_string("json", "", "file for all figures")
CACHE = flags.DEFINE_string("cache", "", "folder that keeps the tokenizer; empty: one in the temporary folder")

REQUIRED = {"peft:padded": 4.5, "peft:dynamic": 1.8, "keras_hub": 4.2}
AIMED = {"peft:padded": 6.0, "peft:dynamic": 2.4, "keras_hub": 5.7}
MEMORY = 0.7
OF_GEMMA3 = {"peft:dynamic": (2.0, 0.6)}  # speed and memory that are required of gemma3_270m


class Contestant(Process):
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, folder: Path):
        super().__init__("benchmarks.contestants", name, folder, _environment())
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []  # of all cores, per turn
        self.losses: list[float] = []
        self.peak: dict[str, int] = {}

    def take_turn(self, first: int, count: int, *, counts: bool) -> None:
        """Runs these steps; their times are kept if they `counts`."""
        answer = self.ask({"first": first, "count": count})
        self.losses += [loss for _, loss in answer["steps"]]
        self.peak = answer["peak"]
        if counts:
            self.seconds += [seconds for seconds, _ in answer["steps"]]
            self.processor_seconds.append(answer["processor_seconds"])


def _environment() -> dict[str, str]:
    # All share one GPU, so nobody may take its memory beforehand.
    shared = {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return ON_CPU if PLATFORM.value == "cpu" else shared


def contestants() -> list[str]:
    """Full names, those of others with their rows at a time."""
    sizes = {"ours": OWN_ROWS.value, "matmul": []} | dict.fromkeys(REQUIRED, PEER_ROWS.value)
    return [f"{name}:{rows}" if rows else name for name in ONLY.value for rows in sizes[name] or [""]]


def prepare(folder: Path) -> tuple[Any, str]:
    """Writes the workload; returns it with a sentence on its rows."""
    from benchmarks import workload

    architecture = workload.architecture_of(SIZE.value)
    if DATA_ROOT.value:
        cache = Path(CACHE.value or Path(tempfile.gettempdir()) / "gemma_keras_benchmarks")
        cache.mkdir(parents=True, exist_ok=True)
        rows, note = workload.real_rows(Path(DATA_ROOT.value), architecture.vocabulary_size, cache, LENGTH.value)
    else:
        rows, note = workload.drawn_rows(1000, architecture.vocabulary_size, LENGTH.value)
    count = (ROUNDS.value + WARM_UP.value) * TURN.value
    steps = workload.plan_steps(rows, LENGTH.value, PACKED_ROWS.value, count)
    work = workload.Workload(rows, steps, LENGTH.value, architecture, DTYPE.value)
    workload.save(work, folder)
    return work, note


def race(names: list[str], folder: Path) -> list[Contestant]:
    """All contestants' steps, by turns; the order is turned round every time."""
    running: list[Contestant] = []
    try:
        for name in names:
            running.append(Contestant(name, folder))
        for turn in range(WARM_UP.value + ROUNDS.value):
            for contestant in running[:: 1 if turn % 2 else -1]:
                contestant.take_turn(turn * TURN.value, TURN.value, counts=turn >= WARM_UP.value)
            print(f"turn {turn + 1} of {WARM_UP.value + ROUNDS.value}", file=sys.stderr, flush=True)
    finally:
        for contestant in running:
            contestant.close()
    return running


def results(work: Any, raced: list[Contestant]) -> list[dict[str, Any]]:
    """Per contestant the median of useful tokens per second over its steps, and its peaks."""
    skipped = WARM_UP.value * TURN.value
    found = []
    for contestant in raced:
        rates = [work.useful_tokens(skipped + n) / seconds for n, seconds in enumerate(contestant.seconds)]
        found.append({
            "name": contestant.name, "tokens_per_second": statistics.median(rates), "rates": rates,
            "seconds": contestant.seconds, "peak": contestant.peak, "losses": contestant.losses,
            "processor_seconds_per_step": statistics.median(contestant.processor_seconds) / TURN.value,
        })  # fmt: skip
    return found


def fastest(found: list[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """The fastest setting of one family of contestants."""
    return max((f for f in found if f["name"].startswith(family)), key=lambda f: f["tokens_per_second"], default=None)


def report(work: Any, note: str, found: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    rows, steps = len(work.of_step(0)), len(work.steps)
    useful = statistics.mean(work.useful_tokens(step) for step in range(steps))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {PLATFORM.value}, {work.dtype}; "
          f"{work.architecture.name}, {work.architecture.parameter_count:,} weights, T={work.sequence_length}\n{note}\n"
          f"a step: {rows} rows, {useful:,.0f} useful tokens, packed into {PACKED_ROWS.value} rows; "
          f"{ROUNDS.value * TURN.value} steps after {WARM_UP.value * TURN.value} that are not counted\n")  # fmt: skip
    machine = fastest(found, "matmul")
    found = [f for f in found if f is not machine]
    peak = max(found[0]["peak"], key=lambda where: where == "device")
    print(f"| contestant | useful tokens/s, median (lowest to highest) | processor s a step | peak MB ({peak}) | first loss |\n"
          "|---|---:|---:|---:|---:|")  # fmt: skip
    for f in found:
        low, high = min(f["rates"]), max(f["rates"])
        print(f"| {f['name']} | {f['tokens_per_second']:,.0f} ({low:,.0f} to {high:,.0f}) "
              f"| {f['processor_seconds_per_step']:.2f} | {f['peak'][peak] / 1e6:,.0f} | {f['losses'][0]:.4f} |")  # fmt: skip
    own = fastest(found, "ours")
    if own:
        _comparison(own, found, peak)
    if own and machine:
        _utilisation(work, own, machine)
    _check_losses(work, found)


def _comparison(own: dict[str, Any], found: list[dict[str, Any]], peak: str) -> None:
    print("\n| against | faster by | required | aimed at | memory | required |\n|---|---:|---:|---:|---:|---:|")
    for family in REQUIRED:
        other = fastest(found, family)
        required, aimed, memory = str(REQUIRED[family]), str(AIMED[family]), str(MEMORY)
        if SIZE.value == "gemma3_270m":
            required, memory = map(str, OF_GEMMA3.get(family, ("-", "-")))
            aimed = "-"
        if other:
            ratio = statistics.median(a / b for a, b in zip(own["rates"], other["rates"], strict=True))
            print(f"| {other['name']} | {ratio:.2f} | {required} | {aimed} "
                  f"| {own['peak'][peak] / other['peak'][peak]:.2f} | {memory} |")  # fmt: skip


def _utilisation(work: Any, own: dict[str, Any], machine: dict[str, Any]) -> None:
    """Useful matmul operations a second against those of plain products."""
    from benchmarks.contestants import MATMULS, matmul_size

    a = work.architecture
    rows = [row for step in range(len(work.steps)) for row in work.of_step(step)]
    share = sum(int(row.answer[1:].sum()) for row in rows) / sum(len(row.tokens) for row in rows)
    blocks = a.parameter_count - a.vocabulary_size * a.hidden_dim
    # Frozen weights take part in the forward pass and in the gradient of activations: 2 + 2 operations each.
    flops = 4 * blocks + 4 * share * a.vocabulary_size * a.hidden_dim
    peak = MATMULS * 2 * matmul_size(PLATFORM.value) ** 3 / statistics.median(machine["seconds"])
    print(f"\n{flops * own['tokens_per_second'] / peak:.0%} of the measured matmul peak of {peak / 1e9:,.0f} GFLOP/s, counting "
          f"{flops / 1e6:,.0f} MFLOP a useful token: matrices of the blocks, and the head where there is loss, forward and "
          "for the gradient of activations; attention and adapters are not counted")  # fmt: skip


def _check_losses(work: Any, found: list[dict[str, Any]]) -> None:
    uniform = math.log(work.architecture.vocabulary_size)
    for f in found:
        good = all(math.isfinite(loss) and abs(loss - uniform) < 2 for loss in f["losses"])
        assert good, f"{f['name']}: losses {f['losses']} are not near ln V = {uniform:.2f}"
    first = [f["losses"][0] for f in found]
    print(f"\nlosses are finite and near ln V = {uniform:.2f}; those of the first step, of equal weights and rows, differ by "
          f"{max(first) - min(first):.1e}")  # fmt: skip


def main(argv: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, which only prepares
    runtime.configure()
    with tempfile.TemporaryDirectory() as folder:
        work, note = prepare(Path(folder))
        found = results(work, race(contestants(), Path(folder)))
    report(work, note, found)
    if JSON.value:
        settings = {
            name: flags.FLAGS[name].value for name in ("platform", "size", "dtype", "packed_rows", "length", "turn")
        }
        figures = {"rows": note, **settings, "contestants": found}
        Path(JSON.value).write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
