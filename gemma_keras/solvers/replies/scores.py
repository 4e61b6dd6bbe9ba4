"""How complex a question is said to be, and the constraint under which a reply is a score and nothing else."""

import re
from fractions import Fraction

from gemma_keras.inference.constraints.constraint import Regex
from gemma_keras.solvers.replies import quantities
from gemma_keras.solvers.replies.plain import convert_latex, find_last_boxed, normalize

SCORE = Regex(r"0\.[0-9]|1\.0")
UNKNOWN_COMPLEXITY = 0.5

_NUMBER = r"\d{0,6}\.?\d{1,12}"
_RANGE = re.compile(
    rf"[\[(]? ?{_NUMBER} ?分?(?:到|至|~|-|—|,| to | and |–) ?{_NUMBER}(?: ?[\])])?(?: ?(?:分|之间|的范围|区间|为|:))?"
    rf"|[<>≤≥]=? ?{_NUMBER}|(?:大于|超过|高于|小于|低于|不到|(?:above|over|below|under) ){_NUMBER}"
    r"|(?<![\d.])[01](?:\.0)? ?(?:means|is for|being|indicates|represents|stands for|表示|代表|是最|为最|= ?[a-z])",
    re.IGNORECASE,
)
_MARK = re.compile(
    r"(?:复杂[性度]|难度|评分|得分|分[数值]|打分?|给分?|本题|综合|认为|觉得|score|complexity|rating|difficulty"
    r"|rate (?:this|it)|give (?:this|it)|i'd say|i think|\bget)[^\d\n。;]{0,24}$",
    re.IGNORECASE,
)
_FULL = re.compile(
    r"(?:满分|总分|out of|max(?:imum)?(?: of)?|共) ?(?:是|为|:)? ?(\d{1,4})(?: ?(?:分|颗?星))?"
    r"|(\d{1,4}) ?分(?:制|满分)|(百|十|五)分制"
    r"|(?<![\d.])[01] ?(?:到|至|-|~|to) ?(5|10|100)(?![\d.])",
    re.IGNORECASE,
)
_OUT_OF = "\x01"
"""Stands for a match of `_FULL`."""
_FULLS = {"百": 100, "十": 10, "五": 5}
_SCORE = re.compile(
    rf"(?<![0-9A-Za-z.^])(?P<sign>-)?(?P<digits>{_NUMBER})(?![,.]?\d)"
    rf"(?: ?(?P<percent>%|percent)| ?/ ?(?P<below>\d{{1,4}})|(?P<full>(?: ?(?:分|颗?星|stars?|points?))? ?[(]? ?{_OUT_OF}))?"
    r"(?P<points> ?分| points?)?(?P<after> ?[a-z\u4e00-\u9fff]{0,4})",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r" ?(?:个|步|种|颗(?!星)|次|年|月|日|天|小?时|分钟|秒|公?[斤里克]|千|米|元|本|条|道|题|项|点|页|字|人|倍"
    r"|steps?|year|hour|minut|page|way|part|case|kg|cm|km|m\b)",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?[a-z_]{1,20}>", re.IGNORECASE)
_DIGITS = dict(zip("zero one two three four five six seven eight nine ten".split(), range(11)))
_ANY = "|".join(_DIGITS)
_ENGLISH = re.compile(
    rf"\b(?:{_ANY})(?= (?:out of|percent))\b|(?<=zero point )(?:{_ANY})|(?<=out of )ten\b", re.IGNORECASE
)
_CHINESE = "一二三四五六七八九十"
_TENTHS = re.compile(rf"[{_CHINESE[:-1]}]成半?")
_WORDED = re.compile(rf"(?:百分之|零点)[零{_CHINESE}百]{{1,8}}|[{_CHINESE}]分之[{_CHINESE}]")


def read_complexity(reply: str) -> float:
    """The score that a reply gives, held to [0, 1]; 0.5 where there is none.

    Percentages and fractions count as such, as do scores of another scale that is named (8/10, 80 分). Counts ("2 步") and
    scales that are said again ("0 到 1 之间") are no scores.

    >>> [read_complexity(reply) for reply in ("复杂度：0.8", "8（满分 10）", "在 0 到 1 之间，为 0.2", "很难")]
    [0.8, 0.8, 0.2, 0.5]
    """
    boxed, rest = find_last_boxed(reply)
    text = _write_digits(_TAG.sub(" ", convert_latex(normalize(boxed or rest))))
    full = _FULL.search(text)
    scale = int(full[1] or full[2] or full[4] or _FULLS[full[3]]) if full else 0
    text = re.sub(r"[$\"`*]", "", _FULL.sub(_OUT_OF, text))
    marked: list[tuple[int, Fraction]] = []
    scaled: list[tuple[int, Fraction]] = []
    others: list[tuple[int, Fraction]] = []
    for found in _SCORE.finditer(_RANGE.sub(lambda span: "\x00" * len(span[0]), text)):
        value = _read_score(found, scale)
        if value is None:
            continue
        explicit = found["percent"] or found["below"] or found["full"]
        is_marked = _MARK.search(text[max(0, found.start() - 40) : found.start()])
        (marked if is_marked else scaled if explicit else others).append((found.start(), value))
    if marked or scaled:
        return _clamp((marked or scaled)[-1][1])
    worded = _read_words(text)
    if worded is not None:
        return _clamp(worded)
    head = len(text) - len(text.lstrip(" (:"))
    opening = [value for start, value in others if start <= head]
    within = [value for _, value in others if 0 <= value <= 1]
    chosen = opening or within[-1:]
    return _clamp(chosen[0]) if chosen else UNKNOWN_COMPLEXITY


def _write_digits(text: str) -> str:
    """The words for digits that belong to a score: four out of ten, zero point three, 三颗星."""
    text = _ENGLISH.sub(lambda word: str(_DIGITS[word[0].lower()]), text)
    text = re.sub(r"\bzero point (?=\d)", "0.", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<![\d.])([1-9]) ?成", lambda tenths: f"0.{tenths[1]}", text)
    return re.sub(rf"[{_CHINESE}](?= ?(?:颗|星|分[^之钟]))", lambda digit: str(_CHINESE.index(digit[0]) + 1), text)


def _read_score(found: re.Match[str], scale: int) -> Fraction | None:
    """The share of its scale that a number stands for; None where it counts something else."""
    value = Fraction(found["digits"])
    if found["percent"]:
        return value / 100
    if found["below"]:
        return value / int(found["below"]) if int(found["below"]) else None
    if not found["points"] and _COUNTED.match(found["after"]):
        return None
    if scale and (value > 1 or found["full"]):
        value /= scale
    elif found["points"] and value > 1:
        value /= 10 if value <= 10 else 100
    return -value if found["sign"] else value


def _read_words(text: str) -> Fraction | None:
    worded = _TENTHS.search(text) or _WORDED.search(text)
    amount = quantities.read_quantity(worded[0]) if worded else None
    return amount.value if amount else None


def _clamp(value: Fraction) -> float:
    return float(min(max(value, Fraction(0)), Fraction(1)))
