"""Tokens per second of generation against keras-hub's `generate` and transformers', in one run; and what masks cost.

The model is one of `train_step`, with the same random weights for all, in float32 on the CPU, greedy but for `drawn`. Every
contestant lives in a process of its own; they take turns, so that whatever else the machine does falls on all alike. The
first turns compile and are not counted. A turn is one call, prompts included, and its tokens are the new ones of all rows.
Who uses one core where another uses two is told by the processor seconds.

    python -m benchmarks.decode [--size=gemma3_270m] [--scenario=eight --scenario=ragged] [--rounds=5] [--json=FILE]
"""

import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.turns import ON_CPU, Process
from gemma_keras import runtime

SCENARIOS = ["one", "eight", "ragged", "constrained", "drawn", "shared"]
MEASURED = flags.DEFINE_multi_enum("scenario", SCENARIOS[:4], SCENARIOS, "what is measured")
SIZE = flags.DEFINE_enum("size", "small", ["small", "gemma3_270m"], "model: 512 wide with 8 layers, or a shape by name")
ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each contestant that count")
WARM_UP = flags.DEFINE_integer("warm_up", 2, "turns of each contestant before these")
RAGGED_ROUNDS = flags.DEFINE_integer(
    "ragged_rounds", 2, "turns that count with ragged prompts, after one that does not"
)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "tokens of an answer")
ONLY = flags.DEFINE_list("only", [], "contestants; empty: those of the scenario")
DATA_ROOT = flags.DEFINE_string("data_root", "", "folder of corpora for the constraints' tokenizer; empty: drawn words")
CACHE = flags.DEFINE_string("cache", "", "folder that keeps the tokenizer; empty: one in the temporary folder")
JSON = flags.DEFINE_string("json", "", "file for all figures")

