"""Least to most (arXiv 2205.10625): sub-questions in order, each answered with all answers before it, then a summary."""

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.replies import plans
from gemma_keras.solvers.steps import Asking, Settings, SolverFailure, Steps
from gemma_keras.solvers.trace import Decomposed, Question, Step

PLAN_PROMPTS = {"no": "plan", "list": "plan", "json": "plan_json"}


class LeastToMost(Solver):
    """3 to 5 sub-questions, one after the other.

    A decomposition in which no sub-question can be read is asked for once more, in stricter words; after that the question
    has failed.
    """

    name, work = "least_to_most", Decomposed

    def fill(self, question: Question, work: Decomposed) -> Steps:
        return solve_least_to_most(self.settings, self.settings.wording(question), work)


def solve_least_to_most(settings: Settings, question: str, work: Decomposed) -> Steps:
    """Fills `work`: decomposition, answers, summary."""
    yield from _decompose(settings, question, work)
    for number, step in enumerate(work.steps, 1):
        earlier = list_steps(settings, work.steps[: number - 1])
        prompt = "next_step" if earlier else "first_step"
        step.first_answer = yield from settings.ask(
            prompt, settings.sampling.temperature, question=question, steps=earlier, number=str(number),
            sub_question=step.question,
        )  # fmt: skip
    work.summary = yield from summarize(settings, question, work.steps)


def summarize(settings: Settings, question: str, steps: list[Step]) -> Asking:
    """Asks for the answer that follows from the steps."""
    shown = list_steps(settings, steps)
    return (yield from settings.ask("summary", settings.solver.summary_temperature, question=question, steps=shown))


def list_steps(settings: Settings, steps: list[Step]) -> str:
    """Sub-questions with their answers, as prompts show them."""
    return "\n\n".join(
        settings.prompts.text("step", number=str(number), sub_question=step.question, answer=step.answer)
        for number, step in enumerate(steps, 1)
    )


def _decompose(settings: Settings, question: str, work: Decomposed) -> Steps:
    for prompt in (PLAN_PROMPTS[settings.solver.constrained], "plan_strictly"):
        form = plans.make_json_constraint if prompt == "plan_json" else plans.make_list_constraint
        constraint = settings.constrained(form(settings.solver.language))
        reply = yield from settings.ask(prompt, settings.solver.plan_temperature, constraint, question=question)
        work.attempts.append(reply)
        work.steps = [Step(question=text) for text in plans.read_sub_questions(reply)]
        if work.steps:
            return
    raise SolverFailure(
        "no sub-question could be read from the two decompositions that the model gave; "
        "solver.constrained=list or json holds it to their form"
    )
