"""One answer to the question as it stands."""

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.steps import Steps
from gemma_keras.solvers.trace import Direct, Question


class Normal(Solver):
    """Asks the question."""

    name, work = "normal", Direct

    def fill(self, question: Question, work: Direct) -> Steps:
        wording = self.settings.wording(question)
        work.answer = yield from self.settings.ask("answer", self.settings.sampling.temperature, question=wording)
