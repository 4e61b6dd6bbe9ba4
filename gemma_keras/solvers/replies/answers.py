"""The final answer of a reply, in a form in which equal answers can be told.

A reply that marks its answer ("答案：", "Answer:", a LaTeX box) says it there; another one in its last conclusion ("所以…"),
or in its last sentence with a number. Answers that are one quantity are equal as quantities; all others are texts, of which
nothing is left out but blanks and the marks around them: signs, relations, brackets and points have a meaning.
"""

import re

from gemma_keras.solvers.replies import quantities, units
from gemma_keras.solvers.replies.plain import (
    LONGEST_ANSWER,
    convert_latex,
    drop_dangling_mark,
    find_marked_answer,
    find_stated_answer,
    normalize,
    skip_to_correction,
    trim,
)
from gemma_keras.solvers.replies.times import DAY, WEEKDAY, normalize_times


def find_final_answer(reply: str) -> str:
    """A reply's final answer in one form; empty where there is none.

    >>> [find_final_answer(reply) for reply in ("答案：1,200 元", "所以 x 大于 3。", r"\\boxed{42}\\n以上共 3 步。")]
    ['1200 元', 'x>3', '42']
    """
    text = drop_dangling_mark(normalize(reply))
    later = skip_to_correction(text)
    if later != text and re.search(r"\d", later) and "boxed" not in later:
        marked, sentence = find_marked_answer(later), _find_conclusion(later)
    else:
        marked, sentence = find_marked_answer(reply), _drop_reasons(find_stated_answer(reply) or _find_conclusion(text))
    return _normalize_answer(_drop_reasons(marked)) if marked else _read_sentence(sentence)


def normalize_expected(text: str) -> str:
    """The form of a known answer: what it marks, else its last line, of an equation its result.

    >>> normalize_expected("x=60*15=900"), normalize_expected("3:4")
    ('900', '3:4')
    """
    last = text.strip().rpartition("\n")[2]
    return find_final_answer(text if find_marked_answer(text) else f"答案：{last}")


def are_same(one: str, other: str) -> bool:
    """Whether two answers in the form of `find_final_answer` are the same; empty ones are none.

    >>> are_same("1200 元", "1200"), are_same("3 千克", "3000 克"), are_same("3 千克", "3 克"), are_same("x>3", "x<3")
    (True, True, False, False)
    """
    first, second = units.parse_quantity(one), units.parse_quantity(other)
    if first and second:
        return units.are_equal(first, second)
    return bool(one) and one == other


def says(reply: str, answer: str) -> bool:
    """Whether a reply gives a known answer: as its final answer, or, if it is a word, within the sentence that gives that.

    >>> says("一共 900 元。", "x=60*15=900"), says("乙队先完成。", "乙队"), says("不是乙队。", "乙队")
    (True, True, False)
    """
    found, expected = find_final_answer(reply), normalize_expected(answer)
    if are_same(found, expected) or not re.fullmatch(r"[^\W\d_]{2,}", expected):
        return are_same(found, expected)
    sentence = find_marked_answer(reply) or find_stated_answer(reply) or _find_conclusion(normalize(reply))
    sentence = normalize_times(sentence).casefold()
    return bool(re.search(rf"(?<!不)(?<!不是)(?<!并非)(?<!not )(?<![a-z]){re.escape(expected)}(?![a-z])", sentence))


_REASON = re.compile(
    r"[,;(。] ?(?:因为|由于|理由|原因|解释|验证|检验|即|也就是|其中|而?不是"
    r"|because|since|as\b|which|not\b|rather|where|while|(?:fewer|more|less) than|compared|so\b"
    r"|(?:the|a|an)\b(?!.* (?:is|are|was|were|comes|equals)\b))"
    r"|。|(?:[?;]|(?<!\b[A-Za-z])(?<!\))!)(?= |$)|\. (?=\D)|\.$",
    re.IGNORECASE,
)


def _drop_reasons(text: str) -> str:
    """The first sentence of what follows a mark, without what explains it."""
    found = next((found for found in _REASON.finditer(text) if found.start()), None)
    return text[: found.start()] if found else text


_CONCLUDES = re.compile(
    r"所以|因此|因而|从而|综上(?:所述)?|故(?!事|意|障|乡)|可知|可得|解得|总之|最终|最后"
    r"|\b(?:therefore|thus|hence|so|in conclusion|in total|finally)\b",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"[。!?;\n]+|\. (?=\D)|\.$")
_REMARK = re.compile(r"\d ?(?:个?步骤?|种方法|steps?\b)")


