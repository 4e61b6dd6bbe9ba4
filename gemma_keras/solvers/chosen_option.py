"""Which option of a multiple-choice question an answer chooses."""

from gemma_keras.inference.constraints.constraint import Choice
from gemma_keras.solvers.replies.letters import find_option
from gemma_keras.solvers.steps import Asking, Settings
from gemma_keras.solvers.trace import Backward, Escalated, Question, Voted, Work

VOTING = (Voted, Escalated, Backward)
"""Work whose votes are letters."""


def choose_letter(settings: Settings, question: Question, answer: str) -> Asking:
    """The option that an answer chooses; where it names none, the one that the model, asked once more, reads from it."""
    letter = find_option(answer, question.letters)
    if letter:
        return letter
    wording, letters = settings.wording(question), " ".join(question.letters)
    constraint = settings.constrained(Choice(tuple(question.letters)))
    reply = yield from settings.ask("letter", 0.0, constraint, question=wording, answer=answer, letters=letters)
    return find_option(reply, question.letters)


def read_letter_so_far(question: Question, work: Work) -> str:
    """The option that unfinished work chooses, without asking for it."""
    if not question.choices:
        return ""
    return work.vote if isinstance(work, VOTING) else find_option(work.answer, question.letters)
