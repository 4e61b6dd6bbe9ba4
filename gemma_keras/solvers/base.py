"""What all solvers have in common: `solve`, over a batch of questions."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gemma_keras.inference.language_model import LanguageModel
from gemma_keras.solvers import lockstep
from gemma_keras.solvers.chosen_option import VOTING, choose_letter
from gemma_keras.solvers.steps import Settings, Steps
from gemma_keras.solvers.trace import Question, Trace, Work

OnDone = Callable[[int, Trace], None]


class Solver(abc.ABC):
    """A way to answer questions with a model.

    A subclass says with what `work` it begins, and how that is filled; `begin` is also how solvers use each other.

    Args:
        sampled: the solvers whose answers this one compares; none for most.
    """

    name: ClassVar[str]
    work: Callable[..., Work]  # makes it, still empty

    def __init__(self, model: LanguageModel, settings: Settings | None = None, sampled: Sequence["Solver"] = ()):
        self.model = model
        self.settings = settings or Settings()
        self.sampled = sampled

    def begin(self, question: Question) -> tuple[Work, Steps]:
        """Work that is still empty, and the steps that fill it. Nothing is asked yet."""
        work = self.work()
        return work, self.fill(question, work)

    @abc.abstractmethod
    def fill(self, question: Question, work: Any) -> Steps:
        """The steps that fill the work."""

    def solve(self, questions: Sequence[Question | str], on_done: OnDone = lambda number, trace: None) -> list[Trace]:
        """The trace of each question.

        Questions are solved side by side, `solver.batch_questions` of them at a time: whatever they ask at the same
        moment goes to the model as one batch. A trace depends on its question and the settings only, not on what else
        is solved with it (unless a budget of seconds ends it). A question that fails has `trace.failure`, and does not
        disturb the others.

        Args:
            on_done: called with the number of a question and its trace, as soon as this is complete.

        Raises:
            UserError: a question without text.
        """
        asked = [Question(question) if isinstance(question, str) else question for question in questions]
        return lockstep.run(self.model, self.settings, asked, self._trace, on_done)

    def _trace(self, question: Question) -> tuple[Trace, Steps]:
        work, steps = self.begin(question)
        trace = Trace(question=question, solver=self.name, work=work)
        return trace, self._with_letter(trace, steps)

    def _with_letter(self, trace: Trace, steps: Steps) -> Steps:
        """The steps, and then the option that their answer chooses."""
        yield from steps
        if trace.question.choices and trace.work.answer and not isinstance(trace.work, VOTING):
            trace.letter = yield from choose_letter(self.settings, trace.question, trace.work.answer)
