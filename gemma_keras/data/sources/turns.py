"""Conversations out of the forms in which corpora write turns: named roles, pairs, and one text with markers in it."""

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import itemgetter

from gemma_keras.data.records import BadRow, ChatRecord, Record, SkippedRow
from gemma_keras.data.sources.base import Row, answer, as_text, is_missing, optional_text, parsed, text
from gemma_keras.text.templates import UNLEARNT, Message, is_unlearnt

Turn = tuple[str, str]
"""The name that a corpus gives to the speaker, and what is said."""

MarkedTurn = tuple[str, str, bool]
"""A turn, and whether it is to be learnt."""

ONE_SIDED = "one_sided"
NO_ANSWER = "no_answer"
NOTHING_LEARNT = "nothing_to_learn"

_LEARNT_IF = {
    **dict.fromkeys(("weight", "loss", "loss_weight", "loss_scale", "loss_mask", "learn"), True),
    **dict.fromkeys(("train", "training", "trainable", "train_on_turn"), True),
    "masked": False,
}
_SPEAKS_OF_LEARNING = re.compile(r"(?:.*[_-])?(?:loss|train|training|weight|mask|masked|learn|learnt)(?:[_-].*)?")
_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "off", "0", "0.0"), False),
}

_ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter", "client"), "user"),
    **dict.fromkeys(("model", "assistant", "gpt", "chatgpt", "bing", "bard", "bot", "moss", "counselor"), "model"),
}


def role_of(name: str) -> str:
    """The role of a speaker, whatever a corpus calls it; BadRow if that is not known."""
    role = _ROLES.get(name.strip().lower())
    if role is None:
        raise BadRow(f"the role {name[:30]!r} is not known: use one of {', '.join(_ROLES)}")
    return role


def read_turn(row: Row) -> MarkedTurn:
    """A turn `{"from", "value"}` or `{"role", "content"}`; a system's without any content is an empty one."""
    name = text(row, "from", "role")
    said = optional_text if _ROLES.get(name.strip().lower()) == "system" else text
    return name, said(row, "value", "content"), is_learnt(row)


def is_learnt(turn: Row) -> bool:
    """Whether no key of a turn (weight, loss, train, ..., masked) says that it is not to be learnt from.

    Raises:
        BadRow: such a key has another value than yes or no, for shares of loss are not kept; or one that is not known speaks
            of learning, such as mask, of which some say 1 for what is learnt and others for what is not.
    """
    said = {key: value for key, value in turn.items() if not is_missing(value)}
    learnt = [_is_yes(said[key], key) == yes for key, yes in _LEARNT_IF.items() if key in said]
    for key in said:
        if key not in _LEARNT_IF and _SPEAKS_OF_LEARNING.fullmatch(key):
            raise BadRow(
                f"a turn has the key {key[:30]!r}, which may say whether it is learnt: call it train (true or false)"
            )
    return all(learnt)


def _is_yes(value: object, key: str) -> bool:
    yes = _WORDS.get(str(value).strip().lower())
    if yes is None:
        raise BadRow(f"a turn's {key} is {str(value)[:20]}, neither 0 nor 1: a turn is learnt or not, not by a share")
    return yes


def conversation(turns: Iterable[Turn | MarkedTurn], type: str) -> list[Record]:
    """The turns as one record. Those of one speaker in a row become one, a line each, from which nothing is learnt if
    from one of them nothing is; empty system turns, a reply to nothing at the front and a question without a reply at
    the end are left out. Other empty turns stay: that is for the rules of cleaning.

    Raises:
        BadRow: there are no turns, or a speaker has a name that is not known.
        SkippedRow: no question with its reply is among them, or no reply is to be learnt.
    """
    said = [(role_of(name), content, all(mark)) for name, content, *mark in turns]
    said = [turn for turn in said if turn[0] != "system" or turn[1].strip()]
    messages: list[Message] = []
    for role, same in groupby(said, key=itemgetter(0)):
        contents, learnt = zip(*[turn[1:] for turn in same])
        messages.append({"role": role, "content": "\n".join(contents)} | ({} if all(learnt) else UNLEARNT))
    if not messages:
        raise BadRow("no turns")
    first = 1 if messages[0]["role"] == "system" else 0
    if messages[first:] and messages[first]["role"] == "model":
        del messages[first]
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    if len(messages) <= first:
        raise SkippedRow(ONE_SIDED)
    if not any(message["role"] == "model" and not is_unlearnt(message) for message in messages):
        raise SkippedRow(NOTHING_LEARNT)
    return [ChatRecord(messages=messages, type=type)]


