"""Many questions side by side: what goes out together, what draws depend on, budgets, and questions that fail."""

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.solvers import lockstep
from gemma_keras.solvers.registry import make_solver
from gemma_keras.solvers.steps import together
from gemma_keras.solvers.trace import Cost, Question
from tests.solvers.scripted import FAIL, PASS, PLAN, Scripted, settings

SCRIPT = {"A": "答", "P": PLAN, "F": "1", "N": "n", "S": "总", "J": PASS}


def by_question(**scores: str):
    """A script in which the complexity of each question is given."""
    return SCRIPT | {"C": lambda message: scores[message[2:]]}


def test_independent_calls_of_all_questions_go_out_together():
    model = Scripted(by_question(a="0", b="0.5", c="0.5", d="1"))
    traces = make_solver("adaptive", model, settings()).solve(["a", "b", "c", "d"])
    assert [trace.work.solver for trace in traces] == ["normal", "least_to_most", "least_to_most", "enhanced"]
    assert [trace.answer for trace in traces] == ["答", "总", "总", "总"]
    # Scores; the answer and 3 plans; 3 x 3 steps; summaries; the enhanced one's checks.
    assert model.batches == [4, 4, 3, 3, 3, 3, 3, 1]


def test_a_trace_does_not_depend_on_what_is_solved_beside_it():
    def seeds(questions):
        model = Scripted(by_question(a="0", b="0.5", c="1"))
        traces = make_solver("adaptive", model, settings(seed=3)).solve(questions)
        for trace in traces:
            trace.cost.seconds = trace.elapsed = 0.0
        return traces, {ask.messages[0]["content"]: ask.seed for ask in model.asks}

    together_traces, together_seeds = seeds(["a", "b", "c"])
    alone = [seeds([question]) for question in "cba"]
    assert together_traces == [traces[0] for traces, _ in reversed(alone)]
    assert together_seeds == {message: seed for _, own in alone for message, seed in own.items()}
    assert len(set(together_seeds.values())) == len(together_seeds)
    assert all(0 <= seed < 2**32 for seed in together_seeds.values())


def test_another_seed_gives_other_draws():
    def seed_of(seed):
        model = Scripted(SCRIPT)
        make_solver("normal", model, settings(seed=seed)).solve(["a"])
        return model.asks[0].seed

    assert seed_of(0) == seed_of(0) != seed_of(1)


def test_the_next_question_begins_when_one_is_done():
    model, done = Scripted(by_question(a="0.5", b="0", c="0", d="0")), []
    solver = make_solver("adaptive", model, settings(batch_questions=2))
    traces = solver.solve(["a", "b", "c", "d"], lambda number, trace: done.append((number, trace.answer)))
    assert done == [(1, "答"), (2, "答"), (0, "总"), (3, "答")]
    assert model.batches == [2, 2, 2, 2, 2, 2]
    assert [trace.question.text for trace in traces] == ["a", "b", "c", "d"]


def test_costs():
    model = Scripted({"A": "x", "J": [FAIL, PASS], "R": "y"}, tokens=(10, 3))
    (trace,) = make_solver("self_verification", model, settings()).solve(["q"])
    seconds = trace.cost.seconds
    assert trace.cost == Cost(calls=4, prompt_tokens=40, new_tokens=12, cut=0, seconds=seconds)
    assert 0 < seconds <= trace.elapsed and trace.cost.tokens == 52


