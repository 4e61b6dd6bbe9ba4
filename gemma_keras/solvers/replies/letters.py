"""Which option of a multiple-choice question a reply chooses.

A letter counts where the reply says that it is chosen, and the more plainly, the more: a stated answer ("答案是 C") before a
choice ("所以选 C"), that before a judgement of the option ("C 项正确"), that before a letter that opens the reply or a line
of its own. Mentions of any other kind (维生素A, type B, "rules out A") count for nothing.
"""

import functools
import re

from gemma_keras.solvers.replies.plain import last_boxed, plain

_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|boldsymbol|bm|quad|qquad|left|right|[()\[\] ,;])|[{}$]")
_CORRECTION = re.compile(
    r"等等|不对[,。;!]|重新(?:算|看|想|审)|更正|修正|说错|算错|看错|\bwait\b|\bactually,|\bcorrection\b|\bon second thought",
    re.IGNORECASE,
)

_SURE = "(?:应该|应当|应|就|便|则|只能|显然|肯定|当然|大概|可能|还|我)?"
_STATED = (
    rf"(?:答案|正确(?:的?选项|的?一?项|的)|选项|[最更][^,。;:\n]{{1,12}}的(?:一?项|选项)?|选择|选的|[说表]?[法述]?[^,。;\n]{{0,2}}的)[】\]\"'”]?"
    rf" ?{_SURE} ?(?:是|为|选择?|:|=|即|→)+ ?{_SURE} ?[:是选]?",
    r"(?:\b(?:answer|choice|option|pick|selection|response|one)(?: here| to this question)?"
    r"(?:'s| is| was| would be| should be| must be| has to be| ?[:=]| ?->| ?→)+"
    r"(?: (?:actually|therefore|clearly|probably|most likely|definitely|indeed|thus|simply|then|just|still))?)",
    r"【答案】 ?|<answer> ?|\"(?:answer|choice|option)\" ?: ?|#### ?",
)
_CHOSEN = (
    r"(?:(?<![不别勿没])(?<!不能)(?<!不应)(?<!不该)(?<!不会)选(?!项)(?:择|定|取|了|的是|用)?|只有|只剩下?|剩下的?(?:只有|就是)?|留下|也就是|(?<![不都])就是|应该是|应为|只能是|即|(?:觉得|认为|感觉|猜) ?(?:答案)?(?:应该)?(?:是|选)?|定为|支持|倾向于?|改[选为成]?|(?:故|所以|因此|综上(?:所述)?|最终)(?:是|为)?[,:]?)",
    r"\b(?:choos(?:e|ing)|chose|pick(?:ing)?|select(?:ing)?|go(?:ing)? (?:with|for)|went with|opt(?:ing)? for|settle on|leav(?:ing|es)(?: (?:us|me|only))*(?: with)?|left with|"
    r"has to be|must be|should be|would be|(?:think|guess|believe|say)(?: that)?(?: it'?s| it is)?|it'?s|it is|that'?s|(?:that|which) is|namely|(?:thus|hence|therefore|so|finally)[,:]?|answer with|only)",
)
_BETWEEN = r" ?(?:the )?(?:选项|选择|第|option|choice|answer|letter|response|答案|statement|项)? ?[:\"'“‘(\[【]? ?"
_AFTER = r"(?![A-Za-z0-9_^'′=]|['’][a-z]| ?[型组超级班股]|-[A-Za-z])"
_RIGHT = (
    r"[)\]】\"'”’]? ?(?:这?个?选项|这?一?项)? ?[:,]? ?(?:[^,。;:!?\nA-Z错误不非无]{0,10})?(?:才|就|都|完全|最|均)?(?:是|为)?(?:正确|对的|对(?=[,。;!\n]|$)|符合|最佳|成立|合适|恰当)",
    r"[)\]\"']?,? (?:is|are|looks|seems)(?: both| all| clearly| indeed| the)*(?: (?:correct|right|best|better|only (?:correct|right|possible|valid|remaining|one)|true answer|one that))",
)
_DENIED_AFTER = r"(?:[)\]】\"']? ?(?:选项|项)?(?:是|都|也|就)?(?:错|不[是对正符成]|有误)| (?:is|are|was) (?:not|wrong|incorrect|false))"
_SUPPOSED = re.compile(r"(?:如果|若|假如|要是|假设|倘若|一旦|\bif\b|\bsuppose\b|\bwere\b|\bcan't\b|\bcannot\b|\bnot\b|\bn't\b|不能|不要|不应|不会|没有?|能否|是否)[^,。;\n]{0,10}$", re.IGNORECASE)
_ALSO = r" ?(?:、|,|和|与|或者?|及|以及|还是|跟|/|&|and|or)+ ?(?:选项|option )?"


