"""Traces as JSON, as pages, and summed up."""

import json

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.serialization import from_dict, from_json, to_dict
from gemma_keras.solvers.analysis import analyze, bound_share, find_checks, format_costs, format_verification, is_right
from gemma_keras.solvers.registry import NAMES as SOLVERS
from gemma_keras.solvers.registry import make_solver
from gemma_keras.solvers.rendering import LABELS, render
from gemma_keras.solvers.trace import Cost, Direct, Question, Trace, route
from tests.solvers.scripted import FAIL, PASS, PLAN, Scripted, settings

QUESTIONS = ["有 20 本，借走 6 本，剩几本？", Question("2 加 2？", ("3", "4"), id="x")]


def script():
    return {
        "C": lambda message: "0.9" if "借" in message else "0.1", "A": ["答案：A", "答案：14", "答案：B", "答案：15"] * 9,
        "P": lambda message: PLAN if "借" in message else "?", "PS": "?", "F": "a1", "N": "n", "S": "答案：15",
        "J": [FAIL, PASS] * 9, "R": "答案：14", "ST": "s", "M": "答案：6", "V": "对", "L": "A",
    }  # fmt: skip


def traces(name, **options):
    return make_solver(name, Scripted(script()), settings(**options)).solve(QUESTIONS)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_round_trip(name, calls):
    for trace in traces(name, max_calls=calls, samples=3):
        text = json.dumps(to_dict(trace), ensure_ascii=False)
        assert from_json(text, Trace, "trace") == trace and "\n" not in text
        assert from_dict(json.loads(text), Trace).work.answer == trace.answer
        assert "借" in text or trace.question.id == "x"  # Chinese stays readable


def test_the_form_of_a_trace():
    trace = Trace(
        question=Question("q"), solver="normal", work=Direct(answer="a"), answer="a", cost=Cost(1, 2, 3, 0, 0.5)
    )
    assert to_dict(trace) == {
        "question": {"text": "q", "choices": [], "id": ""},
        "solver": "normal",
        "work": {"kind": "direct", "answer": "a"},
        "answer": "a",
        "letter": "",
        "failure": "",
        "stopped": "",
        "cost": {"calls": 1, "prompt_tokens": 2, "new_tokens": 3, "cut": 0, "seconds": 0.5},
        "elapsed": 0.0,
    }


def broken(**changes):
    (plain,) = [to_dict(trace) for trace in traces("self_verification")[:1]]
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = plain
        for parent in parents:
            part = part[parent]
        part[name] = value
    return plain


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"answer": 1}, "trace.answer is 1: Input should be a valid string"),
        (
            {"work__kind": "magic"},
            "Input tag 'magic' found using 'kind' does not match any of the expected tags: 'direct'",
        ),
        ({"work": None}, "trace.work is None"),
        ({"work__check__verdicts": "x"}, "check.verdicts is 'x': Input should be a valid array"),
        ({"work__check__verdicts": [{}]}, "check.verdicts.0.text is {}: Field required"),
        ({"cost__calls": 1.5}, "trace.cost.calls is 1.5: Input should be a valid integer"),
        ({"extra": 1}, "trace.extra is 1: Unexpected keyword argument"),
        ({"cost": 3}, "trace.cost is 3: Input should be an object"),
    ],
)
def test_what_is_no_trace(changes, sentence):
    assert from_dict(broken(), Trace, "trace").answer
    with pytest.raises(UserError) as error:
        from_dict(broken(**changes), Trace, "trace")
    assert sentence in str(error.value)


def test_text_that_is_no_json():
    with pytest.raises(UserError, match="trace is '{': Invalid JSON"):
        from_json("{", Trace, "trace")
    with pytest.raises(UserError, match="trace is 3: Input should be an object"):
        from_json("3", Trace, "trace")


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_trace_can_be_read_as_a_page(name, language):
    for trace in traces(name, samples=3):
        page = render(trace, language)
        assert trace.question.text in page and (trace.answer or "—") in page and route(trace.work, name) in page
        assert LABELS[language]["failure"] in page or not trace.failure


def test_a_page():
    trace = Trace(question=Question("2 加 2？", ("3", "4")), solver="normal", work=Direct(answer="四"))
    trace.answer, trace.letter, trace.stopped = "四", "B", "calls"
    trace.cost = Cost(calls=1, prompt_tokens=1234, new_tokens=5, cut=1, seconds=0.25)
    assert render(trace) == (
        "## 问题：2 加 2？\n\n- A. 3\n- B. 4\n\n**求解方式**：normal\n\n**预算用尽而停止**：次数\n\n### 答案\n\n四\n\n"
        "**选项**：B\n\n*调用 1 次，输入 1,234 个 token，输出 5 个 token，0.2 秒，其中 1 个回答因达到长度上限被截断*\n"
    )


