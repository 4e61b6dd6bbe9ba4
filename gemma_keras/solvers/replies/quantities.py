"""Numbers and units as replies write them: 1,200 元, 3万, 十二个, -5, 1/2, 25%, 1.2×10^5, 3元5角, five apples."""

import re
from fractions import Fraction
from typing import NamedTuple

from gemma_keras.solvers.replies.numerals import CHINESE, ENGLISH, NUMERAL, read_chinese, read_english, read_numeral
from gemma_keras.solvers.replies.senses import find_senses
from gemma_keras.solvers.replies.units import SCALES, UNIT, UNIT_END, Quantity

LONGEST_NUMBER = 40
"""Characters of a number; longer ones are no answers."""


_DIGITS = r"\d{1,3}(?:,\d{3}){1,10}(?:\.\d{1,30})?|\d{1,40}(?:\.\d{1,30})?|\.\d{1,30}"
_POWER = {scale: power for power, scale in enumerate("百 千 万 十万 百万 千万 亿 十亿 百亿 千亿 万亿".split(), 2)}
_ARABIC = re.compile(
    rf"(?P<sign>(?<![0-9A-Za-z)\]])[-+] ?)?(?<![0-9A-Za-z.^,])(?P<digits>{_DIGITS})(?![,.]?\d)"
    r"(?:(?P<exponent>e[-+]?\d{1,2}(?!\w))|(?: ?[×x*·] ?10 ?\^ ?\{?(?P<power>-?\d{1,2})\}?)"
    r"| ?/ ?(?P<below>\d{1,20})(?![\w/])|(?: (?:又 ?)?|又)(?P<mixed>\d{1,9} ?/ ?\d{1,9})(?![\w/])"
    r"|(?P<scale>万亿|[十百千]?亿|[十百千]?万|[百千](?![克米瓦卡分]))(?P<rest>\d{1,4}[百千]?万|\d{1,4}[百千])?)?"
    r"(?P<percent> ?%)?",
    re.IGNORECASE,
)  # fmt: skip
_COUNTER = (
    "(?:个|只|本|人|名|位|头|匹|张|把|棵|朵|辆|支|枝|根|瓶|杯|碗|盒|袋|箱|组|排|行|列|层|页|条|件|颗|粒|块|座|台|架|艘|间|套|双|对|"
    "次|遍|回|趟|步|岁|年|月|周|倍|场|道|题|门|篇|首|句|字|种|类|班|份|票|队|包|桶|筐|篮|节|段|片|枚|株|串|束|幅|面|户|家|分|号|点|折)"
)
_CHINESE = re.compile(
    rf"(?:[\u4e00-\u9fff]{{0,12}}?(?:是|为|有|共|剩下?|得到?|等于|约|要|了|用|花))?第?{CHINESE}"
    rf"(?P<tail> ?(?:(?:{UNIT}){UNIT_END}|{_COUNTER})?[\u4e00-\u9fff]{{0,4}})"
)


class Found(NamedTuple):
    """A number in a text: where it and its unit stand, and what they are worth."""

    start: int
    end: int
    quantity: Quantity


def find_numbers(text: str) -> list[Found]:
    """The numbers of a text in `plain` form that are written in digits, each with the unit that follows it.

    >>> [str(found.quantity) for found in find_numbers("3万元, -5 与 2 1/2 千克, 50%")]
    ['30000 元', '-5', '2.5 千克', '0.5']
    """
    return [found for match in _ARABIC.finditer(text) if (found := _read_arabic(match, text))]


def _read_arabic(match: re.Match[str], text: str) -> Found | None:
    if len(match[0]) > LONGEST_NUMBER:
        return None
    value = Fraction(match["digits"].replace(",", ""))
    if match["exponent"] or match["power"]:
        value *= Fraction(10) ** int(match["power"] or match["exponent"][1:])
    elif match["below"]:
        if not int(match["below"]):
            return None
        value /= int(match["below"])
    elif match["mixed"]:
        above, below = map(int, match["mixed"].split("/"))
        if not below:
            return None
        value += Fraction(above, below)
    elif match["scale"]:
        value *= 10 ** _POWER[match["scale"]]
        value += read_numeral(match["rest"] or "0") or 0
    if match["percent"]:
        value /= 100
    sign = -1 if match["sign"] and match["sign"][0] == "-" else 1
    following = _FOLLOWING_UNIT.match(text, match.end())
    start, end, unit = match.start(), match.end(), ""
    if following:
        end, unit = following.end(), following["unit"].lower()
        value += Fraction(1, 2) if following["half"] else 0
    elif text[start - 1 : start] in ("$", "¥", "￥") and start:
        start, unit = start - 1, "dollars" if text[start - 1] == "$" else "元"
        if text[start - 1 : start] == "-":
            start, sign = start - 1, -1
    if _PART_OF_FORMULA.match(text, end):
        return None
    return Found(start, end, Quantity(sign * value, unit))


