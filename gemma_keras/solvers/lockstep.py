"""Runs the steps of many questions side by side: one batch of calls a round, made of what each question asks next.

Budgets are kept here, costs counted and seeds given: the draws of a call follow from `sampling.seed`, the question's text
and the number of the call within the question, so they are the same whatever runs beside it and in whatever order.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gemma_keras.config.errors import UserError, require
from gemma_keras.config.sections import SolverConfig
from gemma_keras.inference.language_model import Ask, LanguageModel, Reply
from gemma_keras.solvers.chosen_option import read_letter_so_far
from gemma_keras.solvers.steps import Settings, SolverFailure, Steps
from gemma_keras.solvers.trace import Question, Trace

Begin = Callable[[Question], tuple[Trace, Steps]]


@dataclass(slots=True)
class _Underway:
    """A question whose steps wait for the replies to `asks`; `over` once they have ended."""

    number: int
    trace: Trace
    steps: Steps
    started: float
    asks: list[Ask] = field(default_factory=list)
    over: bool = False


def run(
    model: LanguageModel,
    settings: Settings,
    questions: Sequence[Question],
    begin: Begin,
    on_done: Callable[[int, Trace], None],
) -> list[Trace]:
    """The traces of all questions; as many at a time as `solver.batch_questions`, the next in place of one that is done.

    Raises:
        UserError: a question without text.
    """
    for number, question in enumerate(questions):
        require(question.text.strip() != "", f"question {number + 1} is empty; give it a text.")
    waiting = deque(enumerate(questions))
    underway: list[_Underway] = []
    traces: dict[int, Trace] = {}
    while waiting or underway:
        while waiting and len(underway) < settings.solver.batch_questions:
            number, question = waiting.popleft()
            one = _Underway(number, *begin(question), time.monotonic())
            _advance(one, None)
            underway.append(one)
        _round(model, settings, underway)
        for one in underway:
            if one.over:
                traces[one.number] = _finished(one)
                on_done(one.number, one.trace)
        underway = [one for one in underway if not one.over]
    return [traces[number] for number in range(len(questions))]


def _finished(one: _Underway) -> Trace:
    trace = one.trace
    trace.answer = trace.work.answer
    trace.letter = trace.letter or read_letter_so_far(trace.question, trace.work)
    trace.elapsed = time.monotonic() - one.started
    return trace


def _advance(one: _Underway, replies: list[Reply] | None) -> None:
    """Runs the steps of a question up to their next calls, or to their end."""
    try:
        one.asks = next(one.steps) if replies is None else one.steps.send(replies)
    except StopIteration:
        one.over = True
    except SolverFailure as failure:
        _end(one, failure=str(failure))


def _end(one: _Underway, failure: str = "") -> None:
    one.steps.close()
    one.trace.failure, one.over = failure, True


def _round(model: LanguageModel, settings: Settings, underway: list[_Underway]) -> None:
    """Asks what all questions wait for and runs each of them on; those whose budget is spent end."""
    asking = []
    for one in underway:
        if one.over:
            continue
        allowed, spent = _allowed(one, settings.solver)
        if allowed < len(one.asks):
            one.trace.stopped = spent
        if not allowed:
            _end(one)
            continue
        one.asks = [
            replace(ask, seed=_seed(settings.sampling.seed, one.trace.question.text, one.trace.cost.calls + index))
            for index, ask in enumerate(one.asks[:allowed])
        ]
        asking.append(one)
    for one, replies in zip(asking, _answers(model, asking)):
        if replies is not None:
            _advance(one, replies)


def _allowed(one: _Underway, limits: SolverConfig) -> tuple[int, str]:
    """How many of its calls a question may still make and, where that is none, the budget that says so."""
    cost = one.trace.cost
    if limits.max_seconds and time.monotonic() - one.started >= limits.max_seconds:
        return 0, "seconds"
    if limits.max_tokens and cost.tokens >= limits.max_tokens:
        return 0, "tokens"
    left = limits.max_calls - cost.calls if limits.max_calls else len(one.asks)
    return min(left, len(one.asks)), "calls"


def _seed(base: int, question: str, call: int) -> int:
    text = f"{base}/{call}/{question}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def _answers(model: LanguageModel, asking: list[_Underway]) -> list[list[Reply] | None]:
    """The replies of each question; None where the model refuses its calls, which ends the question."""
    started = time.monotonic()
    try:
        replies = model.answer([ask for one in asking for ask in one.asks]) if asking else []
    except UserError as error:
        half = len(asking) // 2
        if half:  # only those at fault shall fail
            return _answers(model, asking[:half]) + _answers(model, asking[half:])
        _end(asking[0], failure=str(error))
        return [None]
    seconds = time.monotonic() - started
    everything = sum(reply.prompt_tokens + reply.new_tokens for reply in replies)
    parted: list[list[Reply] | None] = []
    for one in asking:
        own, replies = replies[: len(one.asks)], replies[len(one.asks) :]
        before = one.trace.cost.tokens
        cost = one.trace.cost
        cost.calls += len(own)
        cost.prompt_tokens += sum(reply.prompt_tokens for reply in own)
        cost.new_tokens += sum(reply.new_tokens for reply in own)
        cost.cut += sum(not reply.ended for reply in own)
        cost.seconds += seconds * (cost.tokens - before) / max(1, everything)
        parted.append(own)
    return parted
