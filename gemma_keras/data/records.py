"""What one example is, and what is wrong with a row that is none."""

from dataclasses import dataclass

from gemma_keras.text.templates import ROLES, Message


class BadRow(Exception):
    """A row that cannot be read; the message says why. Such rows are quarantined."""


class SkippedRow(Exception):
    """A sound row that its corpus does not use; the message is the name of the rule. Such rows count as removed."""


SIDES = ("chosen", "rejected")


@dataclass(slots=True, kw_only=True)
class Sourced:
    """Where a record comes from.

    Attributes:
        source: name of the corpus.
        parent: corpus, file and row (of rows that are read together the first) that it was made of. Records of one parent
            are counted as one row, and never stand on both sides of a split.
        part: which of its parent's records it is, from 0; None: the only one.
    """

    source: str = ""
    parent: str = ""
    part: int | None = None

    @property
    def id(self) -> str:
        """Its name, for people: what a program has to know of it stands in a field."""
        return self.parent if self.part is None else f"{self.parent}#{self.part}"


@dataclass(slots=True, kw_only=True)
class ChatRecord(Sourced):
    """A conversation that ends with the model's turn.

    Attributes:
        messages: turns `{"role": "system" | "user" | "model", "content": str}`; one with `templates.UNLEARNT` besides carries
            no loss.
        type: kind of task: instruction, translation, dialogue, story_generation, ...
        wording: entry of `wordings.WORDINGS` that phrases the request anew in every augmentation; empty: messages stay as
            they are.
    """

    messages: list[Message]
    type: str
    wording: str = ""


@dataclass(slots=True, kw_only=True)
class TextRecord(Sourced):
    """A document to be learnt whole."""

    text: str
    type: str = "text"


@dataclass(slots=True, kw_only=True)
class PreferenceRecord(Sourced):
    """A prompt (messages that end with the user's turn) and two answers of which the first is preferred."""

    prompt: list[Message]
    chosen: str
    rejected: str
    type: str = "preference"


@dataclass(slots=True, kw_only=True)
class ChoiceRecord(Sourced):
    """A multiple-choice question, for evaluation; never trained on.

    Attributes:
        choices: the options; the first has the letter A.
        answer: letter of the right one; empty where it is not published.
        subject: such as "law".
    """

    question: str
    choices: list[str]
    answer: str
    subject: str
    type: str = "multiple_choice"


Record = ChatRecord | TextRecord | PreferenceRecord | ChoiceRecord


def validate(record: Record) -> None:
    """Checks roles, the order of turns and that every text can be written as UTF-8.

    Raises:
        BadRow: the record breaks one of these.
    """
    if isinstance(record, TextRecord):
        _check_text(record.text, "text")
    elif isinstance(record, ChatRecord):
        _check_turns(record.messages, ends_with="model")
    elif isinstance(record, PreferenceRecord):
        _check_turns(record.prompt, ends_with="user")
        _check_text(record.chosen, "chosen")
        _check_text(record.rejected, "rejected")
    else:
        _check_choice(record)


def _check_turns(messages: list[Message], ends_with: str) -> None:
    if not messages:
        raise BadRow("no messages")
    for message in messages:
        if message["role"] not in ROLES:
            raise BadRow(f"a message without one of the roles {', '.join(ROLES)}")
        _check_text(message["content"], f"content of the {message['role']} turn")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    cycle = ["user", "model"] * (len(turns) // 2) + (["user"] if len(turns) % 2 else [])
    if not turns or turns != cycle or turns[-1] != ends_with:
        shown = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
        raise BadRow(
            f"turns are {shown}; expected user and model by turns up to a {ends_with} turn, after at most one system turn"
        )


def _check_choice(record: ChoiceRecord) -> None:
    for text in (record.question, record.subject, *record.choices):
        _check_text(text, "a text of the question")
    letters = "ABCDEFGHIJ"[: len(record.choices)]
    if len(record.choices) < 2 or not (record.answer == "" or record.answer in tuple(letters)):
        raise BadRow(f"answer {record.answer!r} is none of the options {', '.join(letters)}")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{what} holds half a surrogate pair") from None