def pairs(row: Row, key: str) -> list[Turn | MarkedTurn]:
    """The turns of `[[question, reply], ...]` under `key`, oldest first, or of turns as `read_turn` has them; none where the
    row has nothing there."""
    rounds = parsed(row.get(key))
    if rounds is None or (isinstance(rounds, str) and not rounds.strip()):
        return []
    if not isinstance(rounds, list):
        raise BadRow(f"{key} is {type(rounds).__name__}, not a list")
    turns: list[Turn | MarkedTurn] = []
    for pair in rounds:
        if isinstance(pair, dict):
            turns.append(read_turn(pair))
        elif isinstance(pair, list | tuple) and len(pair) == 2:
            turns += [(name, as_text(said, key)) for name, said in zip(("user", "model"), pair)]
        else:
            raise BadRow(f"{key} holds something else than pairs of strings")
    return turns


def marked_turns(said: str, marker: re.Pattern[str]) -> list[Turn]:
    """The turns of a text in which each begins with a `marker`, whose one group names the speaker; blanks around what
    is said are left out. BadRow if the text begins otherwise."""
    before, *parts = marker.split(said)
    if before.strip() or not parts:
        raise BadRow("the text does not begin with the marker of a turn")
    return [(name, content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]


def with_input(question: str, given: str) -> str:
    """A request and what it is about, as one text; `given` may say in words that there is nothing."""
    given = given.strip()
    # No blank remains at the ends, and only a short text is tried: the patterns cannot take long on any input.
    if not given or (len(given) < 40 and _NO_INPUT.fullmatch(given)):
        return question
    if not question.strip():
        return given
    label = "所给内容：" if CHINESE.search(question) else "Input:"
    return f"{question.rstrip()}\n\n{label}\n{_INPUT_LABEL.sub('', given, count=1)}"


def exchange(row: Row, type: str, question: str, *replies: str) -> list[Record]:
    """A question and the reply under the first of the keys `replies`, after the row's system text and history, if it has any."""
    reply, system, history = text(row, *replies), optional_text(row, "system"), pairs(row, "history")
    if not system and not history:  # as of most rows, which are spared the general way
        return answer(question, reply, type)
    return conversation([("system", system), *history, ("user", question), ("model", reply)], type)


def columns(
    type: str, question: tuple[str, ...], reply: tuple[str, ...], given: tuple[str, ...] = ()
) -> Callable[[Row], list[Record]]:
    """How rows are read that hold a question, its answer and perhaps what it is about: each under the first key that there is.

    A row may have a system text and a history, too.
    """

    def read(row: Row) -> list[Record]:
        return exchange(row, type, with_input(text(row, *question), optional_text(row, *given)), *reply)

    return read


def alpaca(type: str) -> Callable[[Row], list[Record]]:
    """How rows of Alpaca's keys are read."""
    return columns(type, ("instruction",), ("output",), ("input",))


# Translated Alpaca rows say "no input" in words, and some repeat the label that goes before the input.
_NO_INPUT = re.compile(
    r"\W*(&lt;|<)?\s*(无|无输入|无需输入|没有输入|不需要输入|不适用|noinput|no input|n/a)\s*(&gt;|>)?\W*", re.IGNORECASE
)
_INPUT_LABEL = re.compile(r"\A#*\s*输入\s*[:：]\s*")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
