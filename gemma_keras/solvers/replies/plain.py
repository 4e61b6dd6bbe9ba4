"""Replies without their dress: one form for characters that mean the same, and what a reply concludes with.

Everything that reads a whole reply does so in time linear in its length: runs of blanks are one blank here, and patterns
repeat nothing without a bound next to something that it could match as well.
"""

import functools
import re
import unicodedata

from gemma_keras.solvers.replies.latex import latex_to_text

LONGEST_ANSWER = 300
"""Characters of a final answer that are looked at; longer ones are prose."""
LONGEST_MARK = 60
"""Characters of the mark of an answer and the words before it."""

_SAME = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2010\u2011\u2012\ufe63\uff0d", "-")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0f", "")
    | {"∶": ":", "⩾": "≥", "⩽": "≤", "≧": "≥", "≦": "≤", "\u2044": "/"}
)
_TRADITIONAL = str.maketrans(
    "選擇項對錯應該題確實結論說總綜須無會為優點準過邏輯議見這個還們覺認為問滿評給難複雜學單與幾萬億兩負",
    "选择项对错应该题确实结论说总综须无会为优点准过逻辑议见这个还们觉认为问满评给难复杂学单与几万亿两负",
)
"""Of the words that the readers of replies look for."""
_RAISED = re.compile(r"[⁺⁻]?[⁰¹²³⁴-⁹]{1,20}")
_VULGAR = re.compile(r"[¼-¾⅐-⅞]")
_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_EMPHASIS = re.compile(r"\*{2,}|_{2,}|`+|(?<![\w)])\*(?=\S)|(?<=\S)\*(?![\w(])")
_BLANKS = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n[ \n]*")
_SPACED = re.compile(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])")
_ORNAMENT = re.compile(r"^(?:#{1,3} |[-*•] (?!\d))", re.MULTILINE)


@functools.lru_cache(maxsize=16)  # several readers look at a reply, some of them several times
def normalize(text: str) -> str:
    """The text with blanks, signs, widths, emphasis and raised digits in one form, and no empty lines.

    >>> normalize("**答案**：　−５×１０² ")
    '答案: -5×10^2'
    """
    text = text.replace("\r", "\n").translate(_SAME)
    text = _RAISED.sub(lambda raised: "^" + unicodedata.normalize("NFKC", raised[0]).translate(_SAME), text)
    text = _THOUSANDS.sub("", text)
    text = _VULGAR.sub(lambda share: " " + unicodedata.normalize("NFKC", share[0]), text)
    text = unicodedata.normalize("NFKC", text).translate(_SAME).translate(_TRADITIONAL)
    text = _LINES.sub("\n", _BLANKS.sub(" ", _EMPHASIS.sub("", text)))
    return _SPACED.sub("", _ORNAMENT.sub("", text)).strip()


_IS_LATEX = re.compile(r"[\\$]|\{,\}|[\^_]\{")


def convert_latex(text: str) -> str:
    """A short text with its LaTeX as Unicode; as it is where it is none, or too long for an answer.

    >>> convert_latex(r"$9{,}500$"), convert_latex(r"\\text{x} \\geq \\frac{1}{2}")
    ('9,500', 'x ≥ 1/2')
    """
    if len(text) > LONGEST_ANSWER or not _IS_LATEX.search(text):
        return text
    money = re.sub(r"(?<![\\\d])\$(?=\d[\d,.{}]*(?:[^$\d]|$))(?![^$]*\$)", r"\\$", text)  # a lone dollar is money
    try:
        return normalize(latex_to_text(money))
    except (ValueError, IndexError, RecursionError, TypeError):  # pylatexenc makes a TypeError of some recursions
        return text


_BOXED = re.compile(r"\\(?:boxed|fbox) ?\{")


