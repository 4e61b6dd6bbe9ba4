import json

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import CorpusConfig
from gemma_keras.data.records import TextRecord
from gemma_keras.data.sources import SOURCES, find_files, read_corpus
from gemma_keras.text.templates import TEMPLATES

CHAT = [{"role": "user", "content": "问"}, {"role": "model", "content": "答"}]

SOUND = {
    "belle": ({"instruction": "问", "input": "", "output": "答"}, "instruction"),
    "belle_chat": ({"input": ["问"], "output": ["答"]}, "dialogue"),
    "belle_csv": ({"text": "<s>Human: 问\n</s><s>Assistant: 答\n</s>"}, "instruction"),
    "alpaca_gpt4_zh": ({"instruction_zh": "问", "input_zh": None, "output_zh": "答"}, "instruction"),
    "alpaca_chinese": ({"instruction": "问", "input": "&lt;无输入&gt;", "output": "答"}, "instruction"),
    "hc3_chinese": ({"question": "问", "human_answers": [], "chatgpt_answers": ["答", "另"]}, "dialogue"),
    "chinese_modern_poetry": ({"uuid": "1", "prompt": "问", "response": "答"}, "modern_poetry_creation"),
    "gemmalm_chinese": ({"text": TEMPLATES["gemmalm_zh"].render(CHAT), "type": "instruction"}, "instruction"),
    "messages": ({"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, "dialogue"),
}


@pytest.mark.parametrize("name", SOUND)
def test_row_becomes_a_conversation(name):
    row, kind = SOUND[name]
    (record,) = SOURCES[name].read(row)
    assert (record.messages, record.type) == (CHAT, kind)


@pytest.mark.parametrize(
    ("name", "row", "question", "answer"),
    [
        ("firefly", {"kind": "StoryGeneration", "input": "小猫", "target": "从前"}, "小猫", "从前"),
        ("chinese_poetry", {"context": "春日", "instruction": "五言绝句", "response": "诗"}, "春日", "诗"),
        ("classical_modern", {"inputs": "学而时习之", "truth": "学了常温习"}, "学而时习之", "学了常温习"),
        ("belle", {"instruction": "改写", "input": "输入：天晴了", "output": "放晴"}, "：\n天晴了", "放晴"),
    ],
)
def test_text_is_wrapped_in_a_request(name, row, question, answer):
    (record,) = SOURCES[name].read(row)
    asked, answered = (turn["content"] for turn in record.messages)
    assert question in asked and len(asked) > len(question) and answered == answer
    assert "输入：" not in asked


@pytest.mark.parametrize("row", [{"translation": {"en": "Hi", "zh": "嗨"}}, {"en": "Hi", "zh": "嗨", "index": 0}])
def test_translation_in_both_directions(row):
    into_english, into_chinese = SOURCES["news_commentary"].read(row)
    assert "嗨" in into_english.messages[0]["content"] and into_english.messages[1]["content"] == "Hi"
    assert "Hi" in into_chinese.messages[0]["content"] and into_chinese.messages[1]["content"] == "嗨"


def test_wikipedia_articles_and_paragraphs():
    assert SOURCES["zh_wiki"].read({"text": "题\n\n文"}) == [TextRecord(text="题\n\n文")]
    article = {"title": "题", "paragraphs": [{"context": "一", "qas": []}, {"context": "二"}]}
    assert [record.text for record in SOURCES["zh_wiki"].read(article)] == ["一", "二"]


BAD = {
    "belle": [
        {},
        {"instruction": "x"},
        {"instruction": 1, "output": "x"},
        {"instruction": "x", "input": [], "output": "y"},
    ],
    "belle_chat": [{}, {"input": ["a"], "output": []}, {"input": [1], "output": ["a"]}, {"input": [], "output": []}],
    "belle_csv": [{"text": ""}, {"text": "Human: x"}, {"text": "<s>Human: a</s>"}, {"text": None}],
    "news_commentary": [{}, {"translation": "x"}, {"translation": {"en": "x"}}, {"en": "a", "zh": 1}],
    "hc3_chinese": [
        {"question": "x"},
        {"question": "x", "chatgpt_answers": "y"},
        {"question": "x", "chatgpt_answers": [1]},
    ],
    "gemmalm_chinese": [{"text": "x", "type": "y"}, {"text": SOUND["gemmalm_chinese"][0]["text"]}],
    "zh_wiki": [{}, {"paragraphs": "x"}, {"paragraphs": [1]}, {"paragraphs": [{}]}],
    "messages": [{}, {"messages": [1]}, {"messages": [{"role": "user"}]}],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_quarantined_with_file_row_and_reason(tmp_path, name):
    (tmp_path / name).mkdir()
    path = tmp_path / name / "x.json"
    good = SOUND.get(name, ({"en": "Hi", "zh": "嗨"} if name == "news_commentary" else {"text": "文"}, ""))[0]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*BAD[name], good]), encoding="utf-8")
    place = CorpusConfig(name=name, path=name)
    read = list(read_corpus(place, tmp_path))
    assert [row.quarantined is not None for row in read] == [True] * len(BAD[name]) + [False]
    assert [row.quarantined.row for row in read[:-1]] == list(range(1, len(read)))
    assert all(row.quarantined.file == f"{name}/x.json" and row.quarantined.reason for row in read[:-1])
    assert read[-1].records[0].id.startswith(f"{name}/{name}/x.json:{len(read)}")
    assert read[-1].records[0].source == name


