"""Turns marked not to be learnt, empty system turns, and texts that are no strings."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, SkippedRow
from gemma_keras.data.sources import SOURCES, locate, read_corpus
from gemma_keras.data.sources.turns import NOTHING_LEARNT
from gemma_keras.text.templates import UNLEARNT, is_unlearnt

USER, ANSWER = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
MARKED = {"role": "model", "content": "答"} | UNLEARNT
PLAIN = {"role": "model", "content": "答"}


def read(name, row):
    (record,) = SOURCES[name].read(row)
    return record.messages


def two_rounds(**mark):
    return [USER, ANSWER | mark, USER, ANSWER]


NOT_TO_BE_LEARNT = [
    {"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"loss": False}, {"loss": "false"}, {"loss": " False "}, {"loss_weight": 0},
    {"loss_scale": 0.0}, {"train": False}, {"train": "no"}, {"training": False}, {"trainable": 0}, {"masked": True},
    {"masked": "true"}, {"weight": 1, "train": False}, {"loss": None, "weight": 0},
    {"loss_mask": 0}, {"train_on_turn": False}, {"learn": "no"},
]  # fmt: skip
TO_BE_LEARNT = [
    {}, {"weight": 1}, {"weight": 1.0}, {"loss": True}, {"loss": "true"}, {"train": "yes"}, {"weight": None}, {"loss": None},
    {"masked": False}, {"masked": None}, {"loss_scale": "1.0"},
    {"weight": math.nan}, {"loss_mask": 1}, {"mask": None}, {"trained_by": "x"}, {"name": "weight"}, {"emotion": 0},
]  # fmt: skip


@pytest.mark.parametrize("mark", NOT_TO_BE_LEARNT)
def test_a_marked_turn_keeps_its_mark(mark):
    expected = [USER, MARKED, USER, PLAIN]
    assert read("messages", {"messages": two_rounds(**mark)}) == expected
    human, gpt = {"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}
    turns = [human, gpt | mark, human, gpt]
    assert read("sharegpt", {"conversations": turns}) == expected
    rounds = [{"human": "问", "assistant": "答"} | mark, {"human": "问", "assistant": "答"}]
    assert read("sharegpt_cn", {"conversation": rounds}) == expected
    history = {"history": [USER, ANSWER | mark], "query": "问", "response": "答"}
    assert read("history", history) == expected


@pytest.mark.parametrize("mark", TO_BE_LEARNT)
def test_other_turns_have_none(mark):
    assert read("messages", {"messages": two_rounds(**mark)}) == [USER, PLAIN, USER, PLAIN]


@pytest.mark.parametrize(
    "mark", [{"weight": 0.5}, {"weight": 2}, {"loss": -1}, {"train": "maybe"}, {"loss": []}, {"weight": ""}]
)
def test_shares_of_loss_are_refused(mark):
    with pytest.raises(BadRow, match=f"turn's {next(iter(mark))} is .*neither 0 nor 1"):
        read("messages", {"messages": two_rounds(**mark)})


@pytest.mark.parametrize("key", ["mask", "train_on_input", "loss-weight", "token_weight"])
def test_marks_that_are_not_known_are_not_passed_over(key):
    with pytest.raises(BadRow, match=f"the key '{key}'"):
        read("messages", {"messages": two_rounds(**{key: 1})})


def test_the_turns_of_users_keep_theirs():
    marked = [USER | {"weight": 0}, ANSWER]
    assert read("messages", {"messages": marked}) == [USER | UNLEARNT, PLAIN]


def test_turns_of_one_speaker_are_learnt_only_if_all_are():
    turns = [USER, ANSWER | {"weight": 0}, ANSWER, USER, ANSWER, ANSWER]
    messages = read("messages", {"messages": turns})
    assert [is_unlearnt(message) for message in messages] == [False, True, False, False]


@pytest.mark.parametrize(
    "turns",
    [[USER, ANSWER | {"weight": 0}], [ANSWER, USER, ANSWER | {"loss": False}], two_rounds(loss=0)[:2]],
)
def test_a_conversation_without_a_turn_to_learn_is_removed_by_name(turns):
    with pytest.raises(SkippedRow, match=NOTHING_LEARNT):
        read("messages", {"messages": turns})


@pytest.mark.parametrize("said", ["", " \n\u3000"])
def test_an_empty_system_turn_is_none(said):
    system = {"role": "system", "content": said}
    assert read("sharegpt", {"conversations": [{"from": "system", "value": said}, USER, ANSWER]}) == [USER, PLAIN]
    assert read("messages", {"messages": [system, USER, ANSWER]}) == [USER, PLAIN]
    assert read("messages", {"messages": [system, USER, system, ANSWER]}) == [USER, PLAIN]
    assert read("messages", {"messages": [USER, ANSWER], "system": said}) == [USER, PLAIN]
    assert read("history", {"query": "问", "response": "答", "system": said, "history": []}) == [USER, PLAIN]


def test_a_system_turn_without_content_is_none_and_others_are_an_error():
    nothing = {"role": "system", "content": None}
    assert read("messages", {"messages": [nothing, USER, ANSWER]}) == [USER, PLAIN]
    with pytest.raises(BadRow, match="no value or content"):
        read("messages", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]})


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (parts("一"), "一"),
        (parts("一", "", "二"), "一\n二"),
        ([{"text": "一"}], "一"),
        ([{"type": "input_text", "text": "一"}], "一"),
        ([{"type": "text", "text": "一", "image_url": None}], "一"),
        (25, "25"),
        (-0.5, "-0.5"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_texts_that_are_no_strings(value, said):
    turns = [{"role": "user", "content": value}, {"role": "assistant", "content": value}]
    assert [message["content"] for message in read("messages", {"messages": turns})] == [said, said]
    assert read("alpaca", {"instruction": "问", "input": "", "output": value})[1]["content"] == said
    (record,) = SOURCES["preference"].read({"prompt": "问", "chosen": value, "rejected": "坏"})
    assert record.chosen == said


def test_no_input_may_be_false_or_no_number():
    for nothing in (None, False, float("nan"), ""):
        assert read("alpaca", {"instruction": "问", "input": nothing, "output": 25})[0]["content"] == "问"
    assert read("alpaca", {"instruction": "加一", "input": 0, "output": 1})[0]["content"].endswith("：\n0")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "part of type image_url, but only text is read"),
        ([*parts("看图"), {"type": "image"}], "part of type image"),
        ([{"type": "text", "text": None}], "part without text"),
        (["x"], "list, not a string"),
        ({"a": 1}, "dict, not a string"),
        (float("inf"), "float, not a string"),
        (float("nan"), "no value or content"),
    ],
)
def test_what_is_no_text_is_told(value, reason):
    with pytest.raises(BadRow, match=reason):
        read("messages", {"messages": [USER, {"role": "assistant", "content": value}]})


TURNS = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]


def test_conversations_as_json_in_a_column(tmp_path):
    (tmp_path / "sharegpt").mkdir()
    text = json.dumps(TURNS, ensure_ascii=False)
    quoted = text.replace('"', '""')
    (tmp_path / "sharegpt" / "a.csv").write_text(f'conversations\n"{quoted}"\n"[not json"\n', encoding="utf-8")
    pq.write_table(pa.table({"messages": [text], "history": [""]}), tmp_path / "sharegpt" / "b.parquet")
    corpus = CorpusConfig(name="sharegpt")
    first, broken, second = read_corpus(locate(corpus, tmp_path))
    assert first.records[0].messages == second.records[0].messages == [USER, PLAIN]
    assert "not a list" in broken.quarantined
    assert read("history", {"query": "问", "response": "答", "history": '[["一", "二"]]'})[1]["content"] == "二"
    assert read("history", {"query": "问", "response": "答", "history": ""}) == [USER, PLAIN]


def test_pairs_as_json_in_a_column():
    chosen, rejected = ([USER, {"role": "assistant", "content": said}] for said in "好坏")
    (record,) = SOURCES["preference"].read({"chosen": json.dumps(chosen), "rejected": json.dumps(rejected)})
    assert (record.prompt, record.chosen, record.rejected) == ([USER], "好", "坏")
    (record,) = SOURCES["preference"].read({"prompt": "写 JSON", "chosen": '[{"a": 1}]', "rejected": "[1]"})
    assert (record.chosen, record.rejected) == ('[{"a": 1}]', "[1]"), "an answer may be JSON itself"
