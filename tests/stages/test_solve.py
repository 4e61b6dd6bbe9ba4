"""The stage of the solvers: where questions come from, what is written when, and how a run is gone on with."""

import dataclasses
import io
import json
import sys

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import (
    DataConfig,
    InferenceConfig,
    ModelConfig,
    SamplingConfig,
    SolverConfig,
    TokenizerConfig,
)
from gemma_keras.config.serialization import from_dict
from gemma_keras.config.stages import SolveConfig
from gemma_keras.solvers.prompts import load_prompts
from gemma_keras.solvers.trace import Trace
from gemma_keras.stages import solve
from tests.solvers.scripted import PROMPTS, Scripted


@pytest.fixture
def script(tmp_path, monkeypatch) -> dict:
    """The replies of the model that the stage loads, which a test may change; its prompts are those of one letter."""
    replies = {"A": lambda message: f"答案：{message[2:]}", "C": "0.1", "P": "?", "PS": "?"}
    monkeypatch.setattr(solve, "load_chat_model", lambda config, workdir: Scripted(replies))
    return replies


@pytest.fixture
def config(tmp_path, script) -> SolveConfig:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(dataclasses.asdict(PROMPTS)), encoding="utf-8")
    solver = SolverConfig(name="normal", prompts=str(prompts), batch_questions=1)
    return SolveConfig(model=ModelConfig(weights=str(tmp_path)), solver=solver, questions=("一", "二", "三"))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def with_solver(config, **changes) -> SolveConfig:
    return dataclasses.replace(config, solver=dataclasses.replace(config.solver, **changes))


def test_answers_traces_and_costs(config, tmp_path, capsys):
    work = tmp_path / "work"
    result = solve.run(config, work)
    answers = lines(work / "answers.jsonl")
    assert [(row["number"], row["question"], row["answer"]) for row in answers] == [
        (0, "一", "答案：一"),
        (1, "二", "答案：二"),
        (2, "三", "答案：三"),
    ]
    assert (answers[0]["calls"], answers[0]["tokens"], answers[0]["failure"]) == (1, 13, "")
    traces = [from_dict(row["trace"], Trace) for row in lines(work / "traces.jsonl")]
    assert [trace.answer for trace in traces] == [row["answer"] for row in answers]
    assert json.loads((work / "result.json").read_text()) == result
    assert (result["questions"], result["answered"], result["cost"]["calls"]) == (3, 3, 3)
    assert result["routes"]["normal"]["questions"] == 3 and "right" not in result
    printed = capsys.readouterr().out
    assert "## 问题：二" in printed and "| normal | 3 | 3 | 39 |" in printed
    assert (work / "traces.md").read_text(encoding="utf-8").count("## 问题") == 3
    assert load_prompts("en", str(work / "prompts.json")) == PROMPTS


def test_what_is_printed(config, tmp_path, capsys):
    solve.run(with_solver(config, show="answer"), tmp_path / "a")
    assert capsys.readouterr().out.startswith("> 一\n答案：一\n\n> 二\n")
    solve.run(with_solver(config, show="nothing"), tmp_path / "b")
    assert capsys.readouterr().out.startswith("| solver |")


