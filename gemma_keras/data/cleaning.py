"""Rules that mend rows, and rules that remove them. Each rule is a name in the report."""

import hashlib
import re
from collections.abc import Callable

import ftfy

from gemma_keras.config.schema import CleaningConfig
from gemma_keras.data.records import ChatRecord, ChoiceRecord, PreferenceRecord, Record, TextRecord
from gemma_keras.text.templates import Message

EMPTY = "empty"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
IN_VALIDATION = "in_validation"
TOO_SHORT = "too_few_tokens"
TOO_LONG = "too_many_tokens"

ENCODING = "encoding"
RESIDUE = "residue"

# Everything but printable ASCII, Latin signs common in Chinese text, typographic punctuation and symbols, CJK and what
# lies above. Text that was decoded in the wrong way always holds a letter outside: the first byte of a character.
_UNUSUAL = re.compile(
    "[^\t\n -\\[\\]-~°±·×÷\u2010-\u2027\u2100-\u2592\u2e80-\ud7ff\uf900-\ufefe\uff00-\uffef\U00010000-\U0010ffff]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")

_SINGLE_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z]\Z")
# Not where the text goes on after it as after a word: it is then spoken of.
_SPELT_BREAKS = re.compile(r"(?:\\n\n?)+(?![\\，。、；：！？）》”’,.;:!?)])")
_ESCAPES = re.compile(r"\\(?!n(?![a-z]))|```")
_CODE = re.compile(r"[{}(（=“‘]\\n|[\"`]|&quot;|(?<![A-Za-z])'|'(?![A-Za-z])|%[\d.]*[dsf]\b|<<")

# A stripped turn of this role ("": any) that the pattern matches as a whole is cut down to the pattern's group.
# Patterns look at the ends of a turn only, and leave it alone where it holds a whole transcript or HTML.
_TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("tigerbot", "user", r"### Instruction:(.*)"),
    ("tigerbot", "user", r"(.*)\n### Response:"),
    ("tigerbot", "model", r"### Response:(.*)"),
    ("chatmed", "user", r"<s>\s*问：(.*)\n答："),
    ("moss", "user", r"<\|Human\|>:(.*)"),
    ("moss", "model", r"<\|MOSS\|>:(.*)"),
    ("moss", "model", r"<\|(?:Inner Thoughts|Commands|Results)\|>: *None<eo[tcr]>(.*)"),
    ("moss", "", r"(.*)<eo[hm]>"),
    ("llama", "user", r"(?:<s>\s*)?\[INST\]((?:(?!\[/?INST\]).)*)(?:\[/INST\])?"),
    ("llama", "user", r"((?:(?!\[/?INST\]).)*)\[/INST\]"),
    ("llama", "", r"((?:(?!</?s>).)*)(?<! )</s>"),  # alone: with <s> before it, it strikes text out in HTML
)
_PATTERNS = tuple((role, re.compile(pattern, re.DOTALL)) for _, role, pattern in _TEMPLATES)
# What a turn with residue starts or ends with: spares all others the patterns.
_OPENINGS = ("### Instruction:", "### Response:", "<s>", "<|", "[INST]")
_CLOSINGS = ("### Response:", "<eoh>", "<eom>", "[/INST]", "</s>")


def contaminated(corpus: str) -> str:
    """Name of the rule that removes rows which hold text of an evaluation corpus."""
    return f"contaminated_{corpus}"


def contents(record: Record) -> list[str]:
    """The texts that make a row what it is: turns but system ones; the document; prompt and answers; question and options."""
    if isinstance(record, TextRecord):
        return [record.text]
    if isinstance(record, ChoiceRecord):
        return [record.question, *record.choices]
    if isinstance(record, PreferenceRecord):
        return [*_turns(record.prompt), record.chosen, record.rejected]
    return _turns(record.messages)


def _turns(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "system"]


def is_empty(record: Record) -> bool:
    """Whether a user's or the model's turn, the document, an answer of a pair or a question holds nothing but blanks."""
    texts = [record.question] if isinstance(record, ChoiceRecord) else contents(record)
    return any(_is_blank(text) for text in texts)


def _is_blank(text: str) -> bool:
    text = text.strip()
    return not text or (_INVISIBLE.match(text) is not None and not _INVISIBLE.sub("", text).strip())


