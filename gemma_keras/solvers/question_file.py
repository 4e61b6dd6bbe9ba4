"""Questions from a file or another text: one a line, or one JSON object a line."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gemma_keras.config.errors import UserError
from gemma_keras.solvers.trace import Question

MOST_CHOICES = 10
_FORM = 'give an object such as {"question": "...", "choices": ["...", "..."], "answer": "A", "id": "..."} a line'


class Asked(NamedTuple):
    """A question and the right answer where it is known: a letter for one with options; empty: unknown."""

    question: Question
    expected: str = ""


def read_questions(path: str) -> list[Asked]:
    """The questions of a file.

    Raises:
        UserError: the file cannot be read, holds no question, or has a line that is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"solver.input={path} cannot be read ({error.strerror}); give a file of questions.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"solver.input={path} is no UTF-8 text ({error}); save it as UTF-8.") from error
    return parse_questions(text, f"solver.input={path}")


def parse_questions(text: str, origin: str) -> list[Asked]:
    """The questions of a text; JSON lines where its first one begins with a brace. Blank lines are passed over.

    Args:
        origin: what errors call the text.

    Raises:
        UserError: as `read_questions`.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{origin} holds no question; write one a line, or {_FORM}.")
    if not lines[0][1].startswith("{"):
        return [Asked(Question(line)) for _, line in lines]
    return [_read(line, f"line {number} of {origin}") for number, line in lines]


def _read(line: str, where: str) -> Asked:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); {_FORM}.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}; {_FORM}.")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices) or len(choices) == 1:
        raise UserError(f"{where} has choices that are no list of two or more texts; {_FORM}.")
    if len(choices) > MOST_CHOICES:
        raise UserError(f"{where} has {len(choices)} choices; give at most {MOST_CHOICES}.")
    question = Question(_text(row, "question", where), tuple(map(cleaned, choices)), _text(row, "id", where))
    if not question.text.strip():
        raise UserError(f"{where} has no question; {_FORM}.")
    expected = _text(row, "answer", where).strip()
    if choices and expected and expected not in tuple(question.letters):
        raise UserError(f"{where} has the answer {expected!r}; for a question with choices give its letter.")
    return Asked(question, expected)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A text or number of a row; empty where it is missing."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{where} has a {type(value).__name__} as its {name}; {_FORM}.")
    return cleaned(str(value))


def cleaned(text: str) -> str:
    """The text with "?" for half a surrogate pair, which is no text: JSON can spell it, and a command line's bytes, too."""
    return text.encode("utf-8", "replace").decode()
