"""Validation rows are held out by what they ask."""

import json

import datasets
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig, DataConfig
from gemma_keras.data.prepare import prepare

ANSWERS = 3


def put(root, name, rows):
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def asked(number, answer):
    return {"instruction": f"第{number}个问题是什么？", "input": "", "output": f"回答{number}，之{answer}"}


@pytest.fixture
def root(tmp_path):
    """Belle: 40 questions with three answers each; Alpaca: the same with one more; dialogues that open with them."""
    root = tmp_path / "corpora"
    put(root, "belle", [asked(number, answer) for answer in range(ANSWERS) for number in range(40)])
    put(root, "alpaca", [asked(number, 9) for number in range(40)])
    dialogues = [
        [asked(n, 9)["instruction"], f"答{n}", f"再问{n}", f"再答{n}"]
        if n % 2
        else ["你好", "您好", f"第{n}问", f"第{n}答"]
        for n in range(40)
    ]
    turns = [
        [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(texts)] for texts in dialogues
    ]
    put(root, "messages", [{"messages": messages} for messages in turns])
    pairs = [
        {"prompt": asked(n, 0)["instruction"], "chosen": f"好{n}{k}", "rejected": f"坏{n}{k}"}
        for n in range(40)
        for k in "ab"
    ]
    put(root, "preference", pairs)
    return root


def run(root, tokenizer, out, *names, **more):
    corpora = tuple(CorpusConfig(name=name) for name in names)
    config = DataConfig(root=str(root), corpora=corpora, **{"sequence_length": 64, **more})
    return prepare(config, tokenizer, out, progress=lambda line: None)


def questions(out, split):
    rows = [json.loads(row) for row in datasets.load_from_disk(str(out / split))["record"] if row]
    turns = [row.get("messages") or row["prompt"] for row in rows]
    return [next(turn["content"] for turn in said if turn["role"] == "user") for said in turns]


@pytest.mark.parametrize("names", [("belle",), ("belle", "alpaca", "messages"), ("preference",)])
def test_no_held_out_question_is_trained_on(root, tokenizer, tmp_path, names):
    report = run(root, tokenizer, tmp_path / "out", *names, validation_rows=9)
    valid, train = questions(tmp_path / "out", "valid"), questions(tmp_path / "out", "train")
    assert report["validation"]["records"] == len(valid) == 9, "the number asked for"
    assert not set(valid) & set(train) - {"你好"}
    assert report["removed"]["asked_in_validation"] > 0
    assert (report["overlap"], report["question_overlap"]) == (0, 0)
    assert report["rows_in"] == report["used"] + sum(report["removed"].values()) + report["quarantined"]
    assert "whose question is: 0" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_dialogues_that_only_begin_with_the_same_greeting_stay(root, tokenizer, tmp_path):
    report = run(root, tokenizer, tmp_path / "out", "messages", validation_rows=10)
    assert report["records"] == 30 and "asked_in_validation" not in report["removed"]


def test_shares_are_exact_and_the_same_every_time(root, tokenizer, tmp_path):
    reports = [run(root, tokenizer, tmp_path / name, "belle", "alpaca", validation_rows=8) for name in ("one", "two")]
    assert reports[0] == reports[1]
    assert reports[0]["validation"]["by_source"] == {"alpaca": 2, "belle": 6}


def test_validation_corpora_are_held_out_by_question_too(root, tokenizer, tmp_path):
    put(root, "alpaca", [asked(number, 9) for number in range(10)])
    report = run(root, tokenizer, tmp_path / "out", "belle", validation=(CorpusConfig(name="alpaca"),))
    assert report["removed"] == {"asked_in_validation": 10 * ANSWERS} and report["records"] == 30 * ANSWERS


def test_documents_are_held_out_whole(root, tokenizer, tmp_path):
    put(root, "text", [{"text": f"第{number}篇"} for number in range(20)])
    report = run(root, tokenizer, tmp_path / "out", "text", validation_rows=5)
    assert report["removed"] == {"set_apart_for_validation": 5} and report["records"] == 15


def test_questions_of_an_earlier_stage_stay_held_out(root, tokenizer, tmp_path):
    first = run(root, tokenizer, tmp_path / "one", "belle", validation_rows=9)
    held = set(questions(tmp_path / "one", "valid"))
    report = run(
        root, tokenizer, tmp_path / "two", "belle", "alpaca", validation_rows=6, earlier=(str(tmp_path / "one"),)
    )
    valid, train = questions(tmp_path / "two", "valid"), questions(tmp_path / "two", "train")
    assert not (held | set(valid)) & set(train)
    assert report["corpora"]["belle"]["rows_in"] == first["used"] and report["question_overlap"] == 0


def test_a_corpus_with_a_single_question_leaves_nothing(root, tokenizer, tmp_path):
    put(root, "alpaca", [{"instruction": "写一首诗", "input": "", "output": f"诗{number}"} for number in range(20)])
    with pytest.raises(
        UserError, match=r"no training row is left \(asked_in_validation: 19, set_apart_for_validation: 1\)"
    ):
        run(root, tokenizer, tmp_path / "out", "alpaca", validation_rows=1)


def test_rare_questions_are_drawn_first_so_that_common_ones_are_trained_on(root, tokenizer, tmp_path):
    common = [{"instruction": "写一首五言诗。", "input": "", "output": f"第{n}首"} for n in range(60)]
    put(root, "belle", [*common, *(asked(n, 0) for n in range(12))])
    report = run(root, tokenizer, tmp_path / "out", "belle", validation_rows=9)
    assert "写一首五言诗。" not in questions(tmp_path / "out", "valid")
    assert questions(tmp_path / "out", "train").count("写一首五言诗。") == 60
    assert "asked_in_validation" not in report["removed"]


def test_a_question_is_rare_that_no_other_corpus_asks_either(root, tokenizer, tmp_path):
    put(root, "belle", [asked(n, 0) for n in range(44)])
    run(root, tokenizer, tmp_path / "out", "belle", "alpaca", validation_rows=4)
    drawn = questions(tmp_path / "out", "valid")
    assert sum(asked(n, 0)["instruction"] in drawn for n in (40, 41, 42, 43)) == 2, "the two from belle"