def _find_conclusion(text: str) -> str:
    """The last sentence that says it concludes, from there on; else the last with a number; else the last."""
    text = text.replace("i.e.", " so ")
    sentences = [sentence.strip() for sentence in _SENTENCES.split(text) if sentence.strip()]
    said = [sentence for sentence in sentences if not _REMARK.search(sentence)] or sentences
    for sentence, following in zip(reversed(said), ["", *reversed(said)]):
        ends = [found.end() for found in _CONCLUDES.finditer(sentence)]
        rest = sentence[ends[-1] :].strip(" ,") if ends else ""
        if rest:
            return f"{rest} {following}" if rest.endswith((":", "是", "为", "=", " is")) else rest
    numbered = [sentence for sentence in said if re.search(r"\d", sentence)]
    return (numbered or said or [""])[-1]


_DECIDED = re.compile(r"(?:不?是|不?对|不?能|不?会|不?可以|没?有|yes|no)(?=的?(?:[,;。.!]|$))", re.IGNORECASE)
_EXPRESSION = re.compile(
    r"(?:[-+*/^=<>≤≥≠≈√π%°∞×÷·±:,.()\[\]{}|_\s\d]|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|或者?|[且和与]|\b(?:or|and)\b| ?[ap]\.?m\b)+",
    re.IGNORECASE,
)
_NOTE = re.compile(r"(?<=[\w%]) ?\([^()\d]{2,20}\)$")
_REFUSED = re.compile(r"(?:不是|并非|不等于|\bnot|n't) ?-?[\d.]+[^\d,]{0,6}$", re.IGNORECASE)
_STRUCTURE = re.compile(r"[<>≤≥≠:√π∞^±]|\d ?, ?[-+]?[\d∞]|[A-Za-z](?:_?\d)? ?=|或|\bor\b|\d-\d\d-\d", re.IGNORECASE)
_RATIOS = re.compile(r"\d+(?: ?: ?\d+)+")
_LISTED = re.compile(
    r"-?\d[\d.,/]*[^\d,;。]{0,8}(?:和|与|、|以及|或|\band\b|\bor\b) ?-?\d[^,;。]{0,12}$", re.IGNORECASE
)


def _read_sentence(text: str) -> str:
    """The answer of a sentence: yes or no where it begins so, the formula that it ends with, its only or last quantity."""
    text = trim(normalize_times(_write_relations(convert_latex(text[-LONGEST_ANSWER:]))), " .,。")
    text = _NOTE.sub("", text)
    if _REFUSED.search(text):
        return ""
    if re.search(r"\bratio\b|\bodds\b|比", text):
        text = _RATIO.sub(":", text)
    decided = _DECIDED.match(text)
    if decided:
        return decided[0].casefold()
    expressions = [found[0].strip(" ,.:") for found in _EXPRESSION.finditer(text) if re.search(r"\d", found[0])]
    if expressions and text.endswith(expressions[-1]) and _STRUCTURE.search(expressions[-1]):
        return _normalize_answer(expressions[-1])
    ratios = _RATIOS.findall(text)
    if len(ratios) == 1 and not re.search(r"\d", text[text.index(ratios[0]) + len(ratios[0]) :]):
        return ratios[0]
    dates = list(DAY.finditer(text))
    if len(dates) == 1 and not re.search(r"\d", text[dates[0].end() :]):
        return dates[0][0]
    listed = _LISTED.search(text)
    if listed:
        return _normalize_answer(listed[0])
    amount = quantities.read_quantity(text) or quantities.find_last(text) or quantities.find_counted(text)
    if amount is not None:
        return str(amount)
    days = [found[0] for found in WEEKDAY.finditer(text)]
    return days[0] if len(days) == 1 else _normalize_answer(text[_find_predicate(text) :].removesuffix("的"))


def _find_predicate(text: str) -> int:
    """Where the predicate of a short sentence begins ("那个人是李白"); 0 where it has none that could be an answer."""
    ends = [
        found.end()
        for found in re.finditer(r"(?<=[\u4e00-\u9fff])(?<!不)(?<!并非)(?:是|为|叫)|\b(?:is|was|are|were) ", text)
    ]
    return ends[-1] if ends and 0 < len(text[ends[-1] :].strip()) <= 24 else 0


_RELATIONS = [
    (r"大于或?等于|不小于|不少于|不低于|>=|\b(?:is )?greater than or equal to\b", "≥"),
    (r"小于或?等于|不大于|不超过|不多于|<=|\b(?:is )?less than or equal to\b", "≤"),
    (r"大于|\b(?:is )?(?:greater|larger) than\b", ">"),
    (r"小于|\b(?:is )?(?:less|smaller) than\b", "<"),
    (r"不等于|!=|\b(?:is )?not equal to\b", "≠"),
    (r"等于|\bequals\b|\bis equal to\b", "="),
]


def _write_relations(text: str) -> str:
    """Relations in words as signs."""
    for words, sign in _RELATIONS:
        text = re.sub(rf" ?(?:{words}) ?", sign, text, flags=re.IGNORECASE)
    return text


