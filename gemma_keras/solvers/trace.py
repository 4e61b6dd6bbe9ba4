"""What solving a question left behind: every sub-question, answer and verdict, and what it cost.

A trace is filled while a question is being solved, and `answer` of each part is worked out from what is there: so it is
the best answer so far at any moment, wherever a budget or a failure ends the work. `config.serialization` writes it as
JSON and reads it back.
"""

import operator
from collections import Counter
from dataclasses import astuple, dataclass, field
from typing import Annotated, Literal

import pydantic

LETTERS = "ABCDEFGHIJ"
"""Of options, of which a question has at most as many."""


@dataclass(slots=True, frozen=True)
class Question:
    """A question, its options where it has some, and what a caller knows it by (empty: nothing)."""

    text: str
    choices: tuple[str, ...] = ()
    id: str = ""

    @property
    def letters(self) -> str:
        """Letters of the options."""
        return LETTERS[: len(self.choices)]


@dataclass(slots=True)
class Cost:
    """What was spent.

    Attributes:
        calls: of the model.
        prompt_tokens: of all calls' prompts.
        new_tokens: of all answers.
        cut: answers that ended at their greatest length.
        seconds: the question's share, by tokens, of the time in which its calls were answered; the shares of all
            questions add up to the time of the model.
    """

    calls: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    cut: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return self.prompt_tokens + self.new_tokens

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(operator.add, astuple(self), astuple(other)))


@dataclass(slots=True, kw_only=True)
class Verdict:
    """A judgement of an answer: its text, the parts that could be read, and whether it asks for nothing."""

    text: str
    accuracy: str = ""
    completeness: str = ""
    logic: str = ""
    suggestions: str = ""
    accepted: bool = False


@dataclass(slots=True, kw_only=True)
class Check:
    """An answer that was judged: `verdicts[i]` led to `rewrites[i]`, which `verdicts[i + 1]` judged."""

    original: str
    verdicts: list[Verdict] = field(default_factory=list)
    rewrites: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        return self.rewrites[-1] if self.rewrites else self.original


@dataclass(slots=True, kw_only=True)
class Step:
    """A sub-question and its answer, with the check of it where there was one."""

    question: str
    first_answer: str = ""
    check: Check | None = None

    @property
    def answer(self) -> str:
        return self.check.answer if self.check else self.first_answer


@dataclass(slots=True, kw_only=True)
class Direct:
    """One answer."""

    kind: Literal["direct"] = "direct"
    answer: str = ""


@dataclass(slots=True, kw_only=True)
class Decomposed:
    """Least to most: `attempts` are the texts of the decompositions, of which the last gave the steps."""

    kind: Literal["decomposed"] = "decomposed"
    attempts: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    summary: str = ""

    @property
    def answer(self) -> str:
        """The summary; before there is one, the answer that came last."""
        answered = [step.answer for step in self.steps if step.answer]
        return self.summary or (answered[-1] if answered else "")


@dataclass(slots=True, kw_only=True)
class Verified:
    """One answer, and the check of it."""

    kind: Literal["verified"] = "verified"
    draft: str = ""
    check: Check | None = None

    @property
    def answer(self) -> str:
        return self.check.answer if self.check else self.draft


@dataclass(slots=True, kw_only=True)
class Enhanced:
    """Least to most with checks: of the steps (not in the simplified form), then of the final answer.

    `rebuilt` is the final answer from the improved steps; empty where no step was changed.
    """

    kind: Literal["enhanced"] = "enhanced"
    decomposed: Decomposed = field(default_factory=Decomposed)
    rebuilt: str = ""
    check: Check | None = None

    @property
    def answer(self) -> str:
        return self.check.answer if self.check else self.rebuilt or self.decomposed.answer


@dataclass(slots=True, kw_only=True)
class Adapted:
    """What the model said of the complexity, the score, and the work of the solver that was chosen by it."""

    kind: Literal["adapted"] = "adapted"
    reply: str = ""
    complexity: float | None = None
    solver: str = ""
    work: "Work | None" = None

    @property
    def answer(self) -> str:
        return self.work.answer if self.work else ""


