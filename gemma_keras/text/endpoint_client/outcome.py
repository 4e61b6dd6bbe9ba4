"""What the answer of an OpenAI-compatible endpoint says: a text, a passing trouble, or a refusal that no repetition mends.

The schema is that of OpenAI's chat completions: `choices[0].message.content`, `choices[0].finish_reason`, `usage`, `error`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

PASSING = (408, 409, 425, 429)
"""Statuses below 500 after which another attempt may fare better."""

FATAL = (401, 402, 403, 404, 405)
FATAL_CODES = ("model_not_found", "insufficient_quota", "invalid_api_key")

_UNKNOWN_MODEL = re.compile(r"model\b.*\b(not found|not exist|unknown)|(unknown|invalid|no such) model\b", re.I | re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt brought.

    Attributes:
        text: the answer, where `reason` is empty.
        reason: why there is none.
        status: of HTTP; 0: no complete answer came.
        retry: whether another attempt may bring one.
        fatal: whether every other request would meet the same.
        tokens: of the prompt and of the answer, as the server counts them; 0 where it does not.
    """

    text: str = ""
    reason: str = ""
    status: int = 0
    retry: bool = True
    fatal: bool = False
    tokens: tuple[int, int] = (0, 0)


def judge(status: int, content: bytes) -> Outcome:
    """The outcome that an HTTP status and the whole body stand for; never raises, whatever the body holds."""
    if 200 <= status < 300:
        return _completion(status, content)
    code, message = _error(content)
    fatal = status in FATAL or 300 <= status < 400 or code in FATAL_CODES
    fatal |= status in (400, 422) and bool(_UNKNOWN_MODEL.search(message))
    reason = f"status {status}" + (f": {message}" if message else "")
    return Outcome(reason=reason, status=status, retry=status in PASSING or status >= 500, fatal=fatal)


def _completion(status: int, content: bytes) -> Outcome:
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, RecursionError):
        return Outcome(reason="the answer is no JSON", status=status)
    except (LookupError, TypeError, AttributeError):
        return Outcome(reason="the answer has no choices[0].message.content", status=status)
    usage = answer.get("usage")
    tokens = (_count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))
    if finish == "content_filter":
        return Outcome(reason="declined by the content filter", status=status, retry=False, tokens=tokens)
    reason = ""
    if finish == "length":
        reason = "cut off at max_tokens"
    elif not isinstance(text, str) or not text.strip():
        reason = "an empty answer"
    elif re.search("[\ud800-\udfff]", text):
        reason = "half a surrogate pair in the answer"
    return Outcome(text="" if reason else text, reason=reason, status=status, tokens=tokens)


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def _error(content: bytes) -> tuple[str, str]:
    """Code and message of a refusal, wherever the server puts them; the beginning of the body where it does not."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    fields = error if isinstance(error, dict) else {}
    message = next((fields[name] for name in ("message", "detail", "msg") if isinstance(fields.get(name), str)), None)
    if message is None:
        message = error if isinstance(error, str) else content[:600].decode(errors="replace")
    visible = " ".join("".join(char if char.isprintable() else " " for char in message).split())
    return str(fields.get("code") or fields.get("type") or ""), visible[:200]