def test_lines_are_written_as_soon_as_questions_are_done(config, tmp_path, script, capsys):
    """And an interruption in the middle loses nothing of them; the same command goes on with what is missing."""
    work, seen = tmp_path / "work", []

    def interrupted(message):
        seen.append(len(lines(work / "answers.jsonl")))
        assert len(lines(work / "traces.jsonl")) == seen[-1]
        if message == "A 三":
            raise KeyboardInterrupt
        return "一遍"

    script["A"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        solve.run(config, work)
    assert seen == [0, 1, 2]
    assert f"2 of 3 questions are answered in {work}" in capsys.readouterr().err
    assert not (work / "result.json").exists()

    for name in ("traces.jsonl", "answers.jsonl"):  # as a kill in the middle of a line leaves them
        with (work / name).open("a", encoding="utf-8") as file:
            file.write('{"number": 2, "tra')
    script["A"] = "又一遍"
    result = solve.run(config, work)
    assert [row["answer"] for row in lines(work / "answers.jsonl")] == ["一遍", "一遍", "又一遍"]
    assert result["answered"] == 3
    assert "2 of 3 questions are answered in" in capsys.readouterr().err

    before = (work / "traces.jsonl").read_bytes()
    script["A"] = ""
    assert solve.run(config, work) == result  # nothing is asked any more
    assert (work / "traces.jsonl").read_bytes() == before
    more = dataclasses.replace(config, questions=("一", "二", "三", "四"))
    script["A"] = "第四"
    assert solve.run(more, work)["questions"] == 4 and lines(work / "answers.jsonl")[3]["answer"] == "第四"


def test_answers_are_in_the_order_of_the_questions(config, tmp_path, script):
    script |= {"C": lambda message: "0.5" if "一" in message else "0", "P": "1. a", "F": "f", "S": "s"}
    solve.run(with_solver(config, name="adaptive", batch_questions=3), tmp_path / "work")
    assert [row["answer"] for row in lines(tmp_path / "work" / "answers.jsonl")] == ["s", "答案：二", "答案：三"]
    assert [row["number"] for row in lines(tmp_path / "work" / "traces.jsonl")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: dataclasses.replace(c, questions=("一", "其他", "三")), "holds the answer to '二' as question 2"),
        (lambda c: dataclasses.replace(c, questions=("一",)), "holds the answer to '二' as question 2"),
        (lambda c: with_solver(c, name="adaptive"), "holds a run on other solver settings"),
        (lambda c: with_solver(c, language="en", prompts=""), "holds a run on other"),
        (lambda c: dataclasses.replace(c, sampling=SamplingConfig(seed=1)), "holds a run on other sampling settings"),
    ],
)
def test_another_run_is_refused(config, tmp_path, change, sentence):
    work = tmp_path / "work"
    solve.run(config, work)
    with pytest.raises(UserError) as error:
        solve.run(change(config), work)
    assert sentence in str(error.value) and "another --workdir" in str(error.value)
    assert solve.run(with_solver(config, batch_questions=2, show="nothing"), work)["questions"] == 3


@pytest.fixture
def begun(config, tmp_path, script) -> SolveConfig:
    """A run that was interrupted in `work` before its third question, with weights in `model`."""
    for name in ("model", "copy", "other"):
        (tmp_path / name / "assets" / "tokenizer").mkdir(parents=True)
        (tmp_path / name / "assets" / "tokenizer" / "vocabulary.spm").write_bytes(b"pieces")
        content = bytearray(5 << 20)
        content[3 << 20 : 4 << 20] = bytes([name == "other"]) * (1 << 20)
        (tmp_path / name / "model.safetensors").write_bytes(content)

    def interrupted(message):
        if message == "A 三":
            raise KeyboardInterrupt
        return "一遍"

    replies, script["A"] = script["A"], interrupted
    config = dataclasses.replace(config, model=ModelConfig(weights=str(tmp_path / "model")))
    with pytest.raises(KeyboardInterrupt):
        solve.run(config, tmp_path / "work")
    script["A"] = replies
    return config


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: {"model": ModelConfig(weights=f"{root}/other")}, "weights"),  # of equal names, sizes, ends
        (lambda root: {"model": ModelConfig()}, "weights"),
        (lambda root: {"model": ModelConfig(weights=f"{root}/model", dtype="float32")}, "model settings"),
        (lambda root: {"inference": InferenceConfig(weights="int8")}, "model settings"),
        (lambda root: {"inference": InferenceConfig(cache="int8")}, "model settings"),
        (lambda root: {"data": DataConfig(template="gemma")}, "model settings"),
        (lambda root: {"tokenizer": TokenizerConfig(path=f"{root}/other/model.safetensors")}, "tokenizer files"),
    ],
)
def test_another_model_does_not_go_on_with_a_run(begun, tmp_path, change, what):
    work = tmp_path / "work"
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    with pytest.raises(UserError) as error:
        solve.run(dataclasses.replace(begun, **change(tmp_path)), work)
    assert f"holds a run on other {what}, which have changed" in str(error.value) and "\n" not in str(error.value)
    assert {
        path.name: path.read_bytes() for path in work.iterdir()
    } == before  # config.json tells of the run that is kept


