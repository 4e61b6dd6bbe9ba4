"""Words beside a number that turn it into another answer: at least or at most, a gain or a loss, 3 hours ago or later."""

import re

_NUMBER = r" ?(?=[-\d.$零一二两三四五六七八九十百半])"
_OPPOSED: list[dict[str, str]] = [
    {
        "至少": r"至少|最少|不少于|不低于|以上|\bat least|\bor more\b",
        "至多": r"至多|最多|不超过|不多于|以[下内]|\bat most|\bup to\b|\bor (?:less|fewer)\b",
        "超过": rf"(?<!不)(?:超过|多于){_NUMBER}|\b(?:more than|over){_NUMBER}",
        "不到": rf"(?:不到|不足|(?<!不)少于){_NUMBER}|\b(?:less than|fewer than|under){_NUMBER}",
    },
    {"盈": r"盈利|净?赚|\bprofit|\bgain", "亏": r"亏|赔|\bloss\b|\blost\b"},
    {
        "增": r"增[加长多]|上[涨升调]|提[高价升]|[涨升]了|涨价|\bincreas|\brise|\brose\b",
        "减": r"减[少小]|下[跌降调]|降[低价]|[跌降]了|\bdecreas|\bfall|\bfell\b|\bdrop",
    },
    {"早": r"提[前早]|早到|早了|\bearl(?:y|ier)\b", "晚": r"推迟|延[迟后误]|晚到|晚了|迟到|\blater?\b"},
    {"前": r"(?:年|月|周|天|日|时|分钟|秒)之?前|\bago\b", "后": r"(?:年|月|周|天|日|时|分钟|秒)之?后|\bfrom now\b"},
    {"公元前": r"公元前", "公元": r"公元(?!前)"},
    {"北纬": r"北纬", "南纬": r"南纬"},
    {"东经": r"东经", "西经": r"西经"},
    {f"向{way}": rf"[向往偏朝]{way}" for way in "东西南北"},
    {f"向{way}": rf"[向往偏朝]{way}" for way in "左右上下前后"},
]
_ALONE = {"超过", "不到"}
"""Another answer even than a number alone; at least 5, which may be what was asked for, is not."""
_PATTERNS = [{name: re.compile(words, re.IGNORECASE) for name, words in group.items()} for group in _OPPOSED]
_GROUP = {name: number for number, group in enumerate(_OPPOSED) for name in group}


def find_senses(text: str) -> tuple[str, ...]:
    """The names of the senses in which a short text gives its number; of opposed ones that it has both, none.

    >>> find_senses("亏损了 5 元"), find_senses("at least 5"), find_senses("先增加 3，后减少"), find_senses("5")
    (('亏',), ('至少',), (), ())
    """
    found = [[name for name, words in group.items() if words.search(text)] for group in _PATTERNS]
    return tuple(names[0] for names in found if len(names) == 1)


def are_opposed(ones: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether two answers exclude each other; most senses that one of them leaves out are the other's."""
    if _ALONE & (set(ones) ^ set(others)):
        return True
    return any(one != other and _GROUP[one] == _GROUP[other] for one in ones for other in others)


def are_senses(names: tuple[str, ...]) -> bool:
    """Whether these are names of senses."""
    return all(name in _GROUP for name in names)
