"""Questions in, answers and traces out: `answers.jsonl`, `traces.jsonl`, `traces.md`, `prompts.json`, `result.json`."""

import dataclasses
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from gemma_keras.config.errors import UserError, require
from gemma_keras.config.serialization import from_json, to_dict
from gemma_keras.config.stages import SolveConfig
from gemma_keras.config.writing import write_whole
from gemma_keras.data.progress import print_progress
from gemma_keras.inference.language_model import Ask, LanguageModel, Reply
from gemma_keras.models.loading import weight_files
from gemma_keras.solvers.analysis import Analysis, analyze, bound_share, format_costs, format_verification, is_right
from gemma_keras.solvers.prompts import load_prompts
from gemma_keras.solvers.question_file import parse_questions, read_questions
from gemma_keras.solvers.question_rows import Asked, replace_surrogates
from gemma_keras.solvers.registry import make_solver
from gemma_keras.solvers.rendering import render
from gemma_keras.solvers.steps import Settings
from gemma_keras.solvers.trace import Question, Trace
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import load_chat_model, resolve_template
from gemma_keras.text.templates import Template

# What may change between a run and the one that goes on with it: the answers stay the same.
_FREE = ("input", "show", "batch_questions", "prompts")  # prompts and weights are compared by what is in their files
_FREE_MODEL = ("weights", "attention")  # there is one kernel for inference


def run(config: SolveConfig, workdir: Path) -> dict:
    """Solves the questions of `config.questions`, `solver.input` or standard input with `model.weights`.

    Each question's trace and answer are written as soon as they are there; the same command again goes on with the
    questions that are missing.

    Raises:
        UserError: a mistake in the configuration or the questions, a workdir of other questions or settings, or not one
            question that could be answered.
    """
    prompts = load_prompts(config.solver.language, config.solver.prompts)
    settings = Settings(solver=config.solver, sampling=config.sampling, prompts=prompts)
    asked = _questions(config)
    files.claim(workdir, to_dict(config))
    ledger = _Ledger(workdir, asked, config.solver.language)
    files.check_inputs(workdir, _inputs(config, settings), resuming=bool(ledger.traces))
    files.record(workdir, to_dict(config))  # after all checks: a refused command leaves that of the run in place
    write_whole(workdir / "prompts.json", (prompts.to_json() + "\n").encode())
    left = [number for number in range(len(asked)) if number not in ledger.traces]
    if len(left) < len(asked):
        print_progress(f"{len(asked) - len(left)} of {len(asked)} questions are answered in {workdir} already")
    if left:
        model = _Watched(load_chat_model(config, workdir), ledger)
        solver = make_solver(config.solver.name, model, settings)
        ledger.rewrite()  # without a line that was cut off, even where it is the only one
        try:
            solver.solve(
                [asked[number].question for number in left],
                lambda index, trace: _done(ledger, left[index], trace, config),
            )
        except KeyboardInterrupt:
            print_progress(f"{len(ledger.traces)} of {len(asked)} questions are answered in {workdir}")
            raise
    return _finish(config, workdir, ledger)


def _done(ledger: "_Ledger", number: int, trace: Trace, config: SolveConfig) -> None:
    ledger.add(number, trace)
    if config.solver.show == "trace":
        print(render(trace, config.solver.language), flush=True)
    elif config.solver.show == "answer":
        print(f"> {trace.question.text}\n{trace.answer or f'[{trace.failure or trace.stopped}]'}\n", flush=True)


def _finish(config: SolveConfig, workdir: Path, ledger: "_Ledger") -> dict:
    """Puts the files into the order of the questions, writes and prints the summary."""
    traces = ledger.sort()
    analysis = analyze(traces)
    result: dict[str, Any] = {"solver": config.solver.name, **_summary(analysis), **_accuracy(traces, ledger.asked)}
    files.write_json(workdir / "result.json", result)
    print(format_costs(analysis))
    if analysis.verification.checks:
        print(format_verification(analysis.verification))
    if analysis.failed or analysis.stopped:
        print(f"not finished: {analysis.failed} failed, {analysis.stopped} stopped at the end of a budget")
    if "right" in result:
        low, high = result["right_interval"]
        share = f"{result['right'] / result['known']:.1%}; 95 % interval {low:.1%} to {high:.1%}"
        print(f"right: {result['right']} of {result['known']} ({share})")
    if not analysis.answered:
        why = next((trace.failure for trace in traces if trace.failure), "the budget ended before the first answer")
        raise UserError(
            f"none of the {len(traces)} questions has an answer: {why.rstrip('.')}. Change what is at fault, and give "
            "another --workdir."
        )
    return result


def _summary(analysis: Analysis) -> dict[str, Any]:
    values = dataclasses.asdict(analysis)
    values["routes"] = {name: {"questions": count, **cost} for name, (count, cost) in values["routes"].items()}
    return values


def _accuracy(traces: Sequence[Trace], asked: Sequence[Asked]) -> dict[str, Any]:
    """How many of the questions whose answer is known are right; empty where none is."""
    known = [(trace, one.expected) for trace, one in zip(traces, asked) if one.expected]
    if not known:
        return {}
    right = sum(is_right(trace, expected) for trace, expected in known)
    return {"known": len(known), "right": right, "right_interval": list(bound_share(right, len(known)))}