def test_the_same_model_goes_on_wherever_it_lies(begun, tmp_path):
    copied = dataclasses.replace(
        begun,
        model=ModelConfig(weights=str(tmp_path / "copy"), attention="reference"),
        tokenizer=TokenizerConfig(path=str(tmp_path / "other" / "assets" / "tokenizer" / "vocabulary.spm")),
        inference=InferenceConfig(max_rows=1, prefix_tokens=0),
    )
    assert solve.run(copied, tmp_path / "work")["answered"] == 3
    assert [row["answer"] for row in lines(tmp_path / "work" / "answers.jsonl")] == ["一遍", "一遍", "答案：三"]


def test_a_refused_command_leaves_the_account_of_the_run(config, tmp_path):
    work = tmp_path / "work"
    solve.run(config, work)
    before = (work / "config.json").read_bytes()
    refused = [
        dataclasses.replace(config, sampling=SamplingConfig(seed=1)),
        dataclasses.replace(config, questions=("其他",)),
        dataclasses.replace(config, questions=("一", "二", "三", " ")),
    ]
    for other in refused:
        with pytest.raises(UserError):
            solve.run(other, work)
    assert (work / "config.json").read_bytes() == before


def test_a_kill_within_the_first_line(config, tmp_path, script):
    work = tmp_path / "work"
    work.mkdir()
    (work / "traces.jsonl").write_text('{"number": 0, "tra', encoding="utf-8")

    def interrupted(message):
        if message == "A 二":
            raise KeyboardInterrupt
        return "一遍"

    replies, script["A"] = script["A"], interrupted
    with pytest.raises(KeyboardInterrupt):
        solve.run(config, work)
    script["A"] = replies
    assert solve.run(config, work)["answered"] == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda row: row.pop("trace"), r"line.trace is .*: Field required"),
        (lambda row: row.update(number=-1), "line.number is -1: Input should be greater than or equal to 0"),
        (lambda row: row.update(number=1.0), "line.number is 1.0: Input should be a valid integer"),
        (lambda row: row["trace"].update(answer=1), "line.trace.answer is 1: Input should be a valid string"),
    ],
)
def test_a_damaged_line_is_told(config, tmp_path, change, sentence):
    work = tmp_path / "work"
    solve.run(config, work)
    rows = lines(work / "traces.jsonl")
    change(rows[1])
    (work / "traces.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    told = rf"line 2 of {work / 'traces.jsonl'} is damaged \({sentence}\); delete it, or give another --workdir\."
    with pytest.raises(UserError, match=told):
        solve.run(config, work)


def test_questions_with_bytes_that_are_no_text(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["solve", "--config.questions=甲\udcff？"])
    work = tmp_path / "work"
    assert solve.run(dataclasses.replace(config, questions=("甲\udcff？",)), work)["answered"] == 1
    assert lines(work / "answers.jsonl")[0]["question"] == "甲?？"
    assert json.loads((work / "config.json").read_text(encoding="utf-8"))["config"]["questions"] == ["甲\udcff？"]


def test_options_with_half_a_surrogate_pair(config, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "q", "choices": ["x", "\\udcff"], "answer": "A"}', encoding="utf-8")
    config = dataclasses.replace(with_solver(config, input=str(path)), questions=())
    assert solve.run(config, tmp_path / "work")["answered"] == 1


def test_a_file_with_known_answers(config, script, tmp_path, capsys):
    script["A"] = lambda message: "答案：A" if message.startswith("A 8") else f"答案：{message[2:]}"
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question": "5", "answer": 5, "id": "x"},
        {"question": "6", "answer": "7"},
        {"question": "8", "choices": ["B", "C"], "answer": "B"},
        {"question": "9"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    config = dataclasses.replace(with_solver(config, input=str(path), show="nothing"), questions=())
    result = solve.run(config, tmp_path / "work")
    answers = lines(tmp_path / "work" / "answers.jsonl")
    assert [row.get("right") for row in answers] == [True, False, False, None] and answers[0]["id"] == "x"
    assert answers[2]["letter"] == "A"
    assert (result["known"], result["right"]) == (3, 1) and result["right_interval"][0] < 1 / 3
    assert "right: 1 of 3 (33.3%; 95 % interval" in capsys.readouterr().out


def standard_input(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_questions_from_standard_input(config, tmp_path, monkeypatch):
    standard_input(monkeypatch, "甲？\n\n乙\xff？".encode("utf-8", "surrogateescape") + b"\xff\n")
    result = solve.run(dataclasses.replace(config, questions=()), tmp_path / "work")
    assert result["questions"] == 2 and lines(tmp_path / "work" / "answers.jsonl")[0]["question"] == "甲？"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: dataclasses.replace(c, questions=()), "standard input holds no question"),
        (lambda c: with_solver(c, input="q.txt"), "both config.questions and config.solver.input are given"),
        (lambda c: dataclasses.replace(with_solver(c, input="/none/q.txt"), questions=()), "q.txt cannot be read"),
        (lambda c: with_solver(c, prompts="/none/p.toml"), "p.toml cannot be read"),
        (lambda c: dataclasses.replace(c, questions=(" ",)), "question 1 is empty"),
    ],
)
def test_mistakes_are_told(config, tmp_path, monkeypatch, change, sentence):
    standard_input(monkeypatch, b"\n")
    with pytest.raises(UserError) as error:
        solve.run(change(config), tmp_path / "work")
    assert sentence in str(error.value)


