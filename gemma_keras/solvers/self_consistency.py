"""Several answers to the same question, compared: self-consistency (arXiv 2203.11171), and escalation by it."""

from dataclasses import replace

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.chosen_option import choose_letter
from gemma_keras.solvers.replies import answers
from gemma_keras.solvers.steps import Settings, SolverFailure, Steps, together
from gemma_keras.solvers.trace import Escalated, Question, Sample, Voted


class SelfConsistency(Solver):
    """Samples answers of another solver; the most frequent final answer counts.

    Final answers are compared as `answers.find_final_answer` reads them; of a question with options, by their letters.
    """

    name = "self_consistency"

    def work(self) -> Voted:
        return plan_samples(self.settings, self.sampled[0])

    def fill(self, question: Question, work: Voted) -> Steps:
        return sample(self.settings, self.sampled[0], question, work)


class Escalation(Solver):
    """Adaptive-Solver's answer consistency (arXiv 2310.01446): solvers in turn, until enough samples of one agree.

    Each solver's answers are sampled. Where the share of the majority reaches `solver.threshold`, its answer counts, and
    nothing more is asked; where none does, the majority of the solver whose samples agree most counts.
    """

    name = "escalation"

    def work(self) -> Escalated:
        return Escalated(threshold=self.settings.solver.threshold)

    def fill(self, question: Question, work: Escalated) -> Steps:
        for solver in self.sampled:
            stage = plan_samples(self.settings, solver)
            work.stages.append(stage)
            try:
                yield from sample(self.settings, solver, question, stage)
            except SolverFailure:
                if solver is self.sampled[-1] and not work.answer:
                    raise
            if stage.vote and stage.share >= work.threshold:
                return


def plan_samples(settings: Settings, solver: Solver) -> Voted:
    """Work that is still empty, for `solver.samples` answers of a solver."""
    return Voted(solver=solver.name, planned=settings.solver.samples)


def sample(settings: Settings, solver: Solver, question: Question, work: Voted) -> Steps:
    """Fills the work with answers, side by side; raises `SolverFailure` where none has any."""
    asked = add_final_line(settings, question)
    parts = []
    for _ in range(work.planned):
        part, steps = solver.begin(asked)
        work.samples.append(Sample(work=part))
        parts.append(_vote(settings, question, work, work.samples[-1], steps))
    yield from together(parts)
    if not work.vote:
        reasons = {one.failure for one in work.samples if one.failure} or {"their answers are empty"}
        raise SolverFailure(
            f"none of {work.planned} samples of {solver.name} has an answer: {'; '.join(sorted(reasons))}"
        )


def add_final_line(settings: Settings, question: Question) -> Question:
    """The question with the request for a final answer on a line of its own; that of options has it anyway."""
    if question.choices:
        return question
    return replace(question, text=settings.prompts.text("final_line", question=question.text))


def _vote(settings: Settings, question: Question, work: Voted, one: Sample, steps: Steps) -> Steps:
    try:
        yield from steps
    except SolverFailure as failure:
        one.failure = str(failure)
        return
    answer = one.work.answer
    if question.choices:
        one.vote = yield from choose_letter(settings, question, answer)
    else:
        vote = answers.find_final_answer(answer)
        # Of equal answers ("3 千克", "3000 克") the form that came first, so that they are counted together.
        one.vote = next((other.vote for other in work.samples if answers.are_same(other.vote, vote)), vote)