_RATIO = re.compile(r"(?<=\d) ?(?:比|to) ?(?=\d)", re.IGNORECASE)
_RANGE = re.compile(r"(?<=\d) ?[~到至] ?(?=\d)")
_AROUND = " \t\n.,。!?;:'\"“”‘’《》「」"
_LEADING = re.compile(r"^(?:(?:应该|应|大?约|就)?(?:是(?!的?$)|为|=|:)|(?:it|the answer) is |is )+ ?", re.IGNORECASE)
_SET = re.compile(r"^\{ ?[A-Za-z] ?[|:∣] ?(.+?) ?\}$")
_TURNS = str.maketrans("<>≤≥", "><≥≤")
_SPELT = [("或者", "或"), ("且", "和"), ("÷", "/"), ("、", ","), ("·", "*"), ("×", "*")]


def _normalize_answer(text: str) -> str:
    """One form of the text of an answer."""
    if len(text) > LONGEST_ANSWER:
        return re.sub(r"\s", "", text).casefold()
    text = _SET.sub(r"\1", text)
    text = _unwrap(_LEADING.sub("", trim(_write_relations(convert_latex(text)), _AROUND)))
    text = _RANGE.sub("-", _RATIO.sub(":", normalize_times(text)))
    unknowns = _read_unknowns(text)
    if unknowns:
        return unknowns
    decided = _DECIDED.match(text)
    if decided:
        return decided[0].casefold()
    text = _take_result(text)
    amount = quantities.read_quantity(text)
    if amount is not None:
        return str(amount)
    text = re.sub(r"\bor\b", "或", re.sub(r"\band\b", "和", text.casefold()))
    text = re.sub(r"√ ?\((\d+|\w)\)(?!\w)", r"√\1", text)
    for spelling, sign in _SPELT:
        text = text.replace(spelling, sign)
    text = trim(_BLANKS.sub("", text), _AROUND)
    return _order_relations(_SETS.sub(_sort_set, text))


_BLANKS = re.compile(r"(?<!\d) | (?!\d)|\n|\t")  # 1 2 is no 12
_SETS = re.compile(r"\{([^{}<>=|:]*,[^{}<>=|:]*)\}")


def _sort_set(found: re.Match[str]) -> str:
    """A set with its members in one order."""
    return f"{{{','.join(sorted(found[1].split(',')))}}}"


def _order_relations(text: str) -> str:
    """Relations with the unknown first (x>3), and several of them or those of two unknowns in rising order (1<x<3, a<b)."""
    first, *rest = re.split(r"([<>≤≥])", text)
    signs, last = rest[::2], rest[-1:]
    if not signs or not all([first, *rest[1::2]]):
        return text
    numbers = [re.fullmatch(r"-?[\d./]+", side) is not None for side in (first, last[0])]
    rising = signs[0] in "<≤"
    turns = not rising if len(signs) > 1 or not any(numbers) else numbers[0]
    return "".join(reversed([first, *rest])).translate(_TURNS) if turns else text


def _unwrap(text: str) -> str:
    """The text without brackets around all of it, unless they hold several things (a point, an interval)."""
    inner = text[1:-1]
    wrapped = text[:1] + text[-1:] in ("()", "[]", "{}", "【】") and not re.search(r"[()\[\],;]", inner)
    return inner.strip() if wrapped else text


_NAMED = re.compile(r"(?P<name>[A-Za-z](?:_?\d)?) ?= ?(?P<value>[^=<>≤≥≠]+)")
_EITHER = re.compile(r" ?(?:或者?|\bor\b) ?", re.IGNORECASE)
_EACH = re.compile(r" ?(?:[,;、和且]|\band\b) ?", re.IGNORECASE)


def _read_unknowns(text: str) -> str:
    """Several values of unknowns, sorted, since their order does not count; "" where the text is something else.

    >>> _read_unknowns("x=4 或 x=-3"), _read_unknowns("y=2, x=1"), _read_unknowns("3 和 4")
    ('-3或4', 'x=1,y=2', '')
    """
    text = re.sub(r"^(?:[A-Za-z] ?= ?)?± ?(.+)$", r"\1 或 -\1", text)
    either = [item.rpartition("=")[2] if _NAMED.fullmatch(item) else item for item in _EITHER.split(text)]
    if len(either) > 1:
        values = [quantities.read_quantity(item) for item in either]
        if None not in values:
            return "或".join(sorted(map(str, values)))
    items = [item for item in map(_NAMED.fullmatch, _EACH.split(text)) if item]
    if len(items) < 2 or len(items) < len(_EACH.split(text)):
        return ""
    forms = [(item["name"], _normalize_answer(item["value"])) for item in items]
    if len({name[0] for name, _ in forms}) == 1:
        return "或".join(sorted(form for _, form in forms))
    return ",".join(sorted(f"{name}={form}" for name, form in forms))


def _take_result(text: str) -> str:
    """What stands after the last sign of an equation; the text itself where it is none."""
    _, sign, after = text.rpartition("=")
    return after.strip() if sign and after.strip() and not re.search(r"[<>≤≥≠]", text) else text
