"""Messages and lists, as prompts are put together."""

import json
from collections.abc import Sequence

from gemma_keras.text.templates import Message


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def model(content: str) -> Message:
    return {"role": "model", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def as_list(sub_questions: Sequence[str]) -> str:
    """A decomposition as a numbered list."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(sub_questions, 1))


def as_object(sub_questions: Sequence[str]) -> str:
    """A decomposition as JSON."""
    return json.dumps({"sub_questions": sub_questions}, ensure_ascii=False)
