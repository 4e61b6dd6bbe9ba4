"""One answer to the question as it stands."""

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.steps import Settings, Steps
from gemma_keras.solvers.trace import Direct, Question


class Normal(Solver):
    """Asks the question."""

    name = "normal"

    def begin(self, question: Question) -> tuple[Direct, Steps]:
        work = Direct()
        return work, _answer(self.settings, self.settings.wording(question), work)


def _answer(settings: Settings, question: str, work: Direct) -> Steps:
    work.answer = yield from settings.ask("answer", settings.sampling.temperature, question=question)