def option(reply: str, letters: str) -> str:
    """The one of `letters` that a reply chooses; empty where it chooses none, or several.

    >>> option("A 不对，应选 B。答案：B", "ABCD"), option("维生素A缺乏导致夜盲症，所以选ｃ", "ABCD"), option("A 或 B", "AB")
    ('B', 'C', '')
    """
    patterns = _patterns(letters)
    boxed, rest = last_boxed(reply)
    text = plain(_LATEX.sub("", rest))
    corrections = [found.end() for found in _CORRECTION.finditer(text)]
    for part in [text[corrections[-1] :], text] if corrections else [text]:
        stated = [found for found in patterns.stated.finditer(part) if not _denied(part, found)]
        if stated:
            return _only(stated[-1], letters)
        if boxed and part is text:
            break
        chosen = [found for found in patterns.chosen.finditer(part) if not _denied(part, found) and not _asked(part, found)]
        if chosen:
            return _only(chosen[-1], letters)
    if boxed:
        return _bare(plain(_LATEX.sub("", boxed)), letters, patterns)
    judged = {_only(found, letters) for found in patterns.right.finditer(text) if not _denied(text, found)}
    if judged:
        return judged.pop() if len(judged) == 1 else ""
    return _bare(text, letters, patterns)


class _Patterns:
    """Compiled for a set of letters. Group 1 is the letter, group 2 another one that is named beside it."""

    def __init__(self, letters: str) -> None:
        either = f"[{letters}{letters.lower()}]"
        capital = f"(?<![A-Za-z0-9_'^∠△\\\\-])[{letters}]"
        also = rf"(?:[)\]】]?{_ALSO}({either}){_AFTER}(?!{_DENIED_AFTER}))?"
        named = rf"{_BETWEEN}({either}){_AFTER}{also}"
        self.stated = re.compile(rf"(?:{'|'.join(_STATED)}){named}", re.IGNORECASE)
        self.chosen = re.compile(rf"(?:{'|'.join(_CHOSEN)}){named}", re.IGNORECASE)
        self.right = re.compile(rf"(?:({either}){_ALSO})?({capital}){_AFTER}(?:{'|'.join(_RIGHT)})")
        self.denied_after = re.compile(_DENIED_AFTER, re.IGNORECASE)
        self.alone = re.compile(rf"[(\[【\"'“]?(?:选项|option |choice )? ?({either}) ?(?:选项|项)?[)\]】\"'”.,:!。、 吧呢啊哦]{{0,6}}", re.IGNORECASE)
        self.opening = re.compile(rf"(?:\(|\[|选项 ?|option )?([{letters}])(?:[)\].:、。,!?]|选项|项| ?$)", re.IGNORECASE)


@functools.lru_cache(maxsize=32)
def _patterns(letters: str) -> _Patterns:
    return _Patterns(letters)


def _only(found: re.Match[str], letters: str) -> str:
    """The letter of a match; empty where it names two."""
    named = {letter.upper() for letter in found.groups() if letter}
    return named.pop() if len(named) == 1 else ""


def _denied(text: str, found: re.Match[str]) -> bool:
    """Whether a match is under a condition or a negation, or what follows it says that it is wrong."""
    before = text[max(0, found.start() - 24) : found.start()]
    return bool(_SUPPOSED.search(before)) or bool(re.match(_DENIED_AFTER, text[found.end() : found.end() + 20], re.IGNORECASE))


def _asked(text: str, found: re.Match[str]) -> bool:
    """Whether a match stands in a question."""
    rest = re.search(r"[。!?;\n]|\. ", text[found.end() : found.end() + 40])
    return bool(rest) and rest[0] == "?" if rest else False


def _bare(text: str, letters: str, patterns: _Patterns) -> str:
    """The letter that is all of a text, or opens its first or its last line, where no other letter opens a line."""
    alone = patterns.alone.fullmatch(text)
    if alone:
        return alone[1].upper()
    lines = text.split("\n")
    opened = [found[1].upper() for line in lines if (found := patterns.opening.match(line))]
    if len(set(opened)) != 1 or not (patterns.opening.match(lines[0]) or patterns.opening.match(lines[-1])):
        return ""
    return opened[0]
