"""Quantities, and the units that make them comparable."""

import decimal
import re
from fractions import Fraction
from typing import NamedTuple

from gemma_keras.solvers.replies.senses import are_opposed, are_senses

_UNITS: dict[str, dict[str, int | str]] = {
    "length": {"km 千米 公里 kilometers kilometres kilometer kilometre": 1000, "m 米 公尺 meters metres meter metre": 1,
               "dm 分米": "1/10", "cm 厘米 公分 centimeters centimetres centimeter": "1/100",
               "mm 毫米 millimeters millimetres millimeter": "1/1000", "miles mile 英里": "1609.344",
               "yards yard yd": "0.9144", "feet foot ft 英尺": "0.3048", "inches inch 英寸": "0.0254"},
    "mass": {"t 吨 tons tonnes ton tonne": 1000, "kg 千克 公斤 kilograms kilogram": 1, "斤": "1/2", "两": "1/20",
             "g 克 grams gram": "1/1000", "mg 毫克 milligrams": "1/1000000", "pounds pound lbs lb 磅": "0.45359237",
             "ounces ounce oz 盎司": "0.028349523125"},
    "time": {"周 星期 weeks week": 604800, "天 日 days day": 86400, "h 小时 钟头 hours hour hrs hr": 3600,
             "min 分钟 minutes minute mins": 60, "s 秒 秒钟 seconds second sec": 1},
    "calendar": {"世纪 centuries century": 1200, "年 years year": 12, "月 months month": 1},
    "yuan": {"元 块 块钱 圆 rmb yuan": 1, "角 毛": "1/10"},
    "dollar": {"dollars dollar usd 美元": 1, "cents cent 美分": "1/100"},
    "euro": {"euros euro eur 欧元": 1},
    "yen": {"yen jpy 日元": 1},
    "area": {"km^2 km2 平方千米 平方公里": 1000000, "公顷 hectares": 10000, "m^2 m2 平方米 平米": 1, "dm^2 dm2 平方分米": "1/100",
             "cm^2 cm2 平方厘米": "1/10000", "mm^2 mm2 平方毫米": "1/1000000", "亩": "2000/3"},
    "volume": {"m^3 m3 立方米": 1000, "l 升 dm^3 dm3 立方分米 liters litres liter litre": 1,
               "ml 毫升 cm^3 cm3 立方厘米 milliliters": "1/1000"},
    "gallon": {"gallons gallon gal 加仑": 1, "quarts quart": "1/4", "pints pint": "1/8", "cups cup": "1/16"},
    "speed": {"km/h 千米/时 千米/小时 公里/小时": "1/3600", "km/min 千米/分 千米/分钟": "1/60", "m/s 米/秒": "1/1000",
              "m/min 米/分 米/分钟": "1/60000", "mph miles/hour": "0.00044704"},
    "degree": {"° ^° ^∘ 度 degrees degree °c 摄氏度": 1},
    "fahrenheit": {"°f 华氏度": 1},
}  # fmt: skip
SCALES: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, units in _UNITS.items()
    for names, factor in units.items()
    for name in names.split()
}
# 3个月 measures, 3月 is March.
UNIT = "|".join(re.escape(name) for name in sorted(SCALES, key=len, reverse=True) if name != "月") + "|(?<=个)月"
UNIT_END = r"(?![a-zA-Z^/形星函])"  # no 三角形


class Quantity(NamedTuple):
    """A number, its unit ("" without one of `SCALES`) and the senses in which it is given."""

    value: Fraction
    unit: str = ""
    senses: tuple[str, ...] = ()

    def __str__(self) -> str:
        sense = f"({'、'.join(self.senses)})" if self.senses else ""
        return " ".join(part for part in (_write_decimal(self.value), self.unit, sense) if part)


_MOST_DIGITS = 400
"""More than any number has that a reply gives in at most `quantities.LONGEST_NUMBER` characters."""


def _write_decimal(value: Fraction) -> str:
    """The value in digits where it has a finite decimal form, else as a fraction."""
    with decimal.localcontext(prec=_MOST_DIGITS) as context:
        context.clear_flags()
        digits = decimal.Decimal(value.numerator) / value.denominator
        return str(value) if context.flags[decimal.Inexact] else f"{digits:f}"


_WRITTEN = re.compile(r"(?P<value>-?[\d./]+)(?: (?P<unit>[^\s(]+))?(?: \((?P<senses>\S+)\))?")


def parse_quantity(text: str) -> Quantity | None:
    """The quantity that `str` of one gave; None for another text."""
    found = _WRITTEN.fullmatch(text)
    if found is None or (found["unit"] and found["unit"] not in SCALES):
        return None
    senses = tuple(found["senses"].split("、")) if found["senses"] else ()
    try:
        return Quantity(Fraction(found["value"]), found["unit"] or "", senses) if are_senses(senses) else None
    except (ValueError, ZeroDivisionError):
        return None


def are_equal(one: Quantity, other: Quantity) -> bool:
    """Whether two quantities are the same, in whatever units of one dimension.

    A unit or sense that one of them leaves out is the other's.
    """
    if are_opposed(one.senses, other.senses):
        return False
    if not one.unit or not other.unit:
        return one.value == other.value
    (dimension, scale), (other_dimension, other_scale) = SCALES[one.unit], SCALES[other.unit]
    return dimension == other_dimension and one.value * scale == other.value * other_scale
