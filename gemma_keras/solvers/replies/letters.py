"""Which option of a multiple-choice question a reply chooses.

A letter counts where the reply says that it is chosen, and the more plainly, the more: a stated answer ("答案是 C") before a
choice ("所以选 C"), that before a judgement of the option ("C 项正确"), that before a letter that opens the reply or a line
of its own. Mentions of any other kind (维生素A, type B, "rules out A") count for nothing.
"""

import functools
import re

from gemma_keras.solvers.replies.plain import find_last_boxed, normalize, skip_to_correction

_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|boldsymbol|bm|quad|qquad|left|right|[()\[\] ,;])|[{}$]")

# Each of the following ends where a letter may follow.
_HEDGE = "(?:应该|应当|应|就|便|则|只能|显然|肯定|当然|大概|可能|还|我|其实|实际上|最终|反而)?"
_ALONE = r"[(]?(?-i:[A-Z])(?:[^\w ]|$)"
_STATED_ZH = (
    r"(?:答案|结论|正确(?:的?选项|的?一?项|的)|选项|选择|选的|[最更][^,。;:\n]{1,12}的(?:一?项|选项)?)[】\]\"'”]?"
    rf" ?{_HEDGE} ?(?:是|为|选择?|:|=|即|→)+ ?{_HEDGE} ?[:是选]?|【答案】 ?"
    rf"|(?:答案|正确选项|(?<![^\n])答 ?: ?选?) ?(?={_ALONE})"
)
_STATED_EN = (
    r"\b(?:ans(?:wer)?|choice|option|pick|selection|response|one)(?: here| to this question)?"
    r"(?:'s| is| was| would be| should be| must be| has to be| ?[:=]| ?->| ?→)+"
    r"(?: (?:actually|therefore|clearly|probably|most likely|definitely|indeed|thus|simply|then|just|still))?"
    rf"|<answer> ?|\bans(?:wer)?\.? (?={_ALONE})|\"(?:answer|choice|option)\" ?: ?|#### ?"
)
_CHOSEN_ZH = (
    r"(?<![不别勿没误错漏])(?<!不[能应该会])选(?!项)(?:择|定|取|了|的是|用)?|只有|只剩下?|剩下的?(?:只有|就是)?|留下|也就是|(?<![不都])就是"
    r"|应该是|应为|只能是|即|(?:觉得|认为|感觉|猜) ?(?:答案)?(?:应该)?(?:是|选)?|定为|支持|倾向于?|对应|改[选为成]?"
    r"|(?:故|所以|因此|综上(?:所述)?|最终)(?:是|为)?[,:]?"
)
_CHOSEN_EN = (
    r"\b(?:choos(?:e|ing)|chose|pick(?:ing)?|select(?:ing)?|go(?:ing)? (?:with|for)|went with|opt(?:ing)? for|settle on"
    r"|prefer|favou?r|match(?:es)?|fits?|leav(?:ing|es)(?: us| me)?(?: only)?(?: with)?|left with|answer with|only"
    r"|has to be|must be|should be|would be|(?:think|guess|believe|say)(?: that)?(?: it'?s| it is)?"
    r"|it'?s|it is|that'?s|(?:that|which) is|namely|(?:thus|hence|therefore|so|finally)[,:]?)"
)
_BETWEEN = r" ?(?:the )?(?:选项|选择|第|option|choice|answer|letter|response|答案|回答|statement|项)? ?[:\"'“‘(\[【]? ?"

# Each of the following begins after a letter.
_ENDS = r"(?![A-Za-z0-9_^'′=]|['’][a-z]| ?[型组超级班股]|-[A-Za-z])"
_RIGHT_ZH = (
    r"[)\]】\"'”’]? ?(?:这?个?选项|这?一?项)? ?[:,]? ?(?:[^,。;:!?\nA-Z错误不非无]{0,10})?(?:才|就|都|完全|最|均)?(?:是|为)?"
    r"(?:正确|对的|对(?=[,。;!\n]|$)|符合|最佳|成立|合适|恰当)"
)
_RIGHT_EN = (
    r"[)\]\"']?,? (?:is|are|looks|seems)(?: both| all)?(?: clearly| indeed)?(?: the)? "
    r"(?:correct|right|best|better|only (?:correct|right|possible|valid|remaining|one)|true answer"
    r"|(?:best |right |correct )?answer\b|one that)"
)
_WRONG = r"[)\]】\"']? ?(?:选项|项)?(?:是|均|都|也|就)?(?:错|不[是对正符成]|有误)| (?:is|are|was) (?:not|wrong|incorrect|false)"
_ALSO = r" ?(?:、|,|和|与|或者?|及|以及|还是|跟|/|&|and|or)+ ?(?:选项|option )?"