SEED, POST_NORMS = 0, 15.0
MASKS_SHARE = 0.2  # of the time of constrained decoding at most


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Prompts and who answers them; `figures` are (required, aimed at) by contestants whose fastest setting is compared."""

    title: str
    lengths: tuple[int, ...]
    contestants: tuple[str, ...]
    figures: dict[str, tuple[float | None, float | None]]
    ragged: bool = False
    shared: int = 0  # first tokens that are those of all prompts


_EVERYONE = ("ours", "keras_hub:32", "transformers:dynamic", "transformers:static")
SCENARIO = {
    "one": Scenario(
        "batch 1, prompt of 64 tokens", (64,), _EVERYONE, {"keras_hub": (1.1, None), "transformers": (1.1, None)}
    ),
    "eight": Scenario(
        "batch 8, prompts of 64 tokens", (64,) * 8, _EVERYONE, {"keras_hub": (2.0, 2.5), "transformers": (1.7, 2.0)}
    ),
    "ragged": Scenario(
        "batch 32, prompts of 16 to 512 tokens", tuple(np.random.default_rng(SEED).integers(16, 513, 32).tolist()),
        ("ours", "keras_hub:32", "keras_hub:8", "transformers:dynamic"),
        {"keras_hub:32": (3.0, 4.0), "keras_hub:8": (None, None), "transformers": (None, None)}, ragged=True,
    ),
    "constrained": Scenario(
        "batch 8, prompts of 64 tokens, answers under a JSON schema", (64,) * 8,
        ("ours:masked", "ours:stepwise", "ours:chunks"), {},
    ),
    "drawn": Scenario(
        "batch 8, prompts of 64 tokens, at temperature 0.7 and top-p 0.95", (64,) * 8, ("ours:drawn", "transformers:drawn"),
        {"transformers": (None, None)},
    ),
    "shared": Scenario(
        "batch 8, prompts of 1,056 tokens of which the first 1,024 are those of all", (1056,) * 8, ("ours:kept", "ours"),
        {"ours": (None, None)}, shared=1024,
    ),
}  # fmt: skip
OF_GEMMA3 = {"one": {"transformers": (1.0, 1.1)}, "eight": {"transformers": (1.3, 1.7)}}  # its figures


def scenario(name: str) -> Scenario:
    """The scenario as it is for the model's size: keras-hub's Gemma 3 takes no part."""
    chosen = SCENARIO[name]
    if SIZE.value == "small":
        return chosen
    figures = {f: wanted for f, wanted in (chosen.figures | OF_GEMMA3.get(name, {})).items() if "keras_hub" not in f}
    left = tuple(contestant for contestant in chosen.contestants if not contestant.startswith("keras_hub"))
    return dataclasses.replace(chosen, contestants=left, figures=figures)


class Contestant(Process):
    """A process that generates when it is asked to."""

    def __init__(self, name: str, folder: Path):
        super().__init__("benchmarks.decode_peers", name, folder, ON_CPU)
        self.turns: list[dict[str, Any]] = []
        self.tokens: list[list[int]] = []

    def take_turn(self, *, counts: bool) -> None:
        """Generates once; the figures are kept if the turn `counts`."""
        answer = self.ask({})
        self.tokens = answer.pop("tokens")
        self.turns += [answer] if counts else []

    def results(self) -> dict[str, Any]:
        """Figures of the turns that counted, and the medians."""
        new = sum(map(len, self.tokens))
        rates = [new / turn["seconds"] for turn in self.turns]
        return {
            "name": self.name, "new_tokens": new, "tokens_per_second": statistics.median(rates), "rates": rates,
            "seconds": [turn["seconds"] for turn in self.turns], "peak": max(turn["peak"] for turn in self.turns),
            "processor_seconds": [turn["processor_seconds"] for turn in self.turns], "tokens": self.tokens,
        }  # fmt: skip


def prepare(chosen: Scenario, folder: Path) -> None:
    """Writes prompts, weights and, for constraints, a tokenizer."""
    from benchmarks import decode_peers, workload

    architecture = workload.architecture_of(SIZE.value)
    rng = np.random.default_rng(SEED)
    prompts = [rng.integers(425, architecture.vocabulary_size, length).astype(np.int32) for length in chosen.lengths]
    for prompt in prompts:
        prompt[: chosen.shared] = prompts[0][: chosen.shared]
    rows = [workload.Row(prompt, np.zeros(len(prompt), bool)) for prompt in prompts]
    work = workload.Workload(rows, [], NEW_TOKENS.value, architecture, "float32")
    # Scales of 1 would let the last token's embedding outweigh all layers, so that tokens repeat.
    workload.save(work, folder, post_norms=POST_NORMS)
    if not chosen.figures:
        cache = Path(CACHE.value or Path(tempfile.gettempdir()) / "gemma_keras_benchmarks")
        cache.mkdir(parents=True, exist_ok=True)
        root = Path(DATA_ROOT.value) if DATA_ROOT.value else None
        model = workload.trained_tokenizer(root, architecture.vocabulary_size, cache)
        shutil.copy(model, folder / decode_peers.TOKENIZER)


def race(chosen: Scenario, folder: Path) -> list[dict[str, Any]]:
    """All contestants' turns, the order turned round every time."""
    warm_up, rounds = (1, RAGGED_ROUNDS.value) if chosen.ragged else (WARM_UP.value, ROUNDS.value)
    running: list[Contestant] = []
    try:
        for name in ONLY.value or chosen.contestants:
            running.append(Contestant(name, folder))
        for turn in range(warm_up + rounds):
            for contestant in running[:: 1 if turn % 2 else -1]:
                contestant.take_turn(counts=turn >= warm_up)
            print(f"{chosen.title}: turn {turn + 1} of {warm_up + rounds}", file=sys.stderr, flush=True)
    finally:
        for contestant in running:
            contestant.close()
    return [contestant.results() for contestant in running]