@dataclass(slots=True, kw_only=True)
class Sample:
    """One of several answers to a question.

    `vote` is the form in which it is compared with the others; empty: it says nothing, or `failure` says why there is no
    answer.
    """

    work: "Work"
    vote: str = ""
    failure: str = ""


@dataclass(slots=True, kw_only=True)
class Voted:
    """Self-consistency: samples of one solver. `planned` is their number, so that a lost sample agrees with none."""

    kind: Literal["voted"] = "voted"
    solver: str
    planned: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def vote(self) -> str:
        """The most frequent vote; of several, the one that came first."""
        votes = self.votes()
        return max(votes, key=lambda vote: votes[vote]) if votes else ""

    @property
    def share(self) -> float:
        """Share of the samples that agree on it."""
        return self.votes()[self.vote] / self.planned

    @property
    def answer(self) -> str:
        """The first answer with that vote."""
        return next((sample.work.answer for sample in self.samples if sample.vote and sample.vote == self.vote), "")

    def votes(self) -> Counter[str]:
        """How many samples gave each vote, in the order in which votes first came."""
        return Counter(sample.vote for sample in self.samples if sample.vote)


@dataclass(slots=True, kw_only=True)
class Escalated:
    """Samples of one solver after another, until `threshold` of them agree."""

    kind: Literal["escalated"] = "escalated"
    threshold: float
    stages: list[Voted] = field(default_factory=list)

    @property
    def decisive(self) -> Voted | None:
        """The stage whose samples agree most; of several, the last."""
        return max(reversed(self.stages), key=lambda stage: stage.share, default=None)

    @property
    def vote(self) -> str:
        return self.decisive.vote if self.decisive else ""

    @property
    def answer(self) -> str:
        return self.decisive.answer if self.decisive else ""


@dataclass(slots=True, kw_only=True)
class Recovery:
    """One attempt to find the condition that was masked; `expected` is "" where a conclusion was judged as a whole."""

    question: str
    expected: str
    reply: str = ""
    found: bool = False


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A distinct answer, the statement that it makes of the question, and what could be recovered from that."""

    vote: str
    answer: str
    supporters: int
    statement: str = ""
    recoveries: list[Recovery] = field(default_factory=list)

    @property
    def score(self) -> int:
        """Conditions recovered."""
        return sum(recovery.found for recovery in self.recoveries)


@dataclass(slots=True, kw_only=True)
class Backward:
    """Backward verification: the samples, and their distinct answers (none where all samples agree)."""

    kind: Literal["backward"] = "backward"
    voted: Voted
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def best(self) -> Candidate | Voted:
        """The candidate with the highest score (of several, the one with most supporters, then the first), or the samples."""
        return max(self.candidates, key=lambda one: (one.score, one.supporters), default=self.voted)

    @property
    def vote(self) -> str:
        return self.best.vote

    @property
    def answer(self) -> str:
        return self.best.answer


Work = Annotated[
    Direct | Decomposed | Verified | Enhanced | Adapted | Voted | Escalated | Backward,
    pydantic.Field(discriminator="kind"),
]
"""What one kind of solver leaves behind; `kind` tells it in JSON."""


@dataclass(slots=True, kw_only=True)
class Trace:
    """The account of one question.

    Attributes:
        question: what was asked.
        solver: name of the solver.
        work: its steps; `work.answer` is the answer at any moment.
        answer: the final answer; after a failure or at the end of a budget, the best one so far, which may be empty.
        letter: the option that the answer chooses; empty for a question without options.
        failure: why the solver could not finish; empty: it did.
        stopped: the budget that ended the work: calls, tokens or seconds; empty: none.
        cost: of all calls.
        elapsed: seconds from the first call to the end, other questions' calls of the same batches included.
    """

    question: Question
    solver: str
    work: Work
    answer: str = ""
    letter: str = ""
    failure: str = ""
    stopped: str = ""
    cost: Cost = field(default_factory=Cost)
    elapsed: float = 0.0


def route(work: Work, solver: str) -> str:
    """The solvers that led to an answer, such as "adaptive/normal" or "escalation/least_to_most"."""
    if isinstance(work, Adapted) and work.work:
        return f"{solver}/{route(work.work, work.solver)}"
    if isinstance(work, Escalated) and work.stages:
        return f"{solver}/{work.stages[-1].solver}"
    return solver
