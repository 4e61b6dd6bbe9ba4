"""Every solver against a scripted model: the exact calls with their temperatures and contexts, on every branch."""

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.inference.constraints.constraint import Choice
from gemma_keras.solvers.registry import NAMES, make_solver
from gemma_keras.solvers.replies import plans, scores
from gemma_keras.solvers.trace import Adapted, Backward, Decomposed, Enhanced, Escalated, Question, Verified, Voted
from tests.solvers.scripted import FAIL, PASS, PLAN, Scripted, settings

STEPS = ["a1", "b1", "c1"]


def solve(name, script, question="q", **options):
    model = Scripted(script)
    (trace,) = make_solver(name, model, settings(**options)).solve([question])
    return trace, model


def test_normal():
    trace, model = solve("normal", {"A": " 答 \n"})
    assert model.calls == [("A q", 0.7)]
    assert (trace.answer, trace.solver, trace.failure, trace.stopped) == ("答", "normal", "", "")
    (ask,) = model.asks
    assert (ask.max_new_tokens, ask.top_p, ask.repetition_penalty, ask.constraint) == (64, 0.9, 1.2, None)


def test_least_to_most():
    trace, model = solve("least_to_most", {"P": PLAN, "F": "a1", "N": ["b1", "c1"], "S": "总"})
    assert model.calls == [
        ("P q", 0.3),
        ("F q|a", 0.7),
        ("N q|1:a=a1|2|b", 0.7),
        ("N q|1:a=a1\n\n2:b=b1|3|c", 0.7),
        ("S q|1:a=a1\n\n2:b=b1\n\n3:c=c1", 0.5),
    ]
    assert isinstance(trace.work, Decomposed)
    assert [(step.question, step.answer) for step in trace.work.steps] == [("a", "a1"), ("b", "b1"), ("c", "c1")]
    assert trace.work.attempts == [PLAN] and trace.answer == trace.work.summary == "总"


def test_a_decomposition_that_cannot_be_read_is_asked_for_in_stricter_words():
    trace, model = solve("least_to_most", {"P": "不会", "PS": "1. a", "F": "a1", "S": "总"})
    assert model.calls == [("P q", 0.3), ("PS q", 0.3), ("F q|a", 0.7), ("S q|1:a=a1", 0.5)]
    assert trace.work.attempts == ["不会", "1. a"] and trace.answer == "总"


@pytest.mark.parametrize("name", ["least_to_most", "enhanced", "simplified_enhanced"])
def test_after_two_such_decompositions_the_question_has_failed(name):
    trace, model = solve(name, {"P": "不会", "PS": ""})
    assert model.calls == [("P q", 0.3), ("PS q", 0.3)]
    assert trace.answer == "" and trace.failure.startswith("no sub-question could be read from the two decompositions")


def test_more_than_five_sub_questions_are_cut():
    plan = "\n".join(f"{number}. s{number}" for number in range(1, 8))
    trace, _ = solve("least_to_most", {"P": plan, "F": "1", "N": "n", "S": "总"})
    assert [step.question for step in trace.work.steps] == ["s1", "s2", "s3", "s4", "s5"]


@pytest.mark.parametrize(
    ("form", "letter", "plan", "constraint"),
    [
        ("no", "P", PLAN, None),
        ("list", "P", PLAN, plans.make_list_constraint("zh")),
        ("json", "PJ", '{"sub_questions": ["a", "b", "c"]}', plans.make_json_constraint("zh")),
    ],
)
def test_decompositions_under_a_constraint(form, letter, plan, constraint):
    script = {letter: plan, "F": "1", "N": "n", "S": "总"}
    trace, model = solve("least_to_most", script, constrained=form)
    assert [step.question for step in trace.work.steps] == ["a", "b", "c"]
    assert [ask.constraint for ask in model.asks] == [constraint, None, None, None, None]


def test_the_stricter_words_ask_for_a_list_whatever_the_form():
    _, model = solve("least_to_most", {"PJ": "?", "PS": PLAN, "F": "1", "N": "n", "S": "总"}, constrained="json")
    assert [ask.constraint for ask in model.asks[:2]] == [
        plans.make_json_constraint("zh"),
        plans.make_list_constraint("zh"),
    ]


def test_a_verdict_that_asks_for_nothing_leaves_the_answer():
    trace, model = solve("self_verification", {"A": "x", "J": PASS})
    assert model.calls == [("A q", 0.7), ("J q|x", 0.3)]
    assert isinstance(trace.work, Verified) and trace.work.check.rewrites == [] and trace.answer == "x"


