"""Replies of any length in shapes that make careless patterns backtrack, and everything that reads replies."""

from collections.abc import Callable

from gemma_keras.solvers.replies import answers, judgements, plain, plans, scores
from gemma_keras.solvers.replies.letters import find_option

REPEATED = (
    " ", "\n", "\u3000", "1\n", "1. a\n", "答案", "答案 ", "答案：", "Answer: ", "结果是", "#### ", "*", "**", "# ",
    "- ", "A", "A ", "A、", "选", "选A", "应选", "A和", "所以", "所以，", "0.5 ", "1,", "1,000,", "1/", "9", "-",
    "(", "[", "{", "$", "\\boxed{", "\\frac{", "\\", "建议：", "准确性：通过", "没有", "无", "不", "not ", "a=",
    "x<", "零", "一又", "百分之", "3元", "1小时", "五 ", "five ", "不对，", "wait ", "满分10", "到0.5", "2023-",
    "周", "或", "x=1或", "错误", "no error ", "the ", "比", "：", "。", "<b>", "|", "a.", "_", "`", "答", "3:",
    "_{", "^{", "\\sqrt", "\\ne ", "A、", "选A、B、", "答案 ", "a?", "如果", "1 to 10", "5 MB ", "n!", "1月", "\u00a0",
)  # fmt: skip
SHAPES = [(unit, ("x", "", "。答案：A", "\n建议：无")[number % 4]) for number, unit in enumerate(REPEATED)]

READERS: dict[str, Callable[[str], object]] = {
    "plain": plain.normalize,
    "marked_answer": plain.find_marked_answer,
    "sub_questions": plans.read_sub_questions,
    "option": lambda reply: find_option(reply, "ABCD"),
    "complexity": scores.read_complexity,
    "verdict": judgements.read_verdict,
    "affirmed": judgements.affirms,
    "final_answer": answers.find_final_answer,
    "says": lambda reply: answers.says(reply, "甲乙"),
    "expected_answer": answers.normalize_expected,
}


def reply(unit: str, end: str, length: int) -> str:
    """A reply of `length` characters, apart from its mark and end."""
    return f"答案{unit * (length // len(unit))}{end}"
