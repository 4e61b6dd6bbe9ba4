"""LaTeX as one line of text that keeps its meaning: what a fraction, a root or a power covers, and every sign.

pylatexenc does the parsing and knows most signs. What it would drop is said here: brackets that only its braces show, and
macros that it does not know, which stay as they are written.
"""

import re
from typing import Any

from pylatexenc import latexwalker
from pylatexenc.latex2text import EnvironmentTextSpec, LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.macrospec import LatexContextDb, std_macro

_SIGNS = {
    "ne": "≠", "lt": "<", "gt": ">", "neg": "¬", "lnot": "¬", "land": "∧", "lor": "∨", "implies": "⇒", "iff": "⇔",
    "triangle": "△", "degree": "°", "colon": ":", "lbrack": "[", "rbrack": "]", "lg": "lg", "cot": "cot", "sec": "sec",
    "yen": "¥", "quad": " ", "qquad": " ", "checkmark": "✓", "mid": "|", "pmod": " mod %s", "bmod": " mod ", "\\": ", ",
}  # fmt: skip
_STYLES = (
    "displaystyle textstyle limits nolimits bm boldsymbol operatorname mathrm underline small large rm bf it left right "
    "big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr boxed fbox"
).split()
"""Macros that change the look alone; what they are applied to follows as it is."""
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_BINOMIALS = ("binom", "dbinom", "tbinom")
_PLAIN_PART = re.compile(r"-?[\w.]*(?:√(?:\[\d\])?)?\(?[\w.]+\)?")
_PLAIN_DIVISOR = re.compile(r"[\d.]+|[^\W\d_]|[\u4e00-\u9fff]+|√(?:\[\d\])?\([\w.]+\)")


def latex_to_text(text: str) -> str:
    r"""The text of LaTeX, which need not be well-formed.

    Raises:
        ValueError, IndexError, RecursionError, TypeError: pylatexenc cannot read it.

    >>> latex_to_text(r"\frac{x+1}{2} \ne \sqrt{x}+1"), latex_to_text(r"$2^{10}$"), latex_to_text(r"x^{n+1} \foo 1{,}000")
    (' (x+1)/2  ≠√(x)+1', '2^10', 'x^(n+1) \\foo 1,000')
    """
    text = re.sub(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))", "", text)  # a blank between thousands
    text = re.sub(r"(?<!\\)[%#]|(?<!\\)&(?!.*\\end)", r"\\\g<0>", text)  # signs of a reply, not comments or columns
    text = re.sub(r"([\^_]) ?\{", r"\1\\exponent{", text)
    return _READER.latex_to_text(text, latex_context=_MACROS)


def _bracket(text: str, plain: str | re.Pattern[str]) -> str:
    """A part of a formula, in brackets unless it is as plain as that."""
    text = text.strip()
    return text if re.fullmatch(plain, text) else f"({text})"


def _read_arguments(node: Any, reader: Any) -> list[str]:
    """The texts of a macro's arguments; "" for one that is missing."""
    given = node.nodeargd.argnlist if node.nodeargd else []
    return [reader.nodelist_to_text([one]) if one else "" for one in given]


def _write_fraction(node: Any, l2tobj: Any) -> str:
    """A blank before a fraction keeps 3\\frac{1}{2} from being 31/2."""
    above, below = [*_read_arguments(node, l2tobj), "", ""][:2]
    return f" {_bracket(above, _PLAIN_PART)}/{_bracket(below, _PLAIN_DIVISOR)} " if above and below else "\\frac"


def _write_root(node: Any, l2tobj: Any) -> str:
    index, radicand = [*_read_arguments(node, l2tobj), "", ""][:2]
    index = index.strip("[]")
    return f"√{f'[{index}]' if index else ''}({radicand.strip()})"


def _write_exponent(node: Any, l2tobj: Any) -> str:
    return _bracket("".join(_read_arguments(node, l2tobj)), r"-?\d+|.")


def _write_binomial(node: Any, l2tobj: Any) -> str:
    return f"C({','.join(_read_arguments(node, l2tobj))})"


def _keep_unknown(node: Any) -> str:
    return f"\\{node.macroname} "


def _make_parser_context() -> LatexContextDb:
    """What is parsed: pylatexenc's own macros, and those with arguments that it does not know."""
    macros = [std_macro(name, False, 2) for name in (*_FRACTIONS, *_BINOMIALS)] + [
        std_macro(name, False, 1) for name in ("pmod", "exponent")
    ]
    context = latexwalker.get_default_latex_context_db()
    context.add_context_category("answers", macros=macros, prepend=True)
    return context


def _make_text_context() -> LatexContextDb:
    context = get_default_latex_context_db()
    macros = [MacroTextSpec(name, sign) for name, sign in _SIGNS.items()]
    macros += [MacroTextSpec(name, _write_fraction) for name in _FRACTIONS]
    macros += [MacroTextSpec(name, _write_binomial) for name in _BINOMIALS]
    macros += [MacroTextSpec("sqrt", _write_root), MacroTextSpec("exponent", _write_exponent)]
    macros += [MacroTextSpec(name, "", discard=False) for name in _STYLES]
    environments = [EnvironmentTextSpec(name, "%s") for name in ("cases", "aligned", "align", "align*", "gathered")]
    context.add_context_category("answers", macros=macros, environments=environments, prepend=True)
    context.set_unknown_macro_spec(MacroTextSpec("", _keep_unknown))
    return context


_MACROS = _make_parser_context()
_READER = LatexNodes2Text(latex_context=_make_text_context(), math_mode="text")