def test_an_answer_is_rewritten_by_its_verdict_and_judged_again():
    trace, model = solve("self_verification", {"A": "x", "J": [FAIL, PASS], "R": "y"})
    assert model.calls == [("A q", 0.7), ("J q|x", 0.3), (f"R q|x|{FAIL}", 0.7), ("J q|y", 0.3)]
    assert [verdict.accepted for verdict in trace.work.check.verdicts] == [False, True]
    assert trace.work.check.verdicts[0].suggestions == "写上单位" and trace.answer == "y"


def test_rewriting_ends_at_its_limit_whatever_the_verdict():
    trace, model = solve("self_verification", {"A": "x", "J": FAIL, "R": ["y", "z"]}, rewrites=2)
    assert [message for message, _ in model.calls] == [
        "A q", "J q|x", f"R q|x|{FAIL}", "J q|y", f"R q|y|{FAIL}", "J q|z",
    ]  # fmt: skip
    assert trace.answer == "z" and len(trace.work.check.verdicts) == 3


def test_an_empty_rewriting_is_no_improvement():
    trace, model = solve("self_verification", {"A": "x", "J": FAIL, "R": " "})
    assert len(model.calls) == 3 and trace.answer == "x"


def test_enhanced_verifies_steps_and_the_answer_rebuilt_from_them():
    script = {
        "P": PLAN,
        "F": "a1",
        "N": ["b1", "c1"],
        "S": ["总", "新总"],
        "J": lambda message: FAIL if message in ("J b of q [1:a=a1]|b1", "J q|新总") else PASS,
        "R": lambda message: "b2" if "|b1|" in message else "终",
    }
    trace, model = solve("enhanced", script)
    assert model.calls[5:] == [
        ("J a of q []|a1", 0.3),
        ("J b of q [1:a=a1]|b1", 0.3),
        ("J c of q [1:a=a1\n\n2:b=b1]|c1", 0.3),
        (f"R b of q [1:a=a1]|b1|{FAIL}", 0.7),
        ("J b of q [1:a=a1]|b2", 0.3),
        ("S q|1:a=a1\n\n2:b=b2\n\n3:c=c1", 0.5),
        ("J q|新总", 0.3),
        (f"R q|新总|{FAIL}", 0.7),
        ("J q|终", 0.3),
    ]
    assert model.batches == [1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1]  # sub-answers are judged side by side
    assert isinstance(trace.work, Enhanced)
    assert (trace.work.decomposed.summary, trace.work.rebuilt, trace.answer) == ("总", "新总", "终")


def test_where_no_step_changes_the_answer_is_not_rebuilt():
    trace, model = solve("enhanced", {"P": PLAN, "F": "1", "N": "n", "S": ["总"], "J": PASS})
    assert [message[0] for message, _ in model.calls] == list("PFNNSJJJJ")
    assert model.calls[-1] == ("J q|总", 0.3) and trace.work.rebuilt == "" and trace.answer == "总"


def test_simplified_enhanced_verifies_the_final_answer_only():
    trace, model = solve(
        "simplified_enhanced", {"P": PLAN, "F": "1", "N": "n", "S": ["总"], "J": [FAIL, PASS], "R": "终"}
    )
    assert [message[0] for message, _ in model.calls] == list("PFNNSJRJ")
    assert model.calls[5:] == [("J q|总", 0.3), (f"R q|总|{FAIL}", 0.7), ("J q|终", 0.3)]
    assert all(step.check is None for step in trace.work.decomposed.steps) and trace.answer == "终"


@pytest.mark.parametrize(
    ("reply", "complexity", "chosen"),
    [
        ("0.29", 0.29, "normal"),
        ("0.3", 0.3, "least_to_most"),
        ("0.69", 0.69, "least_to_most"),
        ("0.7", 0.7, "enhanced"),
        ("很难说", 0.5, "least_to_most"),
        ("", 0.5, "least_to_most"),
        ("7", 1.0, "enhanced"),
        ("-3", 0.0, "normal"),
        ("复杂度：20%。", 0.2, "normal"),
    ],
)
def test_adaptive(reply, complexity, chosen):
    script = {"C": reply, "A": "答", "P": PLAN, "F": "1", "N": "n", "S": "总", "J": PASS}
    trace, model = solve("adaptive", script)
    assert model.calls[0] == ("C q", 0.3)
    expected = {"normal": "A", "least_to_most": "PFNNS", "enhanced": "PFNNSJJJJ"}[chosen]
    assert "".join(message[0] for message, _ in model.calls[1:]) == expected
    assert isinstance(trace.work, Adapted)
    assert (trace.work.reply, trace.work.complexity, trace.work.solver) == (reply, complexity, chosen)
    assert trace.answer == ("答" if chosen == "normal" else "总")


