"""What many traces say together: answers, failures, cost by solver, and what verification changed."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_keras.solvers.replies import answers
from gemma_keras.solvers.trace import Check, Cost, Trace, route


@dataclass(slots=True)
class Verification:
    """What checks of answers led to.

    Attributes:
        checks: answers that were judged.
        accepted: left as they were, since the first verdict asked for nothing.
        rewritten: at least once.
        accepted_after: of these, the ones whose last verdict asked for nothing.
        new_results: of these, the ones whose final answer is another one than before.
    """

    checks: int = 0
    accepted: int = 0
    rewritten: int = 0
    accepted_after: int = 0
    new_results: int = 0


@dataclass(slots=True)
class Analysis:
    """Counts over traces; `routes` are those of `trace.route`, with how many questions took each and what they cost."""

    questions: int = 0
    answered: int = 0
    failed: int = 0
    stopped: int = 0
    cost: Cost = field(default_factory=Cost)
    routes: dict[str, tuple[int, Cost]] = field(default_factory=dict)
    verification: Verification = field(default_factory=Verification)


def analyze(traces: Sequence[Trace]) -> Analysis:
    """Sums up traces."""
    analysis = Analysis(questions=len(traces))
    for trace in traces:
        analysis.answered += bool(trace.answer)
        analysis.failed += bool(trace.failure)
        analysis.stopped += bool(trace.stopped)
        analysis.cost += trace.cost
        taken = route(trace.work, trace.solver)
        count, cost = analysis.routes.get(taken, (0, Cost()))
        analysis.routes[taken] = (count + 1, cost + trace.cost)
        for check in find_checks(trace.work):
            _count(check, analysis.verification)
    return analysis


def find_checks(part: Any) -> Iterator[Check]:
    """Every check within a trace or a part of one that came to a verdict."""
    if isinstance(part, Check):
        if part.verdicts:
            yield part
    elif isinstance(part, list):
        for item in part:
            yield from find_checks(item)
    elif dataclasses.is_dataclass(part):
        for entry in dataclasses.fields(part):
            yield from find_checks(getattr(part, entry.name))


def _count(check: Check, verification: Verification) -> None:
    verification.checks += 1
    if check.rewrites:
        verification.rewritten += 1
        verification.accepted_after += check.verdicts[-1].accepted and len(check.verdicts) > len(check.rewrites)
        verification.new_results += not answers.are_same(
            answers.find_final_answer(check.original), answers.find_final_answer(check.answer)
        )
    else:
        verification.accepted += check.verdicts[0].accepted


def format_costs(analysis: Analysis) -> str:
    """A Markdown table of calls, tokens and seconds: in all, then a question's share, by route."""
    rows = sorted(analysis.routes.items())
    if len(rows) > 1:
        rows.append(("all", (analysis.questions, analysis.cost)))
    lines = [
        "| solver | questions | calls | tokens | seconds | calls each | tokens each | seconds each |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (count, cost) in rows:
        each = f"{cost.calls / count:.1f} | {cost.tokens / count:,.0f} | {cost.seconds / count:.2f}"
        lines.append(f"| {name} | {count:,} | {cost.calls:,} | {cost.tokens:,} | {cost.seconds:,.1f} | {each} |")
    return "\n".join(lines)


def format_verification(verification: Verification) -> str:
    """One sentence on what verification changed."""
    return (
        f"verification: {verification.checks:,} answers judged, {verification.accepted:,} left as they were, "
        f"{verification.rewritten:,} rewritten; of these, {verification.accepted_after:,} were then accepted and "
        f"{verification.new_results:,} have another result"
    )


def is_right(trace: Trace, expected: str) -> bool:
    """Whether a trace's answer is the expected one: its letter, or what `answers.says` finds in it.

    An expected text of several numbers ("3:4", "2023-05-01", "3 1/2") counts as a whole, but an equation as its result,
    and a text of several lines as the last one.
    """
    return trace.letter == expected.strip() if trace.question.choices else answers.says(trace.answer, expected)


def bound_share(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share (z = 1.96: 95 %).

    >>> [round(bound, 3) for bound in bound_share(5, 10)]
    [0.237, 0.763]
    """
    share = right / count
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    middle = share + z * z / (2 * count)
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
