"""Self-verification: the model judges an answer, rewrites it by that judgement, and judges again."""

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.replies import judgements
from gemma_keras.solvers.steps import Settings, Steps
from gemma_keras.solvers.trace import Check, Question, Verified


class SelfVerification(Solver):
    """One answer, judged on accuracy, completeness and logic, with suggestions.

    A verdict that asks for nothing leaves the answer as it is. Otherwise it is rewritten, at most `solver.rewrites` times,
    and each rewriting is judged.
    """

    name, work = "self_verification", Verified

    def fill(self, question: Question, work: Verified) -> Steps:
        settings, wording = self.settings, self.settings.wording(question)
        work.draft = yield from settings.ask("answer", settings.sampling.temperature, question=wording)
        work.check = Check(original=work.draft)
        yield from verify(settings, wording, work.check)


def verify(settings: Settings, question: str, check: Check) -> Steps:
    """Judges the answer of `check` and improves it."""
    while True:
        reply = yield from settings.ask(
            "judge", settings.solver.judge_temperature, question=question, answer=check.answer
        )
        verdict = judgements.read_verdict(reply)
        check.verdicts.append(verdict)
        if verdict.accepted or len(check.rewrites) == settings.solver.rewrites:
            return
        rewritten = yield from settings.ask(
            "rewrite", settings.sampling.temperature, question=question, answer=check.answer, verdict=verdict.text
        )
        if not rewritten:  # nothing is no improvement
            return
        check.rewrites.append(rewritten)
