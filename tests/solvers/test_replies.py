"""What replies say, in the forms that models write them."""

import doctest
import json
import random
import re
from pathlib import Path

import pytest

from gemma_keras.inference.constraints.grammars import Grammars
from gemma_keras.solvers.backward_verification import mask_numbers
from gemma_keras.solvers.replies import (
    answers,
    judgements,
    latex,
    letters,
    numerals,
    plain,
    plans,
    quantities,
    scores,
    senses,
    times,
    units,
)
from gemma_keras.solvers.replies.judgements import affirms, read_verdict
from gemma_keras.solvers.replies.letters import find_option
from gemma_keras.solvers.replies.scores import SCORE, read_complexity
from tests.solvers.shapes import READERS, SHAPES, reply

TABLES = Path(__file__).parent / "replies"
MISREAD = {
    "解集为 (3,+∞)": "an interval and an inequality for the same set",
    "-2<x<5": "a chain of inequalities and two of them",
    "第一问答案：长是8厘米，宽是5厘米。": "two quantities, each with a name",
    "x = 4 or x = -1": "roots listed behind one name",
    "答案：八点一刻": "a time of day in words",
}
"""Rows that are known to be read wrongly, by their first reply."""


def read(row: dict) -> str | float | bool:
    """What the reader of a row's kind finds in its reply."""
    match row["kind"]:
        case "letter":
            return find_option(row["reply"], row["letters"])
        case "complexity":
            return round(read_complexity(row["reply"]), 9)
        case "verdict":
            return "accept" if read_verdict(row["reply"]).accepted else "rewrite"
        case "affirmed":
            return affirms(row["reply"])
        case "equal":
            return answers.are_same(answers.find_final_answer(row["one"]), answers.find_final_answer(row["other"]))
        case "right":
            return answers.says(row["reply"], row["answer"])
    raise AssertionError(row)


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_tables_of_replies(table):
    """Written by people who had not read the readers, but for `examples`, which are those of reports."""
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 60 and len({row["kind"] for row in rows}) == 6
    wrong = [row for row in rows if read(row) != (0.5 if row["expected"] is None else row["expected"])]
    assert {row.get("one", row.get("reply")) for row in wrong} <= MISREAD.keys()


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("1. 甲\n2. 乙\n3. 丙", ["甲", "乙", "丙"]),
        ("好的，子问题如下：\n\n1、甲\n  2）乙\n（3）丙\n\n希望有帮助。", ["甲", "乙", "丙"]),
        ("第一步：甲\n第二步：乙", ["甲", "乙"]),
        ("子问题1：甲？\n子问题 2：乙？", ["甲？", "乙？"]),
        ("Sub-question 1: a?\nQ2: b?\nStep 3) c", ["a?", "b?", "c"]),
        ("**1. 甲**\n**2.** 乙\n- 3. 丙", ["甲", "乙", "丙"]),
        ("① 甲\n②乙", ["甲", "乙"]),
        ("一、甲\n二、乙", ["甲", "乙"]),
        ("1. 甲\n2. 甲\n3. 乙", ["甲", "乙"]),
        ("1. 甲\n2. \n3. 乙", ["甲", "乙"]),
        ("1. 甲\n2. 乙\n\n问题：另一题\n1. 丙\n2. 丁", ["甲", "乙"]),
        ("1.5 千克\n3:30 出发\n2024、2025 年", []),
        ('```json\n{"sub_questions": ["甲", " 乙 ", "", 3]}\n```', ["甲", "乙"]),
        ('{"sub_questions": "甲"}', []),
        ('{"sub_questions": ["\\ud800"]}', []),
        ("{}\n1. 甲", ["甲"]),
        ("没有编号", []),
        ("", []),
    ],
)
def test_sub_questions(reply, found):
    assert plans.read_sub_questions(reply) == found


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("0.4", 0.4),
        ("我认为是 0.85 分", 0.85),
        ("７０％", 0.7),
        ("8/10", 0.8),
        ("1/0 或 0.2", 0.2),
        ("0", 0.0),
        (".25", 0.25),
        ("1.5", 1.0),
        ("-0.5", 0.0),
        ("v2 很难", 0.5),
        ("", 0.5),
    ],
)
def test_complexity(reply, value):
    assert read_complexity(reply) == value


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        ("准确性：通过\n完整性：通过\n逻辑性：通过\n建议：无", True),
        ("1. **准确性**：通过，无误。\n2. **完整性**：通过\n3. **逻辑性**：通过\n4. **建议**：无需修改。", True),
        ("Accuracy: pass\nCompleteness: pass\nLogic: pass\nSuggestions: None.", True),
        ("Suggestions: N/A", True),
        ("建议：", True),
        ("无需修改。", True),
        ("", True),
        ("准确性：不通过，算错了\n完整性：通过\n逻辑性：通过\n建议：无", False),
        ("Accuracy: pass\nCompleteness: fail, no unit\nLogic: pass\nSuggestions: none", False),
        ("准确性：通过\n完整性：通过\n逻辑性：通过\n建议：写出单位", False),
        ("建议：无，但可以写上单位", False),
        ("建议：\n- 写上单位", False),
        ("准确性：通过\n完整性：通过\n逻辑性：通过", True),
        ("回答得不错，值得表扬", True),
        ("今天天气晴。", False),
    ],
)
def test_whether_a_verdict_asks_for_nothing(reply, accepted):
    review = read_verdict(reply)
    assert review.accepted is accepted and review.text == reply


