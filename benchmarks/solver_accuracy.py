"""Accuracy, tokens and seconds of every solver on real questions: C-Eval (with options) and MathGLM's word problems.

Questions are drawn with a seed from C-Eval's `val` and from MathGLM_MWP/test.jsonl, the same ones for every solver; letters,
scores and plans are held to their form. Answers count as `scripts.solve` counts them, with Wilson's intervals. Seconds
include compiling where a shape comes for the first time. Traces go to the workdir, a page a solver.

    python -m benchmarks.solver_accuracy --data_root=CORPORA --weights=MODEL --workdir=DIR [--questions=48] [--new_tokens=96] \\
        [--set=ceval --set=mathglm] [--solvers=all]
"""

import csv
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from gemma_keras import runtime

DATA_ROOT = flags.DEFINE_string("data_root", None, "folder of corpora", required=True)
WEIGHTS = flags.DEFINE_string("weights", None, "folder of the model", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for traces and figures", required=True)
QUESTIONS = flags.DEFINE_integer("questions", 48, "questions of each set")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 96, "tokens of an answer at most")
SETS = flags.DEFINE_multi_enum("set", ["ceval", "mathglm"], ["ceval", "mathglm"], "which questions")
SOLVERS = flags.DEFINE_list("solvers", ["all"], "whose figures are wanted")
SEED = 0


def ceval(root: Path, count: int):
    """Questions of all subjects, each with its letter."""
    from gemma_keras.solvers.question_rows import Asked
    from gemma_keras.solvers.trace import Question

    found = []
    for path in sorted((root / "ceval" / "val").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                options = tuple(row[letter] for letter in "ABCD")
                found.append(Asked(Question(row["question"], options, f"{path.stem} {row['id']}"), row["answer"]))
    return random.Random(SEED).sample(found, count)


def word_problems(root: Path, count: int):
    """Problems, each with its equation."""
    from gemma_keras.solvers.question_rows import Asked
    from gemma_keras.solvers.trace import Question

    path = root / "mathglm" / "MathGLM_MWP" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = random.Random(SEED).sample(range(len(rows)), count)
    return [Asked(Question(rows[n]["question"], (), str(n)), rows[n]["answer"]) for n in chosen]


def measure(name: str, model, settings, asked: Sequence, folder: Path) -> str:
    """A solver's line of the table; its traces go to `folder`."""
    from gemma_keras.config.serialization import to_dict
    from gemma_keras.solvers.analysis import analyze, bound_share, is_right
    from gemma_keras.solvers.registry import make_solver
    from gemma_keras.solvers.rendering import render

    start = time.perf_counter()
    traces = make_solver(name, model, settings).solve([one.question for one in asked])
    seconds = time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    page = "\n".join(render(trace, settings.solver.language) for trace in traces)
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    lines = (json.dumps(to_dict(trace), ensure_ascii=False) for trace in traces)
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    right = sum(is_right(trace, one.expected) for trace, one in zip(traces, asked, strict=True))
    low, high = bound_share(right, len(asked))
    analysis = analyze(traces)
    count, cost = len(asked), analysis.cost
    return (
        f"| {name} | {right} of {count} | {right / count:.1%} ({low:.1%} to {high:.1%}) | {analysis.answered} "
        f"| {cost.calls / count:.1f} | {cost.tokens / count:,.0f} | {seconds / count:.2f} |"
    )


def main(argv: list[str]) -> None:
    runtime.configure()
    from gemma_keras.config.sections import ModelConfig, SamplingConfig, SolverConfig
    from gemma_keras.config.stages import ChatConfig
    from gemma_keras.solvers.prompts import load_prompts
    from gemma_keras.solvers.registry import NAMES
    from gemma_keras.solvers.steps import Settings
    from gemma_keras.stages.running.assets import load_chat_model

    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS.value, temperature=0.7, top_p=0.95, repetition_penalty=1.0)
    solver = SolverConfig(constrained="list", samples=3)
    config = ChatConfig(model=ModelConfig(weights=WEIGHTS.value, dtype="float32"), sampling=sampling)
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    model = load_chat_model(config, workdir)
    settings = Settings(solver=solver, sampling=sampling, prompts=load_prompts(solver.language, solver.prompts))
    names = NAMES if SOLVERS.value == ["all"] else SOLVERS.value
    print(f"{WEIGHTS.value}, {NEW_TOKENS.value} new tokens a call at most, {runtime.device_summary()}")
    sets = {"ceval": ("C-Eval val", ceval), "mathglm": ("MathGLM word problems", word_problems)}
    for title, sample in (sets[name] for name in SETS.value):
        asked = sample(Path(DATA_ROOT.value), QUESTIONS.value)
        print(f"\n{title}, {len(asked)} questions\n\n| solver | right | share (95 % interval) | answered | calls each "
              "| tokens each | seconds each |\n|---|---|---|---:|---:|---:|---:|")  # fmt: skip
        for name in names:
            print(measure(name, model, settings, asked, workdir / sample.__name__), flush=True)


if __name__ == "__main__":
    app.run(main)
