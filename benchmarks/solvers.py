"""What it saves to solve many questions side by side; and the calls, tokens and seconds of every solver.

A model with random weights says nothing that a solver could go by. So it answers every call, at its full cost, but where a
solver reads a plan, a score or a verdict, the text of a fixed script takes the place of its words. Scores go round 0.1,
0.5 and 0.9, so that a third of the questions goes to each of the solvers that `adaptive` chooses among; every other
verdict asks for changes. Kept prefixes are dropped before every measurement; compiling is not counted.

What a batch saves is reading the weights for every row, so the shape matters: by default the layers are those of Gemma 2 2B, two
of them, one with a window. In the model of train_step (`--size=small --layers=0`) the keys and values of 16 rows of 512 tokens
come to two thirds of the weights, many times the share that they have in Gemma 2. The tokenizer has 32,000 pieces if it can be
trained, on the corpora below `--data_root`; the builtin one, which is used without them, has 2,560, about one a character.

    python -m benchmarks.solvers [--data_root=CORPORA] [--questions=16] [--new_tokens=64] [--rounds=1] [--solvers=all] \\
        [--size=2b] [--layers=2] [--json=FILE]
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from gemma_keras import runtime

DATA_ROOT = flags.DEFINE_string("data_root", "", "folder of corpora for the tokenizer; empty: the builtin one")
QUESTIONS = flags.DEFINE_integer("questions", 16, "questions that are solved")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "tokens of an answer at most")
ROUNDS = flags.DEFINE_integer("rounds", 1, "measurements of each way, by turns", lower_bound=1)
SOLVERS = flags.DEFINE_list("solvers", ["all"], "whose calls, tokens and seconds are shown, besides the comparison")
SIZE = flags.DEFINE_string(
    "size", "2b", "2b, 9b or another of the package's shapes, or small (the model of train_step)"
)
LAYERS = flags.DEFINE_integer("layers", 2, "of its layers; 0: all", lower_bound=0)
JSON = flags.DEFINE_string("json", "", "file for all figures")

MOST_SHARE = 0.3
PLAN = "1. 第一步要算什么？\n2. 第二步要算什么？\n3. 最后要算什么？"
VERDICTS = (
    "准确性：通过\n完整性：不通过，没有写单位\n逻辑性：通过\n建议：写上单位",
    "准确性：通过\n完整性：通过\n逻辑性：通过\n建议：无",
)


class Steered:
    """A model that answers every call, of whose answers some are replaced; counts what it is asked."""

    def __init__(self, model, prompts):
        self.model = model
        self.calls = self.rounds = 0
        self._openings = {
            _opening(prompts, "plan"): lambda text: PLAN,
            _opening(prompts, "complexity"): lambda text: ("0.1", "0.5", "0.9")[_number(text) % 3],
            _opening(prompts, "judge"): lambda text: VERDICTS[len(text) % 2],
        }

    def answer(self, asks: Sequence[Any]) -> list[Any]:
        from gemma_keras.inference.language_model import Reply

        self.calls += len(asks)
        self.rounds += 1
        replies = self.model.answer(asks)
        return [
            Reply(self._said(ask, reply.text), reply.prompt_tokens, reply.new_tokens, reply.ended)
            for ask, reply in zip(asks, replies)
        ]

    def _said(self, ask: Any, text: str) -> str:
        for opening, script in self._openings.items():
            if ask.messages[0]["content"].startswith(opening):
                return script(ask.messages[-1]["content"])
        return text


def _opening(prompts: Any, name: str) -> str:
    """What a prompt's first message says before its first placeholder."""
    return getattr(prompts, name)[0]["content"].split("{question}")[0]


def _number(text: str) -> int:
    """The number of a question, from any text that shows it."""
    return int(text.split("第 ")[1].split(" ")[0])


