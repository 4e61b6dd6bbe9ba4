"""Numbers in words: 十二, 三分之一, 百分之二十五, 七成, 一又二分之一, forty-two."""

import re
from fractions import Fraction

import cn2an

NUMERAL = "[零〇一二两三四五六七八九十百千万亿廿卅点]{1,20}"
CHINESE = (
    rf"(?P<sign>负)?(?:(?P<integer>{NUMERAL})又(?P<beneath>{NUMERAL})分之(?P<over>{NUMERAL})|百分之(?P<percent>{NUMERAL})"
    rf"|(?P<below>{NUMERAL})分之(?P<above>{NUMERAL})|(?P<tenths>[一二三四五六七八九])成(?P<half>半)?|(?P<halves>半|一半)"
    rf"|(?P<whole>{NUMERAL}))"
)
"""Pattern of a number, for `read_chinese`."""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_WORDS = dict(zip(_ONES, range(20))) | dict(zip(_TENS, range(20, 100, 10)))
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
ENGLISH = re.compile(
    rf"\b(?P<tens>{_WORD})(?:[- ](?P<ones>{_WORD}))?"
    rf"(?P<hundred> hundred(?: and)?(?: (?P<more>{_WORD})(?:[- ](?P<units>{_WORD}))?)?)?\b",
    re.IGNORECASE,
)


def read_chinese(found: re.Match[str]) -> Fraction | None:
    """The value of a match of `CHINESE`; None where its characters are no number."""
    value = _read_unsigned(found)
    return -value if value is not None and found["sign"] else value


def _read_unsigned(found: re.Match[str]) -> Fraction | None:
    if found["halves"]:
        return Fraction(1, 2)
    if found["tenths"]:
        return Fraction(read_numeral(found["tenths"]) or 0) / 10 + (Fraction(1, 20) if found["half"] else 0)
    if found["percent"]:
        share = read_numeral(found["percent"])
        return share / 100 if share is not None else None
    if found["integer"]:
        share = _divide(found["over"], found["beneath"])
        return share + (read_numeral(found["integer"]) or 0) if share is not None else None
    if found["below"]:
        return _divide(found["above"], found["below"])
    return read_numeral(found["whole"])


def _divide(above: str, below: str) -> Fraction | None:
    parts, whole = read_numeral(above), read_numeral(below)
    return parts / whole if parts is not None and whole else None


def read_numeral(text: str) -> Fraction | None:
    """The value of a Chinese numeral, which may have Arabic digits before its units of ten; None where it is none."""
    try:
        return Fraction(str(cn2an.cn2an(text, "smart"))).limit_denominator(10**9)
    except ValueError:
        return None


def read_english(found: re.Match[str]) -> int:
    """The value of a match of `ENGLISH`."""
    first, ones, more, units = (
        _WORDS[word.lower()] if word else 0 for word in found.group("tens", "ones", "more", "units")
    )
    return 100 * (first + ones) + more + units if found["hundred"] else first + ones
