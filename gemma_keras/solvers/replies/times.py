"""Dates, times of day and days of the week in one form each."""

import re

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(rf"{month[:3]}(?:{month[3:]})?" for month in _MONTHS)
_DATE = re.compile(r"(?<!\d)(\d{4}) ?[-/.年] ?(\d{1,2}) ?[-/.月] ?(\d{1,2}) ?[日号]?(?!\d)")
_ENGLISH_DATE = re.compile(
    rf"\b(?:(?P<month>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? ?"
    rf"|(?P<first>\d{{1,2}})(?:st|nd|rd|th)? (?P<then>{_MONTH})\.?,? )(?P<year>\d{{4}})\b",
    re.IGNORECASE,
)
_MONTH_AND_DAY = re.compile(r"(?<!\d)(\d{1,2}) ?月 ?(\d{1,2}) ?[日号](?!\d)")
_CLOCK = re.compile(
    r"(?P<noon>凌晨|早上|早晨|清晨|上午|中午|下午|傍晚|晚上|夜里|半夜)?的? ?(?<!\d)(?P<hour>\d{1,2})"
    r"(?:(?P<point> ?[点时] ?(?:(?P<minute>\d{1,2}) ?分?(?!\d)|(?P<half>半)|整?))|:(?P<minutes>\d{2})(?!\d))?"
    r"(?: ?(?P<half_day>[ap])\.?m\b\.?)?",
    re.IGNORECASE,
)
WEEKDAY = re.compile(
    r"(?:星期|周|礼拜)([一二三四五六日天])|\b((?:mon|tues|wednes|thurs|fri|satur|sun)day)\b", re.IGNORECASE
)

DAY = re.compile(r"(?<!\d)(?:\d{4}-\d\d-\d\d|\d{1,2}月\d{1,2}日)(?!\d)")
"""A day as `normalize_times` gives it, with its year or without."""


def normalize_times(text: str) -> str:
    """Dates as 2023-05-01, times of day as 15:30, and days of the week by one name."""
    text = _DATE.sub(lambda date: _format_iso(date[1], date[2], date[3]), text)
    text = _ENGLISH_DATE.sub(_format_english_date, text)
    text = _MONTH_AND_DAY.sub(r"\1月\2日", text)
    text = _CLOCK.sub(_format_time_of_day, text)
    return WEEKDAY.sub(lambda day: f"星期{day[1].replace('天', '日')}" if day[1] else day[2].lower(), text)


def _format_iso(year: str, month: int | str, day: str) -> str:
    return f"{year}-{int(month):02}-{int(day):02}"


def _format_english_date(date: re.Match[str]) -> str:
    name = (date["month"] or date["then"])[:3].lower()
    month = [month[:3] for month in _MONTHS].index(name) + 1
    return _format_iso(date["year"], month, date["day"] or date["first"])


def _format_time_of_day(found: re.Match[str]) -> str:
    """A match of `_CLOCK` by 24 hours; as it is where it may be another number."""
    minute = found["minute"] or found["minutes"] or ("30" if found["half"] else "")
    part, half_day = found["noon"], (found["half_day"] or "").lower()
    if not (half_day or (part and (found["point"] or minute)) or found["minute"] or found["half"]):
        return found[0]
    hour = int(found["hour"])
    late = half_day == "p" or part in ("下午", "傍晚", "晚上") or (part == "中午" and hour < 10)
    if late and hour < 12:
        hour += 12
    elif half_day == "a" and hour == 12:
        hour = 0
    return f" {hour}:{int(minute or 0):02} "
