"""What a model's reply says: sub-questions, a score, a verdict, a final answer. Chinese and English alike.

Also the constraints under which a reply can have no other form: whatever matches `plan_list` or `plan_json` is read by
`sub_questions`, and `SCORE` by `complexity`.
"""

import json
import re
import unicodedata
from decimal import Decimal, InvalidOperation

from gemma_keras.inference.constraints import JsonSchema, Regex
from gemma_keras.solvers.trace import Verdict

MOST_SUB_QUESTIONS = 5

SCORE = Regex(r"0\.[0-9]|1\.0")
LONGEST_SUB_QUESTION = {"zh": 60, "en": 80}
"""In characters, by the language of the prompts."""
_FIRST = "[0-9A-Za-z\u4e00-\u9fa5]"  # of a sub-question, so that it is no blank or mark alone


def plan_list(language: str) -> Regex:
    """A numbered list of 3 to 5 sub-questions, each of at least 4 characters."""
    line = f"{_FIRST}[^\\n\\r]{{3,{LONGEST_SUB_QUESTION[language] - 1}}}"
    return Regex(rf"1\. {line}\n2\. {line}\n3\. {line}(\n4\. {line}(\n5\. {line})?)?")


def plan_json(language: str) -> JsonSchema:
    """The same as an object with the list `sub_questions`."""
    line = f"^{_FIRST}.{{3,{LONGEST_SUB_QUESTION[language] - 1}}}$"
    items = {"type": "array", "items": {"type": "string", "pattern": line}, "minItems": 3, "maxItems": 5}
    schema = {"type": "object", "properties": {"sub_questions": items}, "required": ["sub_questions"]}
    return JsonSchema(json.dumps(schema | {"additionalProperties": False}))


_CHINESE_DIGITS = {digit: number for number, digit in enumerate("一二三四五六七八九十", 1)}
_ITEM = re.compile(
    r"\s*(?:[-*•]\s*)?\**\s*(?:子问题|问题|步骤|第|sub-?questions?|questions?|step|q)?\s*"
    r"[(（]?\s*(?P<number>\d{1,2}|[一二三四五六七八九十])\s*(?:步|个子问题|个问题)?\s*(?:[.．:：](?!\d)|[、)）])\**\s*(?P<text>.*)",
    re.IGNORECASE,
)
_CIRCLED = re.compile(r"\s*(?P<number>[①-⑨])\s*(?P<text>.*)")


def sub_questions(reply: str) -> list[str]:
    """The items of the first numbered list in a reply, or of the object that `plan_json` describes; five at most.

    The numbers must rise: where they start again, the model has gone on to another question.

    >>> sub_questions("好的：\\n1. 一共多少？\\n2、剩下多少？")
    ['一共多少？', '剩下多少？']
    """
    found = _json_questions(reply)
    if not found:
        last = 0
        for line in reply.split("\n"):
            number, text = _item(line)
            if number is None:
                continue
            if number <= last:
                break
            last = number
            found.append(text)
    kept = [text for text in dict.fromkeys(map(_cleaned, found)) if text]
    return kept[:MOST_SUB_QUESTIONS]


def _item(line: str) -> tuple[int | None, str]:
    """Number and text of a line of a numbered list."""
    circled = _CIRCLED.fullmatch(line)
    if circled:
        return int(unicodedata.numeric(circled["number"])), circled["text"]
    item = _ITEM.fullmatch(line)
    if item is None:
        return None, ""
    return _CHINESE_DIGITS.get(item["number"]) or int(item["number"]), item["text"]


def _json_questions(reply: str) -> list[str]:
    start, end = reply.find("{"), reply.rfind("}")
    if not 0 <= start < end:
        return []
    try:
        listed = json.loads(reply[start : end + 1], strict=False)["sub_questions"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def _cleaned(text: str) -> str:
    # Half a surrogate pair, which JSON can spell, is no text.
    return text.encode("utf-8", "ignore").decode().strip().strip("*").strip()


_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*)?\.?\d+(?:\s*/\s*\d+)?%?", re.ASCII)
UNKNOWN_COMPLEXITY = 0.5


def complexity(reply: str) -> float:
    """The first number of a reply, held to [0, 1]; 0.5 where there is none. Percentages and fractions count as such.

    >>> complexity("复杂度：0.8"), complexity("70%"), complexity("3"), complexity("很难")
    (0.8, 0.7, 1.0, 0.5)
    """
    values = _values(unicodedata.normalize("NFKC", reply))
    return float(min(max(values[0], Decimal(0)), Decimal(1))) if values else UNKNOWN_COMPLEXITY


def _values(text: str) -> list[Decimal]:
    """The numbers of a text; a comma stands within one only before three digits."""
    spaced = re.sub(r"(?<=\d),(?!\d{3}(?!\d))", " ", text)
    return [value for value in map(_value, _NUMBER.findall(spaced)) if value is not None]


def _value(text: str) -> Decimal | None:
    """The number that a match of `_NUMBER` spells."""
    share, text = text.endswith("%"), text.rstrip("%").replace(",", "")
    try:
        numerator, _, denominator = text.partition("/")
        value = Decimal(numerator.strip()) / Decimal(denominator.strip() or 1)
    except (InvalidOperation, ZeroDivisionError):
        return None
    return value / 100 if share else value


