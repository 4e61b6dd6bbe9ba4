"""Solving as a generator: it yields lists of calls that do not depend on each other, and receives the replies.

So a solver reads as if it were alone, whoever runs it beside others: `lockstep` gathers what all questions ask next into
one batch, and `together` does so within a question. A generator that asks by itself yields one call (`ask`); lists of
several come from `together` only. Where a budget ends within such a list, the replies are fewer than the calls: parts
without a reply are closed, the others go on to their next call.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from gemma_keras.config.sections import SamplingConfig, SolverConfig
from gemma_keras.inference.constraints.constraint import Constraint
from gemma_keras.inference.language_model import Ask, Reply
from gemma_keras.solvers.prompts import Prompts, load_builtin_prompts
from gemma_keras.solvers.trace import Question

Steps = Generator[list[Ask], list[Reply], None]
Asking = Generator[list[Ask], list[Reply], str]
"""Steps that lead to a text."""


class SolverFailure(Exception):
    """A solver cannot go on with a question; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How solvers ask: prompts, temperatures, lengths, limits."""

    solver: SolverConfig = field(default_factory=SolverConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompts: Prompts = field(default_factory=lambda: load_builtin_prompts("zh"))

    def wording(self, question: Question) -> str:
        """The question as prompts show it, with its options."""
        if not question.choices:
            return question.text
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(question.letters, question.choices))
        return self.prompts.text("options", question=question.text, options=options)

    def ask(self, prompt: str, temperature: float, constraint: Constraint | None = None, **values: str) -> Asking:
        """Asks for one thing; returns the reply's text, blanks at its ends left out."""
        replies = yield [
            Ask(
                messages=self.prompts.messages(prompt, **values),
                temperature=temperature,
                max_new_tokens=self.sampling.max_new_tokens,
                top_p=self.sampling.top_p,
                repetition_penalty=self.sampling.repetition_penalty,
                constraint=constraint,
            )
        ]
        return replies[0].text.strip()

    def constrained(self, constraint: Constraint) -> Constraint | None:
        """The constraint, where the configuration asks for any."""
        return None if self.solver.constrained == "no" else constraint


def together(parts: Sequence[Steps]) -> Steps:
    """Runs parts that do not depend on each other side by side, until all have ended."""
    waiting: list[tuple[Steps, list[Ask]]] = []
    for part in parts:
        _advance(part, None, waiting)
    while waiting:
        replies = yield [ask for _, asks in waiting for ask in asks]
        following: list[tuple[Steps, list[Ask]]] = []
        for part, asks in waiting:
            own, replies = replies[: len(asks)], replies[len(asks) :]
            if own:
                _advance(part, own, following)
            else:
                part.close()
        waiting = following


def _advance(part: Steps, replies: list[Reply] | None, waiting: list[tuple[Steps, list[Ask]]]) -> None:
    """Runs a part up to its next calls, and has it wait for them unless it has ended."""
    with contextlib.suppress(StopIteration):
        waiting.append((part, next(part) if replies is None else part.send(replies)))