def test_failures_are_recorded_and_only_failures_end_in_an_error(config, tmp_path, capsys):
    config = with_solver(config, name="least_to_most", show="answer")
    with pytest.raises(UserError, match="none of the 3 questions has an answer: no sub-question could be read"):
        solve.run(config, tmp_path / "work")
    assert [row["failure"][:15] for row in lines(tmp_path / "work" / "answers.jsonl")] == ["no sub-question"] * 3
    printed = capsys.readouterr().out
    assert "> 一\n[no sub-question" in printed and "not finished: 3 failed, 0 stopped" in printed


def test_progress_is_told(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solve._Watched, "SECONDS", 0.0)
    solve.run(config, tmp_path / "work")
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("0 of 3 questions answered, 1 calls, 3 new tokens, ") and "left" not in told[0]
    assert told[2].startswith("2 of 3 questions answered, 3 calls, 9 new tokens") and told[2].endswith(" s left")


def test_with_a_model(base, config, tmp_path, monkeypatch):
    monkeypatch.undo()
    config = dataclasses.replace(
        with_solver(config, name="self_verification", show="nothing", batch_questions=2),
        model=ModelConfig(weights=str(base), dtype="float32"),
        sampling=SamplingConfig(max_new_tokens=6, repetition_penalty=1.0),
        questions=("一加一得几？", "春天有哪些花？"),
    )
    result = solve.run(config, tmp_path / "work")
    assert (result["questions"], result["failed"], result["verification"]["checks"]) == (2, 0, 2)
    assert 4 <= result["cost"]["calls"] <= 8 and 0 < result["cost"]["new_tokens"] <= 6 * result["cost"]["calls"]
    for row in lines(tmp_path / "work" / "traces.jsonl"):
        trace = from_dict(row["trace"], Trace)
        assert trace.answer == trace.work.check.answer and trace.cost.prompt_tokens > 20