_ASPECTS = ("accuracy", "completeness", "logic", "suggestions")
_LABEL = re.compile(
    r"^[\s\W\d]*(?:(?P<accuracy>准确[性度]?|正确性|accuracy)|(?P<completeness>完整[性度]?|completeness)"
    r"|(?P<logic>逻辑[性]?|logic)|(?P<suggestions>(?:修改|改进)?(?:建议|意见)|suggestions?))\W*?[:：]\W*?(?P<text>.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_NOTHING = frozenset(
    "无 没有 暂无 无建议 没有建议 无需修改 不需要修改 不用修改 不必修改 无修改建议 没有修改建议 无需改进 "
    "none no nothing na n/a nochange nochanges nosuggestion nosuggestions nochangeneeded nochangesneeded".split()
)
_FAILED = re.compile(r"\W*(?:不通过|未通过|不合格|fail)", re.IGNORECASE)
_BUT = re.compile(r"但|不过|然而|建议|可以|应|but|however|should|could", re.IGNORECASE)


def verdict(reply: str) -> Verdict:
    """A judgement by its aspects. It asks for nothing where its suggestions do and no aspect is failed.

    A judgement without any of the four lines asks for something, unless it is empty.
    """
    parts = dict.fromkeys(_ASPECTS, "")
    labels = list(_LABEL.finditer(reply))
    for label, following in zip(labels, [*labels[1:], None]):
        aspect = next(name for name in _ASPECTS if label[name])
        end = following.start() if following else len(reply)
        parts[aspect] = parts[aspect] or reply[label.start("text") : end].strip()
    has_suggestions = any(label["suggestions"] for label in labels)
    failed = any(_FAILED.match(parts[name]) for name in _ASPECTS[:3])
    nothing = _is_nothing(parts["suggestions"]) if has_suggestions else not labels and _is_nothing(reply)
    return Verdict(text=reply, accepted=nothing and not failed, **parts)


def _is_nothing(text: str) -> bool:
    """Whether a suggestion says that there is none."""
    head, *rest = re.split(r"[,，。;；.!！\n]", unicodedata.normalize("NFKC", text).strip(), maxsplit=1)
    bare = re.sub(r"[^\w/]", "", head).casefold()
    return (not bare or bare in _NOTHING) and not _BUT.search("".join(rest))


_MARK = re.compile(r"(?:答案|(?:final )?answer)\s*\**\s*(?:应该|应当|应)?\s*(?:[:：]|是|为|is)\s*[:：]?", re.IGNORECASE)


def marked_answer(reply: str) -> str:
    """What stands after the last "答案：" or "Answer:" of a reply, to the end of its line; empty without such a mark."""
    marks = list(_MARK.finditer(reply))
    if not marks:
        return ""
    lines = reply[marks[-1].end() :].strip().split("\n")
    return lines[0].strip(" \t*。.．!！")


def option(reply: str, letters: str) -> str:
    """The one of `letters` that a reply marks as its answer, else the first that stands by itself; empty without any.

    >>> option("A 不对，应选 B。答案：B", "ABCD"), option("我选 C", "ABCD")
    ('B', 'C')
    """
    alone = rf"(?<![A-Za-z])[{letters}](?![A-Za-z])"
    found = re.search(alone, unicodedata.normalize("NFKC", marked_answer(reply))) or re.search(alone, reply)
    return found[0] if found else ""


def vote(reply: str) -> str:
    """A form of a reply's final answer in which equal answers are the same text; empty for an empty reply.

    The one number in a marked answer counts as a number ("1,200 元" and "1200"); without a mark, the last number of the
    reply does, else the whole of it, blanks and punctuation left out.

    >>> vote("答案：1,200 元") == vote("所以一共是 1200.0 元") == "1200"
    True
    """
    marked = unicodedata.normalize("NFKC", marked_answer(reply))
    text = marked or unicodedata.normalize("NFKC", reply)
    numbers = _values(text)
    if numbers and (len(numbers) == 1 or not marked):
        return f"{numbers[-1].normalize():f}"
    return re.sub(r"[\W_]", "", text).casefold()


_MASKABLE = re.compile(r"(?<![\dA-Za-z.])\d+(?:,\d{3})*(?:\.\d+)?(?![\dA-Za-z])")


def masked_questions(question: str, most: int) -> list[tuple[str, str]]:
    """The question with one of its numbers replaced by X, and that number; for the first `most` of them.

    >>> masked_questions("有 20 本书，借走 6 本，还剩多少本？", 1)
    [('有 X 本书，借走 6 本，还剩多少本？', '20')]
    """
    found = list(_MASKABLE.finditer(question))[:most]
    return [(f"{question[: number.start()]}X{question[number.end() :]}", number[0]) for number in found]


_WRONG = re.compile(r"不正确|错误|不对|不成立|incorrect|wrong|false|not correct", re.IGNORECASE)
_RIGHT = re.compile(r"正确|对|成立|correct|right|true", re.IGNORECASE)


def affirmed(reply: str) -> bool:
    """Whether a reply says that a conclusion is right."""
    text = marked_answer(reply) or reply
    return bool(_RIGHT.search(text)) and not _WRONG.search(text)