def report(chosen: Scenario, found: list[dict[str, Any]]) -> None:
    """Prints a scenario's tables."""
    print(f"\n## {chosen.title}, {NEW_TOKENS.value} new tokens\n\n| contestant | tokens/s, median (lowest to highest) "
          "| processor s a turn | peak MB | tokens as in the first line |\n|---|---:|---:|---:|---:|")  # fmt: skip
    for f in found:
        print(f"| {f['name']} | {f['tokens_per_second']:,.1f} ({min(f['rates']):,.1f} to {max(f['rates']):,.1f}) "
              f"| {statistics.median(f['processor_seconds']):.2f} | {f['peak'] / 1e6:,.0f} "
              f"| {equal_share(found[0]['tokens'], f['tokens']):.4f} |")  # fmt: skip
    if not chosen.figures:
        _masks(found)
        return
    print(
        "\n| against | faster by (lowest to highest) | required | aimed at | by processor s |\n|---|---:|---:|---:|---:|"
    )
    own = found[0]
    for family, wanted in chosen.figures.items() if own["name"].startswith("ours") else ():
        rivals = [f for f in found[1:] if f["name"].startswith(family)]
        if rivals:
            other = max(rivals, key=lambda f: f["tokens_per_second"])
            ratios, cores = list(_ratios(other, own, "seconds")), list(_ratios(other, own, "processor_seconds"))
            required, aimed = ("-" if figure is None else f"{figure}" for figure in wanted)
            print(f"| {other['name']} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
                  f"| {required} | {aimed} | {statistics.median(cores):.2f} |")  # fmt: skip
    _check(found)


def _ratios(slow: dict[str, Any], fast: dict[str, Any], figure: str) -> Iterator[float]:
    """Turn by turn, since both met the same state of the machine."""
    return (a / b for a, b in zip(slow[figure], fast[figure], strict=True))


def _masks(found: list[dict[str, Any]]) -> None:
    """The share of the time of constrained decoding that the same tokens without masks do not take."""
    by_name = {f["name"].partition(":")[2]: f for f in found}
    masked = by_name.pop("masked", None)
    if masked is None:
        return
    print(f"\nmasks ({masked['new_tokens']} tokens of {len(masked['tokens'])} answers), required at most "
          f"{MASKS_SHARE:.0%} of the time; by processor seconds in brackets")  # fmt: skip
    for name, other in by_name.items():
        shares = {
            kind: 1 - statistics.median(_ratios(other, masked, kind)) for kind in ("seconds", "processor_seconds")
        }
        what = "the same, one token at a time too" if name == "stepwise" else "free answers in chunks"
        print(f"- against {what}: {shares['seconds']:.1%} ({shares['processor_seconds']:.1%})")
        assert other["new_tokens"] == masked["new_tokens"], f"{other['new_tokens']} tokens, not {masked['new_tokens']}"


def equal_share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of places with the same token."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b)]
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def _check(found: list[dict[str, Any]]) -> None:
    """Everyone has all tokens, and the same first ones."""
    for f in found:
        assert all(len(row) == NEW_TOKENS.value for row in f["tokens"]), f"{f['name']} stopped early"
        if f["name"].endswith("drawn"):
            continue
        first, own = ([row[0] for row in tokens] for tokens in (f["tokens"], found[0]["tokens"]))
        assert first == own, f"{f['name']} begins with {first}, {found[0]['name']} with {own}"
    kinds = statistics.median(len(set(row)) for row in found[0]["tokens"])
    print(f"\nfirst tokens of greedy answers are equal; an answer has {kinds:.0f} different tokens (median)")


def main(argv: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    runtime.configure()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, float32, {SIZE.value}")
    figures = {}
    for name in MEASURED.value:
        one = scenario(name)
        with tempfile.TemporaryDirectory() as folder:
            prepare(one, Path(folder))
            figures[name] = race(one, Path(folder))
        report(one, figures[name])
        if JSON.value:
            Path(JSON.value).write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