def test_parts_of_a_verdict():
    review = read_verdict("先看：\n准确性：不通过\n3 + 4 应为 7\n完整性：通过\n逻辑性: 通过\n修改建议：改正\n并写单位")
    assert (review.accuracy, review.completeness, review.logic) == ("不通过\n3 + 4 应为 7", "通过", "通过")
    assert review.suggestions == "改正\n并写单位"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("答案：1,200 元", "一共 1200.0 元", True),
        ("答案：１２", "Answer: 12.", True),
        ("答案是：5 个苹果", "The final answer is **5**", True),
        ("答案：50%", "答案：0.5", True),
        ("答案：1/4", "答案：0.25", True),
        ("先算 3 + 4 = 7，再乘 2，得 14", "14", True),
        ("答案：3 个苹果和 4 个梨", "答案：4 个梨", False),
        ("答案：3 个苹果和 4 个梨。", "答案：3个苹果和4个梨", True),
        ("答案：李 白", "答案：李白。", True),
        ("答案：Paris", "答案：paris", True),
        ("答案：12\n答案：13", "13", True),
        ("答案：\n13", "13", True),
        ("答案：-3", "答案：3", False),
        ("答案：10", "答案：1", False),
        ("1,2,3", "3", False),
    ],
)
def test_votes(one, other, same):
    assert answers.are_same(answers.find_final_answer(one), answers.find_final_answer(other)) is same


def test_nothing_is_no_vote():
    assert answers.find_final_answer("") == answers.find_final_answer("。。。") == ""
    assert not answers.are_same("", "")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("A 不对，所以选 C。\n答案：C", "C"),
        ("答案：Ｄ", "D"),
        ("Answer: b? No, answer: B", "B"),
        ("应选Ｃ", "C"),
        ("ABBA 乐队", ""),
        ("答案：E。选 A", "A"),
    ],
)
def test_options(reply, letter):
    assert find_option(reply, "ABCD") == letter


def test_masked_questions():
    question = "小明有 1,200 元，花了 3.5 元买 A4 纸，又买 2 支笔，剩多少？"
    assert mask_numbers(question, 9) == [
        (question.replace("1,200", "X"), "1,200"),
        (question.replace("3.5", "X"), "3.5"),
        (question.replace("2 支", "X 支"), "2"),
    ]
    assert mask_numbers("为什么？", 9) == []


@pytest.mark.parametrize(
    ("reply", "right"),
    [("答案：正确", True), ("推理没有错误，答案：正确", True), ("答案：错误", False), ("不正确", False), ("Answer: wrong", False),
     ("True", True), ("", False)],
)  # fmt: skip
def test_affirmations(reply, right):
    assert affirms(reply) is right


@pytest.mark.parametrize("language", ["zh", "en"])
def test_whatever_matches_a_constraint_is_read(tokenizer, language):
    """Random texts that the constraints allow, token by token, within a budget that is often short."""
    rng = random.Random(0)
    grammars = Grammars(tokenizer, [tokenizer.eos_id])
    forms = (plans.make_list_constraint(language), plans.make_json_constraint(language), SCORE)
    for form in forms:
        for _ in range(3):
            text = drawn(grammars, form, tokenizer, rng)
            if form is SCORE:
                assert read_complexity(text) == float(text)
                continue
            plan = plans.read_sub_questions(text)
            assert 1 <= len(plan) <= 5, text
            listed = (
                json.loads(text)["sub_questions"] if text.startswith("{") else re.findall(r"^\d\. (.*)$", text, re.M)
            )
            assert 3 <= len(listed) <= 5


def drawn(grammars, form, tokenizer, rng) -> str:
    """A text under a constraint, every allowed token being as likely."""
    import numpy as np

    matcher = grammars.matcher(form, 150)
    tokens: list[int] = []
    while not matcher.finished:
        bits = np.zeros(-(-tokenizer.vocabulary_size // 32), np.uint32)
        matcher.fill(bits)
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        tokens.append(matcher.accept(int(rng.choice(allowed))))
    return tokenizer.decode(tokens)


def test_latex_that_nests_too_deep_or_lacks_arguments_is_read_as_it_stands(caplog):
    for text in ("_{" * 140, "\\sqrt" * 50, "\\frac{1}", "\\frac", "\\binom"):
        assert isinstance(answers.find_final_answer(f"答案：{text}"), str)
    assert not caplog.records


@pytest.mark.parametrize(("unit", "end"), SHAPES)
def test_no_reader_hangs_on_a_long_reply(unit, end):
    """A pattern that backtracks would take minutes and more; how time grows is shown by `benchmarks.reply_readers`."""
    text = reply(unit, end, 100_000)
    for reader in READERS.values():
        reader(text)


@pytest.mark.parametrize(
    "module", [answers, judgements, latex, letters, numerals, plain, plans, quantities, scores, senses, times, units]
)
def test_examples_of_the_documentation(module):
    assert doctest.testmod(module).failed == 0
