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
    part = found.groupdict()
    above = part["over"] or part["percent"] or part["above"] or part["tenths"] or part["whole"] or "一"
    fixed = {"percent": "一百", "tenths": "十", "halves": "二"}
    below = part["beneath"] or part["below"] or next((fixed[name] for name in fixed if part[name]), "一")
    whole, parts, of = (read_numeral(text) for text in (part["integer"] or "零", above, below))
    if whole is None or parts is None or not of:
        return None
    value = whole + parts / of + (Fraction(1, 20) if part["half"] else 0)
    return -value if part["sign"] else value


def read_numeral(text: str) -> Fraction | None:
    """The value of a Chinese numeral, which may have Arabic digits before its units of ten; None where it is none."""
    try:
        return Fraction(str(cn2an.cn2an(text, "smart"))).limit_denominator(10**9)
    except (ValueError, KeyError):  # cn2an has no unit for some runs of them
        return None


def read_english(found: re.Match[str]) -> int:
    """The value of a match of `ENGLISH`."""
    first, ones, more, units = (
        _WORDS[word.lower()] if word else 0 for word in found.group("tens", "ones", "more", "units")
    )
    return 100 * (first + ones) + more + units if found["hundred"] else first + ones