def find_last_boxed(reply: str) -> tuple[str, str]:
    r"""What the last `\boxed{...}` of a reply holds, and the text after it; ("", reply) without one.

    >>> find_last_boxed(r"So \boxed{\frac{1}{2}}. Done.")
    ('\\frac{1}{2}', '. Done.')
    """
    start = max(reply.rfind("\\boxed"), reply.rfind("\\fbox"))
    opening = _BOXED.match(reply, start) if start >= 0 else None
    if opening is None:
        return "", reply
    depth, at = 1, opening.end()
    while at < len(reply) and depth:
        depth += {"{": 1, "}": -1}.get(reply[at], 0) if reply[at - 1] != "\\" else 0
        at += 1
    return reply[opening.end() : at - (not depth)], reply[at:]


_CORRECTION = re.compile(
    r"等等|不对[,。;!]|重新(?:算|看|想|审)|更正|修正|说错|算错|看错|漏算|\bwait\b|\bactually,|\bcorrection\b|\bon second thought",
    re.IGNORECASE,
)


def skip_to_correction(text: str) -> str:
    """What follows the last words of a text in `plain` form by which its writer corrects himself; all of it without any."""
    ends = [found.end() for found in _CORRECTION.finditer(text)]
    return text[ends[-1] :] if ends else text


_LINK = r" ?(?:应该|应当|应|就|便)?(?:是(?!否)|为|等于|[:=])(?!不是) ?[:=]?"
_STRONG = re.compile(
    rf"答案{_LINK}|答案 ?(?=[-\d\\$(]|[a-j](?![a-z]))"
    r"|\bans(?:wer)?(?: (?:is|was|(?:should|would|must) be)(?! (?:not|no|in)\b)| ?[:=]) ?[:=]?|#### ?",
    re.IGNORECASE,
)
_WEAK = re.compile(
    rf"(?:^|(?<=[\n。,;!? ]))答 ?:|(?:结[果论]|正确结果){_LINK}|\bresult(?: is| ?[:=]) ?[:=]?", re.IGNORECASE
)


_DANGLING = re.compile(rf"[^\n,。!?;.]{{0,24}}(?:{_STRONG.pattern}|{_WEAK.pattern})[ *]?$", re.IGNORECASE)


def drop_dangling_mark(text: str) -> str:
    """A text in `plain` form without a mark at its end that no answer follows, as in a reply that was cut off."""
    start = max(0, len(text) - LONGEST_MARK)
    found = _DANGLING.search(text, start)
    is_answer = found and re.search(r"[:=] ?[:=]$", found[0])  # which sign fits?
    return text[: found.start()] if found and not is_answer else text


def trim(text: str, around: str) -> str:
    """The text without these characters around it, but with the point of .5 and the sign of n!."""
    bare = text.strip(around)
    start = len(text) - len(text.lstrip(around))
    if re.search(r"(?<!\.)\.$", text[:start]) and bare[:1].isdigit():
        bare = f".{bare}"
    return f"{bare}!" if text[start:].startswith(f"{bare}!") and re.search(r"(?:^|\W)[A-Za-z]$|\)$", bare) else bare


def find_marked_answer(reply: str) -> str:
    """What stands after the last "答案：" or "Answer:" of a reply, or in its last LaTeX box; empty without such a mark.

    >>> find_marked_answer("答案：12。不对。\\n**答案**：13 个。"), find_marked_answer("一共 13 个。")
    ('13 个', '')
    """
    boxed, rest = find_last_boxed(reply)
    return _read_after_last(_STRONG, normalize(rest)) or convert_latex(normalize(boxed))


def find_stated_answer(reply: str) -> str:
    """What stands after the last "答：" or "结果是" of a reply: marks of an answer that is often a whole sentence."""
    return _read_after_last(_WEAK, normalize(reply))


def _read_after_last(mark: re.Pattern[str], text: str) -> str:
    """The rest of the line, or the line, that follows the last mark which is followed by anything."""
    for end in reversed([found.end() for found in mark.finditer(text)]):
        line = trim(text[end : end + 4 * LONGEST_ANSWER].strip(" \n\t*").split("\n", 1)[0], " *。.!")
        if line:
            return convert_latex(line)
    return ""