def content_key(record: Record) -> int:
    """64 bits, equal for records with the same `contents` but for blanks and what cannot be seen: a copy, or seen before."""
    # The separator cannot occur within UTF-8, so that ["a", "b"] and ["ab"] differ.
    texts = [_INVISIBLE.sub("", text) if _INVISIBLE.search(text) else text for text in contents(record)]
    parts = ["".join(text.split()).encode("utf-8", "surrogatepass") for text in texts]
    return int.from_bytes(hashlib.blake2b(b"\xff".join(parts), digest_size=8).digest(), "little")


class Mender:
    """Mends the texts of records in place.

    Rule "encoding" (`repair`): line ends become LF; control characters but tab, byte order marks and marks that turn
    the direction of writing go; text that was decoded in the wrong way is decoded anew (by ftfy; widths, quotation
    marks and compositions stay as they are); a spelt out backslash-n becomes a line break, unless the text holds code
    or LaTeX. Rule "residue": prompt templates at the ends of a turn go.
    """

    def __init__(self, config: CleaningConfig):
        self._repair = config.repair
        self._residue = config.residue

    def mend(self, record: Record) -> tuple[str, ...]:
        """Mends `record`; the names of the rules that changed something."""
        changed = []
        if self._repair and _rewrite(record, lambda text, role: repaired(text, spelt_breaks=role != "question")):
            changed.append(ENCODING)
        if self._residue and not isinstance(record, TextRecord | ChoiceRecord) and _rewrite(record, without_residue):
            changed.append(RESIDUE)
        return tuple(changed)


def repaired(text: str, spelt_breaks: bool = True) -> str:
    """`text` by the rule "encoding"; backslash-n stays as it is unless `spelt_breaks`.

    >>> repaired("ä½\\xa0å¥½\\r\\n")
    '你好\\n'
    """
    if not _UNUSUAL.search(text):
        return text
    decoded = ftfy.fix_encoding(text)
    # A Chinese character that was misread is three; one sign for two, such as "Â£", may be what the text speaks of.
    text = decoded if len(text) - len(decoded) > 1 else text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS.sub("", text)
    if spelt_breaks and "\\n" in text and not _ESCAPES.search(text) and not _in_code(text):
        text = _SPELT_BREAKS.sub(_line_breaks, text)
    return text


def _line_breaks(spelt: re.Match[str]) -> str:
    # Between two single letters it is the name of a set, or a difference.
    if _SINGLE_LETTER.search(spelt.string[: spelt.start()]) and spelt.string[spelt.end() : spelt.end() + 1].isascii():
        return spelt[0]
    return "\n" * spelt[0].count("\\n")


def _in_code(text: str) -> bool:
    """Whether a line with a spelt out line break looks like code, or quotes it."""
    return any(_CODE.search(line) for line in text.split("\n") if "\\n" in line)


def without_residue(text: str, role: str) -> str:
    """`text` of a turn of `role` without the templates at its ends, however often they are repeated.

    >>> without_residue("\\n\\n### Instruction:\\n感冒吃什么药", "user")
    '感冒吃什么药'
    """
    rest = text.strip()
    while rest.startswith(_OPENINGS) or rest.endswith(_CLOSINGS):
        for wanted, pattern in _PATTERNS:
            match = pattern.fullmatch(rest) if wanted in ("", role) else None
            if match:
                rest = text = match[1].strip()
                break
        else:
            break
    return text


def _rewrite(record: Record, mend: Callable[[str, str], str]) -> bool:
    """Replaces every text by `mend(text, role)`; whether one changed. The role of a question or option is "question"."""
    before = _texts(record)
    after = [mend(text, role) for text, role in before]
    if all(new is old or new == old for new, (old, _) in zip(after, before)):
        return False
    if isinstance(record, TextRecord):
        (record.text,) = after
    elif isinstance(record, ChoiceRecord):
        record.question, *record.choices = after
    else:
        messages = record.messages if isinstance(record, ChatRecord) else record.prompt
        for message, text in zip(messages, after):
            message["content"] = text
        if isinstance(record, PreferenceRecord):
            record.chosen, record.rejected = after[-2:]
    return True


def _texts(record: Record) -> list[tuple[str, str]]:
    if isinstance(record, TextRecord):
        return [(record.text, "text")]
    if isinstance(record, ChoiceRecord):
        return [(text, "question") for text in (record.question, *record.choices)]
    if isinstance(record, PreferenceRecord):
        turns = [(message["content"], message["role"]) for message in record.prompt]
        return [*turns, (record.chosen, "model"), (record.rejected, "model")]
    return [(message["content"], message["role"]) for message in record.messages]
