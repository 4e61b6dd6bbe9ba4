"""Rows of a file, as corpora and benchmarks have them, to questions with options and known answers."""

import contextlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gemma_keras.config.errors import UserError
from gemma_keras.solvers.trace import LETTERS, Question

FORM = (
    'give objects such as {"question": "...", "choices": ["...", "..."], "answer": "A", "id": "..."}, or a table with the '
    "columns question, A, B, C, D, answer"
)
# Keys in lower case: those of a row may be in any.
QUESTION = ("question", "problem", "query", "问题", "题目")
_CHOICES = ("choices", "options", "选项")
_ANSWER = ("answer", "answerkey", "answer_key", "答案")
_ID = ("id", "")  # a first column without a name numbers the rows
# Of options in columns of their own: A, option_a, 选项A; but not a, which may be anything.
_OPTION = re.compile(r"([A-J])|(?i:option|choice|选项)[ _]?([A-Ja-j])")
_INDEX = re.compile(r"\d+(?:\.0)?")

Given = tuple[str, Any]
"""Where a row stands, as errors call it, and the row: an object, or the text of a question."""


class Asked(NamedTuple):
    """A question and the right answer where it is known: a letter for one with options; empty: unknown."""

    question: Question
    expected: str = ""


@dataclass(slots=True)
class _Read:
    """A row as it was read; `labels` are what its file calls the options, `answer` is as it stands there."""

    where: str
    question: Question
    labels: list[str]
    answer: str


def is_question(row: Mapping[str, Any]) -> bool:
    """Whether an object has a key for its question."""
    return any(name.strip().lower() in QUESTION for name in row)


def to_questions(rows: Sequence[Given], origin: str) -> list[Asked]:
    """The questions of rows.

    Options are a list, an object by letters (or of the lists `text` and `label`), or columns A, B, and so on. The answer of
    a question with options is the letter of one, its text, or its index, if all numeric answers of the file together leave
    no doubt whether indices count from 0 or from 1.

    Raises:
        UserError: a row that is no question, an answer that is no option, or indices that may mean either.
    """
    if not rows:
        raise UserError(f"{origin} holds no question; {FORM}.")
    read = [_read_row(row, where) for where, row in rows]
    expected = [_read_expected(one) for one in read]
    numbered = [one for one, answer in zip(read, expected) if answer is None]
    counted = iter(_read_numbers(numbered, origin) if numbered else "")
    return [Asked(one.question, next(counted) if answer is None else answer) for one, answer in zip(read, expected)]


def replace_surrogates(text: str) -> str:
    """The text with "?" for half a surrogate pair, which is no text: JSON can spell it, and a command line's bytes, too."""
    return text.encode("utf-8", "replace").decode()


def _read_row(row: Any, where: str) -> _Read:
    if isinstance(row, str):
        row = {"question": row}
    if not isinstance(row, dict):
        raise UserError(f"{where} is {json.dumps(row, ensure_ascii=False, default=str)[:40]}, no question; {FORM}.")
    labels, choices = _read_options(row, where)
    if len(choices) > len(LETTERS):
        raise UserError(f"{where} has {len(choices)} choices; give at most {len(LETTERS)}.")
    question = _read_text(_find_value(row, QUESTION), "question", where)
    if not question.strip():
        keys = "" if is_question(row) else f" but {', '.join(map(str, row))[:100]}"
        raise UserError(f"{where} has no question{keys}; {FORM}.")
    answer = _read_text(_find_value(row, _ANSWER), "answer", where).strip()
    identifier = _read_text(_find_value(row, _ID), "id", where)
    return _Read(where, Question(question, tuple(choices), identifier), labels, answer)