def build_model():
    """The engine on random weights of a named shape."""
    from benchmarks.workload import architecture_of, trained_tokenizer
    from gemma_keras import builtin
    from gemma_keras.inference.chat import ChatModel
    from gemma_keras.models.forward import build_backbone, initial_params
    from gemma_keras.text.templates import TEMPLATES
    from gemma_keras.text.tokenizer import Tokenizer

    architecture, tokenizer = architecture_of(SIZE.value), Tokenizer(builtin.TOKENIZER)
    layers = min(LAYERS.value, architecture.num_layers) or architecture.num_layers
    if DATA_ROOT.value:
        with tempfile.TemporaryDirectory() as folder:
            pieces = min(architecture.vocabulary_size, 32_000)
            tokenizer = Tokenizer(trained_tokenizer(Path(DATA_ROOT.value), pieces, Path(folder)))
    architecture = architecture.replace(num_layers=layers, vocabulary_size=tokenizer.vocabulary_size)
    backbone = build_backbone(architecture, "float32")
    params = initial_params(backbone, seed=0)
    return ChatModel(tokenizer=tokenizer, backbone=backbone, params=params, template=TEMPLATES["gemmalm_zh"])


def measure(name: str, model, settings, batches: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Seconds, calls and rounds of batches of questions, one batch after the other, and their traces."""
    from gemma_keras.solvers.registry import make_solver

    steered = Steered(model, settings.prompts)
    solver = make_solver(name, steered, settings)
    model.engine.reset()
    start = time.perf_counter()
    traces = list(itertools.chain.from_iterable(solver.solve(batch) for batch in batches))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "calls": steered.calls, "rounds": steered.rounds, "traces": traces}


def compare(model, settings, questions: list[str]) -> dict[str, Any]:
    """`adaptive` on all questions in one batch against one by one."""
    ways: dict[str, list[list[str]]] = {"one by one": [[question] for question in questions], "one batch": [questions]}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    figures: dict[str, Any] = {}
    for number in range(ROUNDS.value + 1):
        for way, batches in ways.items():
            measured = measure("adaptive", model, settings, batches)
            seconds[way] += [measured["seconds"]] if number else []  # the first time compiles
            tokens = sum(trace.cost.new_tokens for trace in measured["traces"])
            figures[way] = {"calls": measured["calls"], "rounds": measured["rounds"], "new_tokens": tokens}
    for way, measurements in seconds.items():
        figures[way] |= {"seconds": statistics.median(measurements), "all_seconds": measurements}
    shares = [batch / single for single, batch in zip(seconds["one by one"], seconds["one batch"])]
    return {**figures, "share": statistics.median(shares), "shares": shares}


def main(argv: list[str]) -> None:
    runtime.configure()
    from gemma_keras.config.sections import SamplingConfig, SolverConfig
    from gemma_keras.solvers.analysis import analyze, format_costs
    from gemma_keras.solvers.registry import NAMES
    from gemma_keras.solvers.steps import Settings

    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS.value, repetition_penalty=1.0)
    settings = Settings(solver=SolverConfig(samples=3), sampling=sampling)
    questions = [
        f"这是第 {number} 题：一共有 {3 * number + 20} 本书，借走 6 本，还剩多少本？"
        for number in range(QUESTIONS.value)
    ]
    model = build_model()
    found = compare(model, settings, questions)
    print(
        f"{len(questions)} questions, {NEW_TOKENS.value} new tokens a call at most, {SIZE.value} with "
        f"{model.backbone.architecture.num_layers} layers, "
        f"{model.tokenizer.vocabulary_size:,} pieces, {runtime.device_summary()}"
    )
    print("| adaptive | seconds | calls | batches | new tokens |\n|---|---|---|---|---|")
    for way in ("one by one", "one batch"):
        row = found[way]
        print(f"| {way} | {row['seconds']:.1f} | {row['calls']} | {row['rounds']} | {row['new_tokens']:,} |")
    print(f"one batch takes {found['share']:.3f} of one by one (at most {MOST_SHARE} is wanted)\n")
    traces = []
    for name in NAMES if SOLVERS.value == ["all"] else SOLVERS.value:
        measure(name, model, settings, [questions])
        traces += measure(name, model, settings, [questions])["traces"]
    analysis = analyze(traces)
    print(f"every solver on the {len(questions)} questions in one batch:\n{format_costs(analysis)}")
    if JSON.value:
        costs = {name: {"questions": count, "tokens": cost.tokens, "calls": cost.calls, "seconds": cost.seconds}
                 for name, (count, cost) in analysis.routes.items()}  # fmt: skip
        Path(JSON.value).write_text(json.dumps(found | {"solvers": costs}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