def test_unused_rows_are_skipped_by_rule(tmp_path):
    (tmp_path / "firefly").mkdir()
    (tmp_path / "firefly" / "a.jsonl").write_text('{"kind": "NLI", "input": "a", "target": "b"}\n')
    assert [row.skipped for row in read_corpus(CorpusConfig(name="firefly"), tmp_path)] == ["other_kind"]


def test_files_are_sorted_and_found_by_file_folder_and_glob(tmp_path):
    folder = tmp_path / "belle" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.json", "a.jsonl", "notes.md", ".hidden.json"):
        (folder / name).write_text("{}")
    both = [folder / "a.jsonl", folder / "b.json"]
    assert find_files(CorpusConfig(name="belle"), tmp_path) == both
    assert find_files(CorpusConfig(name="belle", path="belle/deep/b.json"), tmp_path) == both[1:]
    assert find_files(CorpusConfig(name="belle", path="belle/*/*.json"), tmp_path) == both[1:]
    assert find_files(CorpusConfig(name="belle", path=str(folder)), tmp_path / "elsewhere") == both


def test_a_root_with_the_characters_of_a_pattern(tmp_path):
    folder = tmp_path / "data [1]*" / "belle"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    assert find_files(CorpusConfig(name="belle", path="belle/*.json"), folder.parent) == [folder / "a.json"]
    assert find_files(CorpusConfig(name="belle"), folder.parent) == [folder / "a.json"]


def test_missing_corpora_are_told_with_the_places(tmp_path):
    with pytest.raises(UserError, match="belle_school_math"):
        find_files(CorpusConfig(name="belle"), tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.json"):
        find_files(CorpusConfig(name="belle", path="nowhere.json"), tmp_path)
    with pytest.raises(UserError, match="choose one of"):
        find_files(CorpusConfig(name="bele"), tmp_path)


REAL = {"belle": 800, "belle_chat": 3, "belle_csv": 148, "alpaca_gpt4_zh": 833, "alpaca_chinese": 8000,
        "news_commentary": 8000, "gemmalm_chinese": 800, "zh_wiki": 1511, "cluecorpussmall": 2200, "plain_text": 274}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    read = list(read_corpus(CorpusConfig(name=name), real_data))
    assert len(read) == REAL[name]
    assert not [row.quarantined for row in read if row.quarantined]
