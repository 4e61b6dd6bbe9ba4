"""Least to most with verification: of every sub-answer and of the final answer, or of the final answer alone."""

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.least_to_most import list_steps, solve_least_to_most, summarize
from gemma_keras.solvers.self_verification import verify
from gemma_keras.solvers.steps import Settings, Steps, together
from gemma_keras.solvers.trace import Check, Enhanced, Question


class EnhancedSolver(Solver):
    """Least to most; every sub-answer is verified and improved, the final answer made anew from them, and that verified.

    Sub-answers are verified side by side, each in the light of those before it as they were first given. Where
    verification changes none, the final answer is not made anew.
    """

    name, work = "enhanced", Enhanced
    verify_steps = True

    def fill(self, question: Question, work: Enhanced) -> Steps:
        settings, wording = self.settings, self.settings.wording(question)
        yield from solve_least_to_most(settings, wording, work.decomposed)
        if self.verify_steps:
            yield from together(_begin_step_checks(settings, wording, work))
            if any(step.check and step.check.rewrites for step in work.decomposed.steps):
                work.rebuilt = yield from summarize(settings, wording, work.decomposed.steps)
        work.check = Check(original=work.answer)
        yield from verify(settings, wording, work.check)


class SimplifiedEnhanced(EnhancedSolver):
    """Least to most, and its final answer verified and improved."""

    name = "simplified_enhanced"
    verify_steps = False


def _begin_step_checks(settings: Settings, question: str, work: Enhanced) -> list[Steps]:
    """What verifies each step. The texts are made before the first of them changes an answer."""
    checks = []
    steps = work.decomposed.steps
    for number, step in enumerate(steps):
        asked = settings.prompts.text(
            "step_in_context", question=question, sub_question=step.question, steps=list_steps(settings, steps[:number])
        )
        step.check = Check(original=step.first_answer)
        checks.append(verify(settings, asked, step.check))
    return checks
