"""What an answer may be, and its compilation by llguidance."""

import re
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from gemma_keras.config.errors import UserError

# JSON in one line, with blanks where Python's json writes them or without; more could go on for ever.
_JSON_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_PATTERNS = re.compile(r'"pattern"\s*:\s*"((?:[^"\\]|\\.)*)"')
# Escapes by code, of blanks, of classes, of the character itself; sets and counts; other syntax; any character.
_ATOM = re.compile(
    r"\\(?:x|u|U)\{?(?P<code>(?<=\{)[0-9A-Fa-f]+(?=\})|(?<=x)[0-9A-Fa-f]{2}|(?<=u)[0-9A-Fa-f]{4})\}?"
    r"|\\(?P<blank>[nrt])|\\[pP](?:\{[^}]*\}|.)|\\[A-Za-z]|\\(?P<itself>.)"
    r"|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|[.^$*+?()|]|(?P<plain>.)",
    re.DOTALL,
)
_BLANKS = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer is one of `options`."""

    options: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole answer matches `pattern`, in the syntax of Rust's `regex`: no look-around, no back-references."""

    pattern: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON in one line that fits `schema`, itself JSON; keys come in the order of the schema."""

    schema: str


Constraint = Choice | Regex | JsonSchema


def compiled(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    """llguidance's matcher of `constraint` at its start.

    Raises:
        UserError: no options, no text, a pattern with faults, or a schema that llguidance does not know how to follow.
    """
    if isinstance(constraint, Choice) and not constraint.options:
        raise UserError("a choice without options was given; give at least one.")
    texts = constraint.options if isinstance(constraint, Choice) else (_text(constraint),)
    if any(_HALF_PAIR.search(text) for text in texts):
        raise UserError(f"{described(constraint)} holds half of a surrogate pair, which is no text; remove it.")
    try:
        matcher = LLMatcher(tokenizer, _source(constraint), log_level=0, limits=LLParserLimits(verbose_errors=False))
        message = matcher.get_error()
    except ValueError as error:
        message = str(error)
    if message:
        expected = "a JSON schema" if isinstance(constraint, JsonSchema) else "a pattern of Rust's regex"
        raise UserError(
            f"{described(constraint)} cannot be used ({_reason(message)}); give {expected} that llguidance knows."
        )
    return matcher


def _source(constraint: Constraint) -> str:
    if isinstance(constraint, JsonSchema):
        return LLMatcher.grammar_from_json_schema(constraint.schema, defaults=_JSON_LAYOUT)
    return LLMatcher.grammar_from_regex(_text(constraint))


def _text(constraint: Constraint) -> str:
    """The schema, or the pattern of the answers."""
    if isinstance(constraint, Choice):
        return "|".join(map(re.escape, constraint.options))
    return constraint.pattern if isinstance(constraint, Regex) else constraint.schema


def literals(constraint: Constraint) -> list[str]:
    """Texts that patterns of the constraint may spell out: runs of characters, then single ones."""
    if isinstance(constraint, Choice):
        return []
    patterns = [constraint.pattern] if isinstance(constraint, Regex) else _PATTERNS.findall(constraint.schema)
    runs = [run for pattern in patterns for run in _runs(pattern)]
    return list(dict.fromkeys([run for run in runs if len(run) > 1] + list("".join(runs))))


def _runs(pattern: str) -> list[str]:
    r"""Runs of characters between the syntax of a pattern.

    >>> _runs(r"[^a]{3,}\.\u7b54案：\n[A-D]+")
    ['.答案：\n']
    """
    characters = []
    for atom in _ATOM.finditer(pattern):
        code, blank = int(atom["code"] or "0", 16), atom["blank"]
        is_text = 0 < code < 0x110000 and not 0xD800 <= code < 0xE000
        characters.append(chr(code) if is_text else _BLANKS[blank] if blank else atom["itself"] or atom["plain"])
    return [run for run in "".join(c or "\0" for c in characters).split("\0") if run]


def described(constraint: Constraint) -> str:
    """What an error calls `constraint`."""
    if isinstance(constraint, Choice):
        return f"a choice of {len(constraint.options)}"
    kind = "the pattern" if isinstance(constraint, Regex) else "the JSON schema"
    text = _text(constraint).encode(errors="backslashreplace").decode()
    return f"{kind} {text if len(text) <= 80 else text[:80] + '...'}"


def _reason(message: str) -> str:
    """What a message of llguidance says, without places in a grammar that the user never sees.

    >>> _reason('at 1(8): invalid regex "(a" (in regex): regex parse error:\\n  (a\\n  ^\\nerror: unclosed group\\n')
    'unclosed group'
    """
    lines = message.splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[0] if told else re.sub(r"^at \d+\(\d+\): ", "", lines[0])