def test_a_page_shows_sub_questions_verdicts_and_rewritings_in_order():
    (trace, _) = traces("enhanced")
    page = render(trace)
    places = [
        page.index(text)
        for text in ("子问题 1：a", "a1", "审阅：需要修改", "改写", "子问题 2：b", "重新汇总", "### 答案")
    ]
    assert places == sorted(places)
    assert LABELS["zh"].keys() == LABELS["en"].keys()


def test_what_verification_changed():
    both = traces("self_verification") + traces("normal")
    analysis = analyze(both)
    changes = analysis.verification
    assert (changes.checks, changes.accepted, changes.rewritten) == (2, 1, 1)
    assert changes.accepted_after + changes.new_results == 1 or changes.new_results == 1
    assert len(list(find_checks(both[0]))) == 1
    assert "2 answers judged, 1 left as they were, 1 rewritten" in format_verification(changes)


def test_costs_by_the_solver_that_was_chosen():
    analysis = analyze(traces("adaptive"))
    assert (analysis.questions, analysis.answered, analysis.failed) == (2, 2, 0)
    assert {name: count for name, (count, _) in analysis.routes.items()} == {
        "adaptive/enhanced": 1,
        "adaptive/normal": 1,
    }
    assert sum((cost for _, cost in analysis.routes.values()), Cost()) == analysis.cost
    rows = format_costs(analysis).split("\n")
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| adaptive/enhanced", "| adaptive/normal", "| all"]
    assert rows[3].startswith("| adaptive/normal | 1 | 2 | 26 | ")
    assert len(format_costs(analyze(traces("normal")[:1])).split("\n")) == 3


def test_failures_and_ends_of_budgets_are_counted():
    failed = analyze(traces("least_to_most"))
    assert (failed.answered, failed.failed, failed.stopped) == (1, 1, 0)
    stopped = analyze(traces("least_to_most", max_calls=2))
    assert (stopped.answered, stopped.failed, stopped.stopped) == (1, 1, 1)


def test_right_answers():
    trace = Trace(question=Question("q"), solver="normal", work=Direct(), answer="共 14 本")
    assert is_right(trace, "14") and not is_right(trace, "15")
    trace.answer = ""
    assert not is_right(trace, "")
    choice = Trace(question=Question("q", ("x", "y")), solver="normal", work=Direct(), answer="A", letter="B")
    assert is_right(choice, "B ") and not is_right(choice, "A")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("答案：1,200 元", "1200", True), ("一共 1200.0 元", "1,200 元", True), ("先算 3+4=7，再乘 2，得 14", "14", True),
        ("答案：50%", "1/2", True), ("答案：是", "是", True), ("答案：否", "是", False),
        # Several numbers.
        ("答案：3:4", "3:4", True), ("所以比是\n3：4。", "3:4", True), ("答案：４：３", "4:3", True), ("答案：4:3", "3:4", False),
        ("答案：4", "3:4", False), ("答案：2023-05-01", "2023-05-01", True), ("答案：1", "2023-05-01", False),
        ("答案：3 1/2", "3 1/2", True), ("答案：0.5", "3 1/2", False),
        # Equations.
        ("答案：3,750 元", "x=6000/(1+(3/5))=3750", True), ("答案：x=3750", "x=6000/(1+(3/5))=3750", True),
        ("答案：x=6000/(1+(3/5))=3750", "x=6000/(1+(3/5))=3750", True), ("答案：5", "x=6000/(1+(3/5))=3750", False),
        ("答案：3750", "x=3,000+750=3,750", True), ("答案：7", "总和=3+4=7", True), ("答案：3:4", "甲:乙=3:4", True),
        ("答案：x=3, y=4", "x=3，y=4", True), ("答案：4", "x=3, y=4", False), ("答案：4", "x1=3,x2=4", False),
        ("答案：3,4", "x=3,4", True), ("答案：4", "x=3 或 4", False),
        # A worked solution.
        ("答案：18", "3 盒各 6 个\n#### 18", True), ("答案：18", "先算 3*6=18\n答案：18 个\n完", True),
        # Signs alone.
        ("答案：>", ">", True), ("答案：<", ">", False), ("答案：", ">", False), ("。", "5", False),
    ],
)  # fmt: skip
def test_right_answers_of_several_numbers(answer, expected, right):
    assert is_right(Trace(question=Question("q"), solver="normal", work=Direct(), answer=answer), expected) is right


def test_intervals_stay_within_0_and_1():
    assert bound_share(0, 5)[0] == 0.0 and 0.4 < bound_share(0, 5)[1] < 0.5
    assert bound_share(5, 5)[1] == pytest.approx(1.0)