_FOLLOWING_UNIT = re.compile(rf" ?(?P<half>个半)?个? ?(?P<unit>{UNIT}){UNIT_END}", re.IGNORECASE)
# 2x and 3π, or a unit that is not known here: 5 MB, 100 kPa, 50 Hz.
_PART_OF_FORMULA = re.compile(
    r"[A-Za-z√π^_]|(?<![A-Z]) (?:[a-zμ]{1,2}[A-Z][A-Za-z]?|[A-Z]{2}[A-Za-rt-z]?|Hz|Pa)(?![A-Za-z])"
)


def _find_unit(text: str, at: int) -> str:
    found = _FOLLOWING_UNIT.match(text, at)
    return found["unit"].lower() if found else ""


_FORMULA = re.compile(
    r"[√π∞^<>≤≥≠±∠|{}=:_\\]|(?<![A-Za-z])[A-Za-z](?![A-Za-z'])"
    r"|(?:\b|(?<=\d))(?:sin|cos|tan|cot|sec|csc|log|lg|ln|lim|mod)\b"
    r"|倒数|不是|并非|\bnot\b|://",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"(?:负|零下|\bminus|\bnegative) ?(?=[\d.])", re.IGNORECASE)


def find_last(text: str) -> Quantity | None:
    """The last number in digits of a text, in the sense that the words since the number before give it."""
    found = find_numbers(write_signs(text))
    if not found:
        return None
    return found[-1].quantity._replace(senses=find_senses(write_signs(text)[found[-2].end if len(found) > 1 else 0 :]))


def write_signs(text: str) -> str:
    """The text with a sign where a number is negative by a word: 负5, 零下 5, minus 5."""
    return _NEGATIVE.sub("-", text)


def read_quantity(text: str) -> Quantity | None:
    """A text in `plain` form as one quantity: one number in digits, or nothing but a number in words.

    Quantities of several units of one kind (3元5角, 1小时30分钟) are one. None where there is no number or are several, and
    for relations and formulas.

    >>> [str(read_quantity(text)) for text in ("十二个", "3元5角", "约 1.2e5 人", "x>3", "1.5和2")]
    ['12', '3.5 元', '120000', 'None', 'None']
    """
    if len(text) > LONGEST_NUMBER * 4:
        return None
    text = write_signs(text)
    found = find_numbers(text)
    if not found:
        return _read_words(text)
    starts, ends = [*(one.start for one in found), len(text)], [0, *(one.end for one in found)]
    if _FORMULA.search("".join(text[end:start] for end, start in zip(ends, starts))):
        return None
    return found[0].quantity._replace(senses=find_senses(text)) if len(found) == 1 else _add_compound(found, text)


def _add_compound(found: list[Found], text: str) -> Quantity | None:
    """The sum of quantities that follow each other immediately in falling units of one dimension."""
    first = found[0].quantity
    dimension, scale = SCALES.get(first.unit, ("", Fraction(0)))
    total, last = first.value * scale, scale
    for before, number in zip(found, found[1:]):
        if text[before.end : number.start].strip():
            return None
        value, unit, _ = number.quantity
        step = SCALES.get(unit, (dimension, _LAST.get((dimension, text[number.end : number.end + 1]), last)))
        if step[0] != dimension or step[1] >= last:
            return None
        total, last = total + value * step[1], step[1]
    return Quantity(total / scale, first.unit) if scale else None


_LAST = {("yuan", ""): Fraction(1, 10), ("yuan", "分"): Fraction(1, 100), ("time", "分"): Fraction(60)}
"""Units that are clear after a larger one only, by dimension: 3块5, 3元5角2分, 1小时20分."""


_COUNTED = re.compile(rf"(?<!第)(?P<numeral>{NUMERAL}) ?(?P<tail>(?:{UNIT}){UNIT_END}|{_COUNTER})")


def find_counted(text: str) -> Quantity | None:
    """The last number in words of a sentence that counts or measures something: 甲做十六个零件, she has six marbles."""
    for found in reversed(list(_COUNTED.finditer(text))):
        value = read_numeral(found["numeral"]) if found["numeral"] not in ("一", "零") else None  # 一个, 零件
        if value is not None:
            return Quantity(value, _find_unit(found["tail"], 0))
    english = [found for found in ENGLISH.finditer(text) if found[0].lower() != "one"]
    return _read_english(english[-1], text) if english else None


def _read_words(text: str) -> Quantity | None:
    chinese = _CHINESE.fullmatch(text.replace(" ", ""))
    if chinese:
        value, tail = read_chinese(chinese), chinese["tail"]
        unit = _FOLLOWING_UNIT.match(tail)
        if value is None or not (unit or re.match(f"{_COUNTER}|$", tail)):
            return None
        half = Fraction(1, 2) if unit and unit["half"] else 0
        return Quantity(value + half, _find_unit(tail, 0), find_senses(text))
    english = list(ENGLISH.finditer(text))
    return _read_english(english[0], text) if len(english) == 1 and len(text.split()) <= 6 else None


def _read_english(found: re.Match[str], text: str) -> Quantity:
    negative = re.search(r"\b(?:minus|negative) $", text[: found.start()], re.IGNORECASE)
    value = read_english(found)
    return Quantity(Fraction(-value if negative else value), _find_unit(text, found.end()))