def test_the_score_under_a_constraint():
    _, model = solve("adaptive", {"C": "0.1", "A": "答"}, constrained="list")
    assert [ask.constraint for ask in model.asks] == [scores.SCORE, None]


def test_self_consistency_takes_the_most_frequent_answer():
    replies = ["答案：4", "我想想。答案：5 个", "5", "不知道", "一共 5.0 个"]
    trace, model = solve("self_consistency", {"A": replies})
    assert model.calls == [("A q finally", 0.7)] * 5 and model.batches == [5]
    assert len({ask.seed for ask in model.asks}) == 5
    assert isinstance(trace.work, Voted)
    assert (trace.work.vote, trace.work.share, trace.answer) == ("5", 0.6, replies[1])
    assert trace.question.text == "q"


def test_of_equally_frequent_answers_the_first_counts():
    trace, _ = solve("self_consistency", {"A": ["答案：甲", "答案：乙", "", "答案：乙。", "答案：甲"]})
    assert (trace.work.vote, trace.work.share) == ("甲", 0.4)


def test_self_consistency_of_another_solver_survives_lost_samples():
    script = {"P": ["?", PLAN], "PS": "?", "F": "1", "N": "n", "S": "答案：7"}
    trace, model = solve("self_consistency", script, samples=2, sampled="least_to_most")
    assert [sample.failure[:15] for sample in trace.work.samples] == ["no sub-question", ""]
    assert (trace.work.share, trace.answer, trace.failure) == (0.5, "答案：7", "")
    assert model.batches == [2, 2, 1, 1, 1]


def test_self_consistency_without_any_answer_fails():
    trace, _ = solve("self_consistency", {"A": " "}, samples=2)
    assert trace.answer == "" and trace.failure == "none of 2 samples of normal has an answer: their answers are empty"


def test_escalation_stops_where_the_majority_reaches_the_threshold():
    trace, model = solve("escalation", {"A": ["1", "2", "1", "3", "1"]})
    assert model.calls == [("A q finally", 0.7)] * 5
    assert isinstance(trace.work, Escalated)
    assert [(stage.solver, stage.share) for stage in trace.work.stages] == [("normal", 0.6)]
    assert trace.answer == "1"


def test_escalation_goes_on_to_the_next_solver():
    script = {"A": ["1", "2", "3", "4", "1"], "P": "1. a", "F": "f", "S": ["5", "5", "5", "6", "7"]}
    trace, model = solve("escalation", script)
    assert [(stage.solver, stage.share) for stage in trace.work.stages] == [("normal", 0.4), ("least_to_most", 0.6)]
    assert model.calls[5:10] == [("P q finally", 0.3)] * 5
    assert trace.answer == "5"


def test_escalation_without_agreement_takes_what_most_samples_agree_on():
    script = {"A": ["1", "2", "1"], "P": "1. a", "F": "f", "S": ["3", "4", "5"]}
    options = {"samples": 3, "threshold": 0.9, "pipeline": ("normal", "least_to_most")}
    trace, _ = solve("escalation", script, **options)
    assert [stage.share for stage in trace.work.stages] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert trace.answer == "1" and not trace.failure

    trace, _ = solve("escalation", {"A": ["1", "2", "3"], "P": "1. a", "F": "f", "S": ["3", "4", "5"]}, **options)
    assert trace.answer == "3"  # both agree as little, and the last is the stronger solver


def test_escalation_passes_over_a_solver_without_answers():
    script = {"P": "?", "PS": "?", "A": "1"}
    trace, _ = solve("escalation", script, samples=2, pipeline=("least_to_most", "normal"))
    assert trace.answer == "1" and not trace.failure
    trace, _ = solve("escalation", script, samples=2, pipeline=("least_to_most",))
    assert trace.failure.startswith("none of 2 samples of least_to_most has an answer: no sub-question")


def test_backward_verification_takes_the_answer_that_gives_its_conditions_back():
    question = "有 20 本，借走 6 本，剩几本？"
    script = {
        "A": ["答案：15 本", "答案：15", "答案：14 本"],
        "ST": lambda message: f"剩 {message[-4:]}",
        "M": lambda message: {
            "M 有 X 本，借走 6 本，剩几本？|剩 14 本": "14 + 6，答案：20",
            "M 有 20 本，借走 X 本，剩几本？|剩 14 本": "答案：6",
            "M 有 X 本，借走 6 本，剩几本？|剩 ：15 ": "答案：21",
        }.get(message, "答案：5"),
    }
    trace, model = solve("backward_verification", script, question, samples=3)
    assert model.batches == [3, 2, 4]
    assert model.calls[3:5] == [(f"ST {question}|15 本", 0.3), (f"ST {question}|14 本", 0.3)]
    assert [temperature for _, temperature in model.calls[5:]] == [0.7] * 4
    assert isinstance(trace.work, Backward)
    assert [(one.vote, one.supporters, one.score) for one in trace.work.candidates] == [("15", 2, 0), ("14", 1, 2)]
    assert trace.answer == "答案：14 本"


