"""What one example is, and what is wrong with a row that is none."""

from dataclasses import dataclass

from gemma_keras.text.templates import ROLES, Message


class BadRow(Exception):
    """A row that cannot be read; the message says why. Such rows are quarantined."""


class SkippedRow(Exception):
    """A sound row that its corpus does not use; the message is the name of the rule. Such rows count as removed."""


@dataclass(slots=True, kw_only=True)
class ChatRecord:
    """A conversation that ends with the model's turn.

    Attributes:
        messages: turns `{"role": "system" | "user" | "model", "content": str}`.
        type: kind of task: instruction, translation, dialogue, story_generation, ...
        source: name of the corpus.
        id: corpus, file and row that it came from.
    """

    messages: list[Message]
    type: str
    source: str = ""
    id: str = ""


@dataclass(slots=True, kw_only=True)
class TextRecord:
    """A document to be learnt whole."""

    text: str
    source: str = ""
    id: str = ""
    type: str = "text"


Record = ChatRecord | TextRecord


@dataclass(slots=True, kw_only=True, frozen=True)
class Quarantined:
    """A row set aside. `row` counts from 1 in its file; 0 stands for the file as a whole."""

    file: str
    row: int
    reason: str


def validate(record: Record) -> None:
    """Checks types, roles, the order of turns and that every text can be written as UTF-8.

    Raises:
        BadRow: the record breaks one of these.
    """
    if isinstance(record, TextRecord):
        _check_text(record.text, "text")
        return
    if not isinstance(record.messages, list) or not record.messages:
        raise BadRow("no messages")
    for message in record.messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRow(f"a message without one of the roles {', '.join(ROLES)}")
        _check_text(message.get("content"), f"content of the {message['role']} turn")
    roles = [message["role"] for message in record.messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "model"] * (len(turns) // 2):
        raise BadRow(f"turns are {', '.join(roles)}; expected user and model by turns, after at most one system turn")


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise BadRow(f"{what} is {type(text).__name__}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{what} holds half a surrogate pair") from None
