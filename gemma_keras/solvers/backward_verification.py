"""Backward verification (arXiv 2212.09561): which answer lets the conditions of its question be found again?

Answers are sampled as in self-consistency. Each distinct one is joined with the question into a statement; then the
numbers of the question are masked in turn, and the model, given the statement, works out what stood there. The answer
under which most numbers are recovered counts. For a question without numbers, the model is asked instead whether the
statement is right.
"""

import re

from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.replies import answers, judgements
from gemma_keras.solvers.replies.plain import find_marked_answer
from gemma_keras.solvers.self_consistency import plan_samples, sample
from gemma_keras.solvers.steps import Settings, Steps, together
from gemma_keras.solvers.trace import Backward, Candidate, Question, Recovery


class BackwardVerification(Solver):
    """Samples answers of another solver; the one from which most conditions of the question can be recovered counts.

    Where all samples agree there is nothing to choose, and nothing more is asked.
    """

    name = "backward_verification"

    def work(self) -> Backward:
        return Backward(voted=plan_samples(self.settings, self.sampled[0]))

    def fill(self, question: Question, work: Backward) -> Steps:
        yield from sample(self.settings, self.sampled[0], question, work.voted)
        votes = work.voted.votes()
        if len(votes) == 1:
            return
        for vote, supporters in votes.items():
            answer = next(one.work.answer for one in work.voted.samples if one.vote == vote)
            work.candidates.append(Candidate(vote=vote, answer=answer, supporters=supporters))
        yield from together([_verify(self.settings, question, candidate) for candidate in work.candidates])


def _verify(settings: Settings, question: Question, candidate: Candidate) -> Steps:
    """States the conclusion, then looks for each masked condition `solver.checks` times, side by side."""
    candidate.statement = yield from settings.ask(
        "statement", settings.solver.judge_temperature, question=question.text, answer=_shorten(question, candidate)
    )
    masked = mask_numbers(question.text, settings.solver.conditions) or [(question.text, "")]
    candidate.recoveries = [
        Recovery(question=text, expected=number) for text, number in masked for _ in range(settings.solver.checks)
    ]
    yield from together([_recover(settings, candidate.statement, one) for one in candidate.recoveries])


def _shorten(question: Question, candidate: Candidate) -> str:
    """The final answer of a candidate in short: the option that it chooses, what it marks, or all of it."""
    if question.choices:
        return question.choices[question.letters.index(candidate.vote)]
    return find_marked_answer(candidate.answer) or candidate.answer


def _recover(settings: Settings, statement: str, one: Recovery) -> Steps:
    prompt = "masked" if one.expected else "verdict"
    one.reply = yield from settings.ask(
        prompt, settings.sampling.temperature, question=one.question, statement=statement
    )
    one.found = answers.says(one.reply, one.expected) if one.expected else judgements.affirms(one.reply)


_MASKABLE = re.compile(r"(?<![\dA-Za-z.])\d+(?:,\d{3})*(?:\.\d+)?(?![\dA-Za-z])")


def mask_numbers(question: str, most: int) -> list[tuple[str, str]]:
    """The question with one of its numbers replaced by X, and that number; for the first `most` of them.

    >>> mask_numbers("有 20 本书，借走 6 本，还剩多少本？", 1)
    [('有 X 本书，借走 6 本，还剩多少本？', '20')]
    """
    found = list(_MASKABLE.finditer(question))[:most]
    return [(f"{question[: number.start()]}X{question[number.end() :]}", number[0]) for number in found]