def test_backward_verification_asks_no_more_where_all_samples_agree():
    trace, model = solve("backward_verification", {"A": ["14", "答案：14"]}, "20 - 6", samples=2)
    assert model.batches == [2] and trace.work.candidates == [] and trace.answer == "14"


def test_equal_scores_are_settled_by_the_samples():
    trace, _ = solve("backward_verification", {"A": ["3", "2", "2"], "ST": "s", "M": "?"}, "1 + 1", samples=3)
    assert [one.score for one in trace.work.candidates] == [0, 0] and trace.answer == "2"


def test_conditions_and_checks_are_limited():
    script = {"A": ["3", "2"], "ST": "s", "M": "答案：1"}
    trace, model = solve("backward_verification", script, "1 2 3 4 5 6", samples=2, conditions=2, checks=3)
    assert model.batches == [2, 2, 12]
    assert [(one.expected, one.found) for one in trace.work.candidates[0].recoveries] == [("1", True)] * 3 + [
        ("2", False)
    ] * 3


def test_a_question_without_numbers_has_its_conclusion_judged():
    script = {
        "A": ["答案：鲸", "答案：鱼"],
        "ST": lambda message: message[-1] + "是哺乳动物",
        "V": lambda message: "答案：正确" if "鲸是" in message else "答案：不正确",
    }
    trace, model = solve("backward_verification", script, "谁是哺乳动物？", samples=2)
    assert [message for message, _ in model.calls[4:]] == [
        "V 谁是哺乳动物？|鲸是哺乳动物",
        "V 谁是哺乳动物？|鱼是哺乳动物",
    ]
    assert [one.score for one in trace.work.candidates] == [1, 0] and trace.answer == "答案：鲸"


CHOICE = Question("2 加 2 得几？", ("3", "4"))
WORDED = "2 加 2 得几？ (A. 3\nB. 4)"


def test_a_question_with_options_ends_in_a_letter():
    trace, model = solve("normal", {"A": "A 太小，答案：B"}, CHOICE)
    assert model.calls == [(f"A {WORDED}", 0.7)]
    assert (trace.answer, trace.letter) == ("A 太小，答案：B", "B")
    assert solve("normal", {"A": "应选 B"}, CHOICE)[0].letter == "B"


def test_an_unclear_letter_is_read_by_the_model():
    trace, model = solve("normal", {"A": "第二项", "L": "他选的是 B。"}, CHOICE)
    assert model.calls[1] == (f"L {WORDED}|第二项|A B", 0.0) and model.asks[1].constraint is None
    assert trace.letter == "B"
    assert solve("normal", {"A": "不知道", "L": "都没有选"}, CHOICE)[0].letter == ""
    trace, model = solve("normal", {"A": "第二项", "L": "B"}, CHOICE, constrained="list")
    assert model.calls[1] == (f"L {WORDED}|第二项|A B", 0.0)
    assert model.asks[1].constraint == Choice(("A", "B")) and trace.letter == "B"
    trace, model = solve("normal", {"A": "答案：A"}, CHOICE, constrained="list")
    assert len(model.calls) == 1 and trace.letter == "A"


def test_options_are_compared_by_their_letters():
    replies = ["答案：A", "我选 B", "B 吧"]
    trace, model = solve("self_consistency", {"A": replies}, CHOICE, samples=3)
    assert model.calls == [(f"A {WORDED}", 0.7)] * 3
    assert (trace.letter, trace.answer) == ("B", "我选 B")
    script = {"A": replies, "ST": lambda message: message.split("|")[1], "M": "答案：2"}
    trace, model = solve("backward_verification", script, CHOICE, samples=3)
    assert [one.statement for one in trace.work.candidates] == ["3", "4"] and trace.letter == "B"


def test_names():
    for name in NAMES:
        assert make_solver(name, Scripted({})).name == name
    with pytest.raises(UserError, match="no solver is called 'l2m'; choose one of normal, least_to_most"):
        make_solver("l2m", Scripted({}))
    with pytest.raises(UserError, match="answers of the solver 'escalation' cannot be sampled"):
        make_solver("self_consistency", Scripted({}), settings(sampled="escalation"))
