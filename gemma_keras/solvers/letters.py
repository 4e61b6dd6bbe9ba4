"""Which option of a multiple-choice question an answer chooses."""

from gemma_keras.inference.constraints import Choice
from gemma_keras.solvers import parsing
from gemma_keras.solvers.steps import Asking, Settings
from gemma_keras.solvers.trace import Backward, Escalated, Question, Voted, Work

VOTING = (Voted, Escalated, Backward)
"""Work whose votes are letters."""


def chosen_letter(settings: Settings, question: Question, answer: str) -> Asking:
    """The option that an answer marks as its own; else, under constraints, the one that the model reads from it."""
    letter = marked_letter(question, answer)
    if letter or settings.solver.constrained == "no":
        return letter or parsing.option(answer, question.letters)
    wording, letters = settings.wording(question), " ".join(question.letters)
    constraint = Choice(tuple(question.letters))
    return (yield from settings.ask("letter", 0.0, constraint, question=wording, answer=answer, letters=letters))


def marked_letter(question: Question, answer: str) -> str:
    """The option after the last "答案：" of an answer; empty without one."""
    return parsing.option(parsing.marked_answer(answer), question.letters)


def letter_so_far(question: Question, work: Work) -> str:
    """The option that unfinished work chooses, without asking for it."""
    if not question.choices:
        return ""
    return work.vote if isinstance(work, VOTING) else parsing.option(work.answer, question.letters)