def test_seconds_of_a_batch_are_shared_by_tokens(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(lockstep.time, "monotonic", lambda: float(next(clock)))
    model = Scripted({"A": "x", "J": PASS})
    traces = make_solver("self_verification", model, settings()).solve(["a", "b"])
    assert [trace.cost.seconds for trace in traces] == [1.0, 1.0]  # two rounds of one second for both


# Budgets


@pytest.mark.parametrize(
    ("calls", "answer", "stopped"),
    [(1, "", "calls"), (2, "a1", "calls"), (4, "c1", "calls"), (5, "总", ""), (0, "总", "")],
)
def test_least_to_most_ends_in_the_best_answer_that_its_calls_allow(calls, answer, stopped):
    model = Scripted({"P": PLAN, "F": "a1", "N": ["b1", "c1"], "S": "总"})
    (trace,) = make_solver("least_to_most", model, settings(max_calls=calls)).solve(["q"])
    assert (trace.answer, trace.stopped, trace.failure) == (answer, stopped, "")
    assert trace.cost.calls == (calls or 5)


@pytest.mark.parametrize(("calls", "answer"), [(5, "总"), (6, "总"), (14, "总"), (15, "新"), (16, "新"), (17, "终")])
def test_the_enhanced_solver_keeps_the_best_final_answer(calls, answer):
    script = {"P": PLAN, "F": "1", "N": "n", "S": ["总", "新"], "J": FAIL, "R": lambda m: "终" if "|新|" in m else "r"}
    model = Scripted(script)
    (trace,) = make_solver("enhanced", model, settings(max_calls=calls)).solve(["q"])
    assert (trace.answer, trace.stopped, trace.cost.calls) == (answer, "calls", calls)


def test_of_calls_that_go_out_together_as_many_are_made_as_the_budget_has():
    model = Scripted({"A": ["1", "2", "2", "2", "2"]})
    (trace,) = make_solver("self_consistency", model, settings(max_calls=3)).solve(["q"])
    assert model.batches == [3]
    assert (trace.answer, trace.stopped, trace.failure) == ("2", "calls", "")
    assert trace.work.share == 2 / 5  # of those planned


def test_a_budget_of_calls_is_exact_in_every_solver():
    script = {
        "C": "1", "A": ["答案：1", "答案：2"] * 20, "P": PLAN, "F": "1", "N": "n", "S": "总", "J": FAIL, "R": "r",
        "ST": "s", "M": "1", "V": "对",
    }  # fmt: skip
    for name in ("adaptive", "self_consistency", "escalation", "backward_verification"):
        for calls in range(1, 16):
            model = Scripted(script)
            traces = make_solver(name, model, settings(max_calls=calls, samples=4)).solve(["1 + 1 = ?", "q"])
            assert all(trace.cost.calls <= calls for trace in traces)
            assert len(model.asks) == sum(trace.cost.calls for trace in traces)
            if calls > 1 and name != "adaptive":
                assert all(trace.answer for trace in traces)


def test_nothing_more_is_asked_once_the_tokens_are_spent():
    model = Scripted({"P": PLAN, "F": "a1", "N": "b1", "S": "总"}, tokens=(10, 5))
    (trace,) = make_solver("least_to_most", model, settings(max_tokens=40)).solve(["q"])
    assert (trace.answer, trace.stopped, trace.cost.tokens) == ("b1", "tokens", 45)


def test_nothing_more_is_asked_after_its_seconds(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(lockstep.time, "monotonic", lambda: float(next(clock)))
    model = Scripted(SCRIPT)
    (trace,) = make_solver("least_to_most", model, settings(max_seconds=5.0)).solve(["q"])
    assert (trace.answer, trace.stopped) == ("1", "seconds") and trace.cost.calls == 2


def test_a_budget_leaves_a_letter():
    model = Scripted({"A": "B 对", "J": FAIL, "R": "答案：A"})
    question = Question("?", ("x", "y"))
    (trace,) = make_solver("self_verification", model, settings(max_calls=2)).solve([question])
    assert (trace.letter, trace.stopped) == ("B", "calls")
    model = Scripted({"A": ["B", "A", "B"]})
    (trace,) = make_solver("self_consistency", model, settings(max_calls=3)).solve([question])
    assert (trace.letter, trace.stopped) == ("B", "calls")


# Questions that fail


def test_a_question_that_the_model_refuses_fails_alone():
    model = Scripted({"A": "x", "J": PASS}, refused="long")
    traces = make_solver("self_verification", model, settings()).solve(["a", "b", "long", "c", "d"])
    assert [trace.answer for trace in traces] == ["x", "x", "", "x", "x"]
    assert [trace.failure for trace in traces] == ["", "", "A long is refused.", "", ""]
    assert model.batches == [2, 2, 4]  # the others are asked by halves, not one by one


def test_a_refusal_on_the_way_leaves_the_best_answer_so_far():
    model = Scripted({"P": PLAN, "F": "a1", "N": "b1"}, refused="S ")
    (trace,) = make_solver("least_to_most", model, settings()).solve(["q"])
    assert (trace.answer, trace.failure) == ("b1", "S q|1:a=a1\n\n2:b=b1\n\n3:c=b1 is refused.")


def test_empty_questions_are_told_before_anything_is_asked():
    model = Scripted(SCRIPT)
    with pytest.raises(UserError, match="question 2 is empty; give it a text."):
        make_solver("normal", model, settings()).solve(["a", " \n"])
    assert model.asks == []
    assert make_solver("normal", model, settings()).solve([]) == []


def test_an_interruption_comes_through():
    def interrupt(message):
        raise KeyboardInterrupt

    done = []
    solver = make_solver("normal", Scripted({"A": ["x"]}), settings(batch_questions=1))
    solver.model._script["A"] = lambda message: interrupt(message) if "b" in message else "x"
    with pytest.raises(KeyboardInterrupt):
        solver.solve(["a", "b"], lambda number, trace: done.append(trace.answer))
    assert done == ["x"]


def test_parts_of_unequal_length_run_side_by_side():
    seen = []

    def part(name, count):
        for number in range(count):
            replies = yield [f"{name}{number}"]
            seen.append(replies[0])

    steps, batches = together([part("a", 1), part("b", 0), together([part("c", 3), part("d", 2)])]), []
    asks = next(steps)
    with pytest.raises(StopIteration):
        while True:
            batches.append(asks)
            asks = steps.send([ask.upper() for ask in asks])
    assert batches == [["a0", "c0", "d0"], ["c1", "d1"], ["c2"]]
    assert seen == ["A0", "C0", "D0", "C1", "D1", "C2"]


def test_parts_without_a_reply_are_closed_and_the_others_go_on():
    closed = []

    def part(name):
        try:
            yield [name]
            yield [name * 2]
        except GeneratorExit:
            closed.append(name)
            raise

    steps = together([part("a"), together([part("b"), part("c")]), part("d")])
    assert next(steps) == ["a", "b", "c", "d"]
    assert steps.send(["A", "B"]) == ["aa", "bb"]
    assert closed == ["c", "d"]