def _find_value(row: dict[str, Any], names: Sequence[str]) -> Any:
    """What stands under the first of these names that the row has something under."""
    found = {str(name).strip().lower(): value for name, value in reversed(row.items()) if not _is_missing(value)}
    return next((found[name] for name in names if name in found), None)


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _read_text(value: Any, name: str, where: str) -> str:
    """A text or number of a row; empty where it is missing."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{where} has a {type(value).__name__} as its {name}; {FORM}.")
    return replace_surrogates(str(value))


def _read_options(row: dict[str, Any], where: str) -> tuple[list[str], list[str]]:
    """Labels and texts of a row's options; none for an open question."""
    listed = _find_value(row, _CHOICES)
    if isinstance(listed, str):  # JSON, as a table holds it; any other text is no list of options
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(listed)
    if listed is None or listed == []:
        listed = _read_columns(row)
    labels: Any = None
    if isinstance(listed, dict) and {"text", "label"} <= listed.keys():
        labels, listed = listed["label"], listed["text"]
    elif isinstance(listed, dict):
        ordered = sorted(listed.items()) if all(len(str(key).strip()) == 1 for key in listed) else list(listed.items())
        listed = _drop_empty_ends([value for _, value in ordered])
        labels = [key for key, _ in ordered][: len(listed)]
    texts = isinstance(listed, list) and all(
        isinstance(choice, (str, int, float)) and not isinstance(choice, bool) for choice in listed
    )
    if not texts or len(listed) == 1 or (labels is not None and len(labels) != len(listed)):
        raise UserError(f"{where} has choices that are no list of two or more texts; {FORM}.")
    choices = [replace_surrogates(str(choice)) for choice in listed]
    letters = LETTERS[: len(choices)] if labels is None else [_normalize_letter(str(label)) for label in labels]
    return list(letters), _strip_letters(choices)


def _read_columns(row: dict[str, Any]) -> list[Any]:
    """The options that stand in columns of their own."""
    found = {}
    for name, value in row.items():
        letter = _OPTION.fullmatch(str(name).strip())
        if letter:
            found[(letter[1] or letter[2]).upper()] = value
    return _drop_empty_ends([found[letter] for letter in sorted(found)])


def _drop_empty_ends(listed: list[Any]) -> list[Any]:
    """The options without empty places at the end; one in between keeps the letters of those after it."""
    filled = ["" if _is_missing(value) else value for value in listed]
    while filled and filled[-1] == "":
        filled.pop()
    return filled


def _strip_letters(choices: list[str]) -> list[str]:
    """The options without "A." or "(A)" before them, where all have their own."""
    bare = [_strip_letter(letter, text) for letter, text in zip(LETTERS, choices)]
    return choices if any(after == text for after, text in zip(bare, choices)) else bare


def _strip_letter(letter: str, text: str) -> str:
    """What follows "A." or "(A)" in a text that begins so; else the text."""
    return re.sub(rf"^\s*(?:{letter}[.．]|[(（]{letter}[)）])\s*(?=\S)", "", text)


def _normalize_letter(text: str) -> str:
    """A letter as answers give it: "b", "Ｂ", "(B)", "B." and "B" are one."""
    return unicodedata.normalize("NFKC", text).strip().strip("().、。 ").upper()


def _read_expected(one: _Read) -> str | None:
    """The answer, of a question with options their letter, by which or by whose text it names one; None: it is a number."""
    if not one.question.choices or not one.answer:
        return one.answer
    label = _normalize_letter(one.answer)
    if label in one.labels:
        return one.question.letters[one.labels.index(label)]
    if _INDEX.fullmatch(one.answer):
        return None
    letter = _find_letter_of_text(one)
    if not letter:
        raise UserError(
            f"{one.where} has the answer {one.answer!r}; for a question with choices give its letter, or the text of one."
        )
    return letter


def _find_letter_of_text(one: _Read) -> str:
    """The letter of the one option that has the answer's text; empty where none or several have it."""
    options = zip(one.question.letters, one.question.choices)
    found = [letter for letter, text in options if text.strip() in (one.answer, _strip_letter(letter, one.answer))]
    return found[0] if len(found) == 1 else ""


def _read_numbers(numbered: Sequence[_Read], origin: str) -> str:
    """The letters that numbers stand for: texts of options, or indices from 0 or from 1, the same for all."""
    read = []
    for one in numbered:
        index = int(float(one.answer))
        at = [one.question.letters[max(place, 0) : place + 1] for place in (index, index - 1)]
        read.append([_find_letter_of_text(one), *at])
    ways = {letters for letters in zip(*read) if all(letters)}
    if len(ways) == 1:
        return "".join(*ways)
    first = next((one for one, letters in zip(numbered, read) if not any(letters)), numbered[0])
    why = (
        "may be texts of choices, or count them from 0 or from 1" if ways else "are neither texts nor places of choices"
    )
    raise UserError(
        f"{first.where} has the answer {first.answer!r}, and the numbers that {origin} gives as answers {why}; give letters."
    )
