"""Adaptive solving: the model scores how complex a question is, and the score chooses the solver."""

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.enhanced import EnhancedSolver
from gemma_keras.solvers.least_to_most import LeastToMost
from gemma_keras.solvers.normal import Normal
from gemma_keras.solvers.replies import scores
from gemma_keras.solvers.steps import Steps
from gemma_keras.solvers.trace import Adapted, Question

SIMPLE, HARD = 0.3, 0.7
"""Scores below the first are answered at once, those from the second on by the enhanced solver."""


class Adaptive(Solver):
    """Below 0.3 the normal solver, below 0.7 least to most, else the enhanced one. A score that is none counts as 0.5."""

    name, work = "adaptive", Adapted

    def fill(self, question: Question, work: Adapted) -> Steps:
        settings = self.settings
        work.reply = yield from settings.ask(
            "complexity", settings.solver.judge_temperature, settings.constrained(scores.SCORE), question=question.text
        )
        work.complexity = scores.read_complexity(work.reply)
        solver = _choose(work.complexity)(self.model, settings)
        work.solver = solver.name
        work.work, steps = solver.begin(question)
        yield from steps


def _choose(complexity: float) -> type[Solver]:
    if complexity < SIMPLE:
        return Normal
    return LeastToMost if complexity < HARD else EnhancedSolver