_SUPPOSED = re.compile(
    r"(?:如果|若|假如|要是|假设|倘若|一旦|不能|不要|不应|不会|没有?|能否|是否"
    r"|\bif\b|\bsuppose\b|\bwere\b|\bcan't\b|\bcannot\b|\bnot\b|n't\b)[^,。;\n]{0,10}$|(?:除了?|排除) ?$",
    re.IGNORECASE,
)


def find_option(reply: str, letters: str) -> str:
    """The one of `letters` that a reply chooses; empty where it chooses none, or several.

    >>> [find_option(reply, "ABCD") for reply in ("A 不对，应选 B。答案：B", "维生素A缺乏导致夜盲症，所以选ｃ", "A 或 B")]
    ['B', 'C', '']
    """
    patterns = _compile_patterns(letters)
    boxed, rest = find_last_boxed(reply)
    text = normalize(_LATEX.sub("", rest))
    for part in dict.fromkeys((skip_to_correction(text), text)):
        stated = patterns.meant(patterns.stated, part)
        if stated:
            return _read_letter(stated[-1])
        if boxed and part is text:
            return _find_bare_letter(normalize(_LATEX.sub("", boxed)), patterns)
        chosen = [found for found in patterns.meant(patterns.chosen, part) if not _is_in_question(part, found)]
        if chosen:
            return _read_letter(chosen[-1])
    for pattern in (patterns.right, patterns.last):
        judged = {_read_letter(found) for found in patterns.meant(pattern, text)}
        if judged:
            return judged.pop() if len(judged) == 1 else ""
    return _find_bare_letter(text, patterns)


class _Patterns:
    """Compiled for a set of letters. Group 1 is the letter, group 2 another one that is named beside it."""

    def __init__(self, letters: str) -> None:
        either = f"[{letters}{letters.lower()}]"
        capital = f"(?<![A-Za-z0-9_'^∠△\\\\-])[{letters}]"
        others = rf"(?:(?:{_ALSO}){either}){{0,9}}{_WRONG}"
        also = rf"(?:[)\]】]?{_ALSO}({either}){_ENDS}(?!{others}))?"
        named = rf"{_BETWEEN}({either}){_ENDS}{also}"
        self.stated = re.compile(rf"(?:{_STATED_ZH}|{_STATED_EN}){named}", re.IGNORECASE)
        self.chosen = re.compile(rf"(?:{_CHOSEN_ZH}|{_CHOSEN_EN}){named}", re.IGNORECASE)
        self.right = re.compile(rf"(?:({either}){_ALSO})?({capital}){_ENDS}(?:{_RIGHT_ZH}|{_RIGHT_EN})")
        self.last = re.compile(rf"(?:选项|option|choice) ?\(?([{letters}])\)? ?[.。!]?(?:\n|$)", re.IGNORECASE)
        self.wrong = re.compile(_WRONG, re.IGNORECASE)
        self.alone = re.compile(
            rf"[(\[【\"'“]?(?:选项|option |choice )? ?({either}) ?(?:选项|项)?(?:吧|呢|啊|哦)?\W{{0,8}}", re.IGNORECASE
        )
        self.opening = re.compile(
            rf"(?:\(|\[|选项 ?|option )?([{letters}])(?:[)\].:、。,!?]|选项|项| ?$)(?! ?[和与,、]? ?{either}(?![A-Za-z]))",
            re.IGNORECASE,
        )

    def meant(self, pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
        """The matches of a pattern that are under no condition or negation, and not called wrong behind it."""
        return [
            found
            for found in pattern.finditer(text)
            if not self.wrong.match(text, found.end())
            and not _SUPPOSED.search(text[max(0, found.start() - 24) : found.start()])
        ]


_compile_patterns = functools.lru_cache(maxsize=32)(_Patterns)


def _read_letter(found: re.Match[str]) -> str:
    """The letter of a match; empty where it names two."""
    named = {letter.upper() for letter in found.groups() if letter}
    return named.pop() if len(named) == 1 else ""


def _is_in_question(text: str, found: re.Match[str]) -> bool:
    """Whether a match stands in a question."""
    end = re.search(r"[。!?;\n]|\. ", text[found.end() : found.end() + 40])
    return end is not None and end[0] == "?"


def _find_bare_letter(text: str, patterns: _Patterns) -> str:
    """The letter that is all of a text, or opens its first or its last line, where no other letter opens a line."""
    alone = patterns.alone.fullmatch(text)
    if alone:
        return alone[1].upper()
    lines = text.split("\n")
    opened = [found[1].upper() for line in lines if (found := patterns.opening.match(line))]
    if len(set(opened)) != 1 or not (patterns.opening.match(lines[0]) or patterns.opening.match(lines[-1])):
        return ""
    return opened[0]
