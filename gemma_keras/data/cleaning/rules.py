"""Rules that mend rows, and rules that remove them. Each rule is a name in the report."""

import hashlib
import re
from collections.abc import Callable

import ftfy
from ftfy.chardata import C1_CONTROL_RE, UTF8_DETECTOR_RE

from gemma_keras.config.sections import CleaningConfig
from gemma_keras.data.records import ChatRecord, ChoiceRecord, PreferenceRecord, Record, TextRecord
from gemma_keras.text.templates import Message, is_unlearnt

EMPTY = "empty"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
IN_VALIDATION = "in_validation"
ASKED_IN_VALIDATION = "asked_in_validation"
TOO_SHORT = "too_few_tokens"
TOO_LONG = "too_many_tokens"

ENCODING = "encoding"
RESIDUE = "residue"

# Everything but printable ASCII, Latin signs common in Chinese text, typographic punctuation and symbols, CJK and what
# lies above. Text that was decoded in the wrong way always holds a letter outside: the first byte of a character.
_UNUSUAL = re.compile(
    "[^\t\n -\\[\\]-~°±·×÷\u2010-\u2027\u2100-\u2592\u2e80-\ud7ff\uf900-\ufefe\uff00-\uffef\U00010000-\U0010ffff]"
)
# Of the control characters those that separate: as Unicode breaks lines (vertical tab, form feed, NEL, line and paragraph
# separator) and as str.splitlines does (file, group and record separator); the unit separator parts words only.
_SEPARATORS = {ord(mark): "\n" for mark in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"} | {0x1F: " "}
# Elsewhere this byte is the ellipsis of Windows-1252, which ftfy restores.
_CHINESE_NEL = re.compile("(?<=[\u2e80-\uffef])\x85|(?<![\x80-\xff])\x85(?=[\u2e80-\uffef])")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# All of them are unprintable, which `_visible` relies on.
_INVISIBLE = "\xad\u200b-\u200f\u2060-\u2064\ufeff"
_INVISIBLES = re.compile(f"[{_INVISIBLE}]")
_VISIBLE = re.compile(rf"[^\s{_INVISIBLE}]")

_BLANKS = (" ", "\t", "\u3000")
_BLANK_LINES = re.compile(r"\A(?:[ \t\u3000]*\n)+")

# Each word begins otherwise than the signs between them, and so nothing can backtrack.
_GREETING = re.compile(
    r"(?:你好|您好|你们好|大家好|嗨|嘿|哈喽|哈啰|喂|在吗|在么|早上好|上午好|中午好|下午好|晚上好|早安|晚安|请问|继续|"
    r"hello|hi|hey|good (?:morning|afternoon|evening)|continue|[呀啊哦呢\W_])+",
    re.IGNORECASE,
)

_SPELT_BREAK = re.compile(r"\\n\n?")
# Ends a sentence, stands within Chinese text, or ends a sum ("= 12 km"). After other letters it may be a difference.
_CERTAIN_BREAK = re.compile(
    r"(?<=[。！？：；…）》.!?:;)\]\n])\\n(?![ \t])"
    r"|(?<=[\u4e00-\u9fff])(?:\\n)+(?=[\u4e00-\u9fffA-Z\d“《（])"
    r"|= [\d.,/]*\d(?: ?[A-Za-z%$]+)?\\n(?! )"
)
_SPOKEN_OF = re.compile(r"\\n[，。、；：！？）》’,.;:!?)]|换行|转义|正则|分隔符|(?i:newline|line break|escape|regex)")
_ESCAPES = re.compile(r"\\(?!n(?![a-z]))|```")
_CODE = re.compile(r"[{}(（=“‘]\\n|[\"`]|&quot;|(?<![A-Za-z])'|'(?![A-Za-z])|%[\d.]*[dsf]\b|<<")

# A stripped turn of this role that the pattern matches as a whole is cut down to the pattern's group. Patterns look at
# the ends of a turn only, and leave alone whole transcripts, HTML and prose that starts or ends with a mark.
_TEMPLATES = tuple(
    (role, re.compile(pattern, re.DOTALL))
    for role, pattern in (
        ("user", r"### Instruction:(|\n.*)"),  # TigerBot
        ("user", r"(.*)\n### Response:"),
        ("model", r"### Response:(|\n.*)"),
        ("user", r"<s>\s*问：(.*)\n答："),  # ChatMed
        ("user", r"<\|Human\|>:(.*?)(?:<eoh>)?"),  # MOSS
        ("model", r"<\|(?:Inner Thoughts|Commands|Results)\|>: *None<eo[tcr]>(.*)"),
        ("model", r"<\|MOSS\|>:(.*?)(?:<eom>)?"),
        ("user", r"(?:<s>\s*)?\[INST\]((?:(?!\[/?INST\]).)*)\[/INST\]"),  # Llama
        ("user", r"<s>\s*Human:((?:(?!</?s>).)*)</s>"),
        ("model", r"<s>\s*Assistant:((?:(?!</?s>).)*)</s>"),
        ("user", r"(?:<s>\s*)?Human:((?:(?!\n(?:Human|Assistant):).)*)\nAssistant:"),  # BELLE
    )
)
# What a turn with residue starts or ends with: spares all others the patterns.
_OPENINGS = ("### Instruction:", "### Response:", "<s>", "<|", "[INST]", "Human:")
_CLOSINGS = ("### Response:",)


def contaminated(corpus: str) -> str:
    """Name of the rule that removes rows which hold text of an evaluation corpus."""
    return f"contaminated_{corpus}"


def contents(record: Record) -> list[str]:
    """The texts that make a row what it is: turns but system ones; the document; prompt and answers; question and options."""
    return [text for text, role in _texts(record) if role != "system"]


def question(record: Record) -> list[str]:
    """The texts that say what a row asks, whatever its answer; of a document or an exam question all of it.

    The first turn of the user, with the passage if it is about one. System turns do not count otherwise: they say how to
    answer, and the same question with and without one is the same. A mere greeting asks nothing: the turns after it count,
    too, up to the first that is more. Where requests are worded anew the wording's name counts, for it says what to do.
    """
    messages = record_messages(record)
    if not messages:
        return contents(record)
    asked = [message["content"] for message in messages if message["role"] == "user"]
    more = next((number for number, said in enumerate(asked) if not _GREETING.fullmatch(said)), len(asked) - 1)
    passage = [message["content"] for message in messages if message["role"] == "system" and record.type == "reading"]
    return [*passage, *asked[: more + 1], *filter(None, [getattr(record, "wording", "")])]


def record_messages(record: Record) -> list[Message]:
    """The turns of a conversation or of a preference pair's prompt; none of other records."""
    if isinstance(record, ChatRecord):
        return record.messages
    return record.prompt if isinstance(record, PreferenceRecord) else []


def is_empty(record: Record) -> bool:
    """Whether a user's or the model's turn, the document, an answer of a pair or a question holds nothing to be seen."""
    texts = [record.question] if isinstance(record, ChoiceRecord) else contents(record)
    return not all(map(_VISIBLE.search, texts))


def content_key(record: Record) -> int:
    """64 bits, equal for records with the same `contents` but for blanks and invisible characters: what counts as a copy.

    Conversations from which other turns are to be learnt are no copies.
    """
    return _digest(contents(record), b"\xfe" + unlearnt.encode() if (unlearnt := unlearnt_turns(record)) else b"")


def unlearnt_turns(record: Record) -> str:
    """Which turns of a record are not to be learnt from, as a string; empty: they all are."""
    return ",".join(str(n) for n, message in enumerate(record_messages(record)) if is_unlearnt(message))


def question_key(record: Record) -> int:
    """64 bits, equal for records with the same `question` but for blanks and invisible characters."""
    return _digest(question(record))


def _digest(texts: list[str], more: bytes = b"") -> int:
    # The separator cannot occur within UTF-8, so that ["a", "b"] and ["ab"] differ.
    parts = [_visible(text).encode("utf-8", "surrogatepass") for text in texts]
    return int.from_bytes(hashlib.blake2b(b"\xff".join(parts) + more, digest_size=8).digest(), "little")


def _visible(text: str) -> str:
    text = "".join(text.split())
    return text if text.isprintable() else _INVISIBLES.sub("", text)


def mend(record: Record, config: CleaningConfig) -> tuple[str, ...]:
    """Mends the texts of a record in place; returns the names of the rules that changed something.

    Rule "encoding" (`repair`): line ends and other control characters that separate (form feeds, vertical tabs, ...) become
    LF; blank lines in front that start with a blank, other control characters but tab, byte order marks, zero-width spaces
    and marks that turn the direction of writing go; text with several characters that were decoded in the wrong way is
    decoded anew (by ftfy; widths, quotation marks and compositions stay as they are); a spelt out backslash-n becomes a line
    break, unless the text holds code or LaTeX or speaks of it. Rule "residue": prompt templates at the ends of a turn go.

    A system turn in which nothing is to be seen is no turn, and goes in any case.
    """
    changed = []
    if config.repair and _rewrite(record, lambda text, role: repaired(text, spelt_breaks=role != "question")):
        changed.append(ENCODING)
    if config.residue and not isinstance(record, TextRecord | ChoiceRecord) and _rewrite(record, without_residue):
        changed.append(RESIDUE)
    messages = record_messages(record)
    if messages and messages[0]["role"] == "system" and not _VISIBLE.search(messages[0]["content"]):
        del messages[0]
    return tuple(changed)


def repaired(text: str, spelt_breaks: bool = True) -> str:
    """`text` by the rule "encoding"; backslash-n stays as it is unless `spelt_breaks`.

    >>> repaired("ä½\\xa0å¥½\\r\\n")
    '你好\\n'
    """
    if text[:1] in _BLANKS:
        text = _BLANK_LINES.sub("", text)
    if not _UNUSUAL.search(text):
        return text
    text = _CHINESE_NEL.sub("\n", text)
    if _decoded_wrongly(text):
        text = ftfy.fix_encoding(text)
    text = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n").translate(_SEPARATORS))
    if spelt_breaks and "\\n" in text and _breaks_lines(text):
        text = _SPELT_BREAK.sub("\n", text)
    return text


def _decoded_wrongly(text: str) -> bool:
    """Whether `text` holds C1 controls, or 4 letters that look like bytes of UTF-8: 2 characters, where prose names 1."""
    return bool(C1_CONTROL_RE.search(text)) or sum(len(match[0]) for match in UTF8_DETECTOR_RE.finditer(text)) >= 4


def _breaks_lines(text: str) -> bool:
    """Whether a spelt out backslash-n of `text` surely stands for a line break, and none is code or spoken of."""
    if not _CERTAIN_BREAK.search(text) or _ESCAPES.search(text) or _SPOKEN_OF.search(text):
        return False
    return not any(_CODE.search(line) for line in text.split("\n") if "\\n" in line)


def without_residue(text: str, role: str) -> str:
    """`text` of a turn of `role` without the templates at its ends, however often they are repeated.

    >>> without_residue("\\n\\n### Instruction:\\n感冒吃什么药", "user")
    '感冒吃什么药'
    """
    rest = text.strip()
    while rest.startswith(_OPENINGS) or rest.endswith(_CLOSINGS):
        for wanted, pattern in _TEMPLATES:
            match = pattern.fullmatch(rest) if wanted == role else None
            if match:
                rest = text = match[1].strip()
                break
        else:
            break
    return text


def _rewrite(record: Record, rewritten: Callable[[str, str], str]) -> bool:
    """Replaces every text by `rewritten(text, role)`; whether one changed."""
    before = _texts(record)
    after = [rewritten(text, role) for text, role in before]
    if all(new is old or new == old for new, (old, _) in zip(after, before)):
        return False
    if isinstance(record, TextRecord):
        (record.text,) = after
    elif isinstance(record, ChoiceRecord):
        record.question, *record.choices = after
    else:
        for message, text in zip(record_messages(record), after):
            message["content"] = text
        if isinstance(record, PreferenceRecord):
            record.chosen, record.rejected = after[-2:]
    return True


def _texts(record: Record) -> list[tuple[str, str]]:
    """Every text of a record with its role; "text" of a document, "question" of a question or option."""
    if isinstance(record, TextRecord):
        return [(record.text, "text")]
    if isinstance(record, ChoiceRecord):
        return [(text, "question") for text in (record.question, *record.choices)]
    turns = [(message["content"], message["role"]) for message in record_messages(record)]
    sides = [record.chosen, record.rejected] if isinstance(record, PreferenceRecord) else []
    return [*turns, *((side, "model") for side in sides)]
