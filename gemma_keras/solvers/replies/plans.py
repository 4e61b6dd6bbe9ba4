"""Plans: the sub-questions of a reply, and the constraints under which a reply can have no other form.

Whatever matches `make_list_constraint` or `make_json_constraint` is read by `read_sub_questions`.
"""

import json
import re
import unicodedata

from gemma_keras.inference.constraints.constraint import JsonSchema, Regex

MOST_SUB_QUESTIONS = 5

LONGEST_SUB_QUESTION = {"zh": 60, "en": 80}
"""In characters, by the language of the prompts."""
_FIRST = "[0-9A-Za-z\u4e00-\u9fa5]"  # of a sub-question, so that it is no blank or mark alone


def make_list_constraint(language: str) -> Regex:
    """A numbered list of 3 to 5 sub-questions, each of at least 4 characters."""
    line = f"{_FIRST}[^\\n\\r]{{3,{LONGEST_SUB_QUESTION[language] - 1}}}"
    return Regex(rf"1\. {line}\n2\. {line}\n3\. {line}(\n4\. {line}(\n5\. {line})?)?")


def make_json_constraint(language: str) -> JsonSchema:
    """The same as an object with the list `sub_questions`."""
    line = f"^{_FIRST}.{{3,{LONGEST_SUB_QUESTION[language] - 1}}}$"
    items = {"type": "array", "items": {"type": "string", "pattern": line}, "minItems": 3, "maxItems": 5}
    schema = {"type": "object", "properties": {"sub_questions": items}, "required": ["sub_questions"]}
    return JsonSchema(json.dumps(schema | {"additionalProperties": False}))


_CHINESE_DIGITS = {digit: number for number, digit in enumerate("一二三四五六七八九十", 1)}
_ITEM = re.compile(
    r"(?:[-*•] ?)?\** ?(?:子问题|问题|步骤|第|sub-?questions?|questions?|step|q)? ?"
    r"[(（]? ?(?P<number>\d{1,2}|[一二三四五六七八九十]) ?(?:步|个子问题|个问题)? ?(?:[.．:：](?!\d)|[、)）])\** ?(?P<text>.*)",
    re.IGNORECASE,
)
_CIRCLED = re.compile(r"(?P<number>[①-⑨]) ?(?P<text>.*)")


def read_sub_questions(reply: str) -> list[str]:
    """The items of the first numbered list in a reply, or of the object that `make_json_constraint` describes; five at most.

    The numbers must rise: where they start again, the model has gone on to another question.

    >>> read_sub_questions("好的：\\n1. 一共多少？\\n2、剩下多少？")
    ['一共多少？', '剩下多少？']
    """
    found = _read_json(reply)
    if not found:
        last = 0
        for line in reply.split("\n"):
            number, text = _read_item(line)
            if number is None:
                continue
            if number <= last:
                break
            last = number
            found.append(text)
    kept = [text for text in dict.fromkeys(map(_clean, found)) if text]
    return kept[:MOST_SUB_QUESTIONS]


def _read_item(line: str) -> tuple[int | None, str]:
    """Number and text of a line of a numbered list."""
    line = " ".join(line.split())  # runs of blanks would make the patterns backtrack
    circled = _CIRCLED.fullmatch(line)
    if circled:
        return int(unicodedata.numeric(circled["number"])), circled["text"]
    item = _ITEM.fullmatch(line)
    if item is None:
        return None, ""
    return _CHINESE_DIGITS.get(item["number"]) or int(item["number"]), item["text"]


def _read_json(reply: str) -> list[str]:
    start, end = reply.find("{"), reply.rfind("}")
    if not 0 <= start < end:
        return []
    try:
        listed = json.loads(reply[start : end + 1], strict=False)["sub_questions"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def _clean(text: str) -> str:
    # Half a surrogate pair, which JSON can spell, is no text.
    return text.encode("utf-8", "ignore").decode().strip().strip("*").strip()