def _inputs(config: SolveConfig, settings: Settings) -> dict[str, Any]:
    """What the answers depend on besides the questions."""
    model = {name: value for name, value in to_dict(config.model).items() if name not in _FREE_MODEL}
    kept = {"inference.weights": config.inference.weights, "inference.cache": config.inference.cache}
    folder, tokenizer = Path(config.model.weights), Path(config.tokenizer.path)
    weights = weight_files(folder) if config.model.weights else ()
    tokenizers = [tokenizer] if config.tokenizer.path else (folder / "assets" / "tokenizer").glob("*")  # of a preset
    return {
        "solver settings": {name: value for name, value in to_dict(config.solver).items() if name not in _FREE},
        "sampling settings": to_dict(config.sampling),
        "prompts": settings.prompts.to_json(),
        "model settings": model | kept | {"data.template": _template_name(config)},
        "weights": files.fingerprints(weights),
        "tokenizer files": files.fingerprints(tokenizers),
    }


def _template_name(config: SolveConfig) -> str:
    """Of the folder's own one the text is among the weights' files."""
    template = resolve_template(config, lambda line: None)
    return template.name if isinstance(template, Template) else "foreign"


def _questions(config: SolveConfig) -> list[Asked]:
    """From the configuration, a file or standard input."""
    if config.questions:
        require(
            not config.solver.input, "both config.questions and config.solver.input are given: drop one of the two."
        )
        for number, question in enumerate(config.questions, 1):
            require(question.strip() != "", f"question {number} is empty; give it a text.")
        return [Asked(Question(replace_surrogates(question))) for question in config.questions]
    if config.solver.input:
        return read_questions(config.solver.input)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text, such as a paste from elsewhere
    if sys.stdin.isatty():
        print_progress("Type one question a line; the end of input (Ctrl-D) begins.")
    return parse_questions(sys.stdin.read(), "standard input")


@dataclasses.dataclass(slots=True)
class _Line:
    """One of `traces.jsonl`."""

    number: Annotated[int, pydantic.Field(ge=0)]
    trace: Trace


class _Ledger:
    """The traces of a workdir by the numbers of their questions, and the files that hold them."""

    def __init__(self, workdir: Path, asked: Sequence[Asked], language: str):
        self.asked, self.traces = asked, dict[int, Trace]()
        self._workdir, self._language = workdir, language
        self._files = [files.JsonLines(workdir / name) for name in ("traces.jsonl", "answers.jsonl")]
        self._read()

    def _read(self) -> None:
        """Takes over what an earlier run wrote; a line that was cut off by an interruption counts for nothing."""
        path = self._files[0].path
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line_number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                row = from_json(line, _Line, "line")
            except UserError as error:
                raise UserError(
                    f"line {line_number} of {path} is damaged ({error}); delete it, or give another --workdir."
                ) from error
            self._check_same(row.number, row.trace)
            self.traces[row.number] = row.trace

    def _check_same(self, number: int, trace: Trace) -> None:
        if number >= len(self.asked) or self.asked[number].question != trace.question:
            raise UserError(
                f"--workdir={self._workdir} holds the answer to {trace.question.text[:40]!r} as question {number + 1}, which "
                "is another one now; give the same questions (more may follow them), or another --workdir."
            )

    def add(self, number: int, trace: Trace) -> None:
        """Writes one question's lines."""
        self.traces[number] = trace
        for file, row in zip(self._files, self._rows(number)):
            file.append(row)

    def sort(self) -> list[Trace]:
        """Writes everything anew, in the order of the questions, the page among it; returns the traces in that order."""
        self.rewrite()
        traces = [self.traces[number] for number in sorted(self.traces)]
        page = "\n".join(render(trace, self._language) for trace in traces)
        write_whole(self._workdir / "traces.md", page.encode())
        return traces

    def rewrite(self) -> None:
        """Writes the lines of all traces anew, in the order of the questions."""
        rows = [self._rows(number) for number in sorted(self.traces)]
        for column, file in enumerate(self._files):
            file.write(row[column] for row in rows)

    def _rows(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The line of the traces and that of the answers."""
        trace, expected = self.traces[number], self.asked[number].expected
        answer: dict[str, Any] = {"number": number, "id": trace.question.id, "question": trace.question.text}
        answer |= {"answer": trace.answer, "letter": trace.letter, "failure": trace.failure, "stopped": trace.stopped}
        if expected:
            answer |= {"expected": expected, "right": is_right(trace, expected)}
        answer |= {"calls": trace.cost.calls, "tokens": trace.cost.tokens, "seconds": round(trace.cost.seconds, 3)}
        return to_dict(_Line(number, trace)), answer


class _Watched:
    """A model that tells every few seconds how far the questions are."""

    SECONDS = 5.0

    def __init__(self, model: LanguageModel, ledger: _Ledger):
        self._model, self._ledger = model, ledger
        self._before = len(ledger.traces)
        self._started = self._told = time.monotonic()
        self._calls = self._tokens = 0

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        replies = self._model.answer(asks)
        self._calls += len(replies)
        self._tokens += sum(reply.new_tokens for reply in replies)
        now = time.monotonic()
        if now - self._told >= self.SECONDS:
            self._told = now
            self._tell(now - self._started)
        return replies

    def _tell(self, elapsed: float) -> None:
        done, total = len(self._ledger.traces), len(self._ledger.asked)
        fresh = done - self._before
        left = f", about {elapsed / fresh * (total - done):,.0f} s left" if fresh else ""
        print_progress(
            f"{done} of {total} questions answered, {self._calls:,} calls, {self._tokens:,} new tokens, "
            f"{self._tokens / elapsed:,.0f} tokens/s{left}"
        )
