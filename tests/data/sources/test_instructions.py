import json

import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, SkippedRow
from gemma_keras.data.sources import SOURCES, instructions, locate, read_corpus
from tests.data.sources.hostile import reads_anything

ALPACA = {"instruction": "问", "input": "", "output": "答"}
ROUND = {"prompt": "", "response": json.dumps({"Q": "问", "A": "答"})}
EXAM = {"textbox_q_instruction": "选择题", "textbox_q_context": "", "textbox_question": "问", "textbox_answer": "A"}
VALUES = {"textbox_answer_analysis": "因为", "subject": "历史"}

# name, a raw row, what is said by turns (user first), type
SOUND = [
    ("belle", ALPACA, ["问", "答"], "instruction"),
    ("belle_05m", ALPACA | {"instruction": "问\\n\n"}, ["问", "答"], "instruction"),
    ("belle_chat", {"input": ["问", "再问"], "output": ["答", "再答"]}, ["问", "答", "再问", "再答"], "dialogue"),
    ("belle_csv", {"text": "<s>Human: 问\n</s><s>Assistant: 答\n</s>"}, ["问", "答"], "instruction"),
    ("belle_seed_tasks", {"instruction": "问", "instances": [{"input": "", "output": "答"}]}, ["问", "答"], "instruction"),
    ("belle_eval_set", {"question": "问", "std_answer": "答", "class": "closed\u00a0qa"}, ["问", "答"], "instruction"),
    ("alpaca", ALPACA | {"history": [["一", "二"]]}, ["一", "二", "问", "答"], "instruction"),
    ("alpaca_gpt4_zh", {"instruction_zh": "问", "input_zh": None, "output_zh": "答"}, ["问", "答"], "instruction"),
    ("alpaca_gpt4_zh", ALPACA, ["问", "答"], "instruction"),
    ("gpt4_llm_zh", ALPACA, ["问", "答"], "instruction"),
    ("alpaca_gpt4_en", {"instruction": "Add.", "input": "1 2", "output": "3"}, ["Add.\n\nInput:\n1 2", "3"], "instruction"),
    ("alpaca_chinese", ALPACA | {"input": "&lt;无输入&gt;"}, ["问", "答"], "instruction"),
    ("alpaca_cot", {"instruction": "Q\\nA", "input": "", "output": "1\\n2"}, ["Q\nA", "1\n2"], "instruction"),
    ("guanaco", ALPACA, ["问", "答"], "instruction"),
    ("guanaco", {"instruction": "User: 一\nAssistant: 二", "input": "User: 三", "output": "Assistant: 四"},
     ["一", "二", "三", "四"], "dialogue"),
    ("coig", ALPACA, ["问", "答"], "safety"),
    ("coig", ALPACA | {"program_lang": "python"}, ["问", "答"], "code"),
    ("coig", {"instruction": "Q", "trans_instruction": "问", "trans_input": "", "trans_output": "答"}, ["问", "答"],
     "instruction"),
    ("coig", EXAM | {"textbox_answer_analysis": []}, ["选择题\n问", "A"], "exam"),
    ("coig", EXAM | VALUES, ["选择题\n问", "答案：A\n解析：因为"], "exam"),
    ("coig", {"round_0": ROUND, "round_1": ROUND, "round_2": {"response": "无"}}, ["问", "答"] * 2, "dialogue"),
    ("instruction_wild", ALPACA, ["问", "答"], "instruction"),
    ("firefly", {"kind": "StoryGeneration", "input": "小猫", "target": "从前"},
     ["按照下面的要求讲一个故事：\n小猫", "从前"], "story_generation"),
    ("firefly", {"kind": "NLI", "input": "问", "target": "答"}, ["问", "答"], "classification"),
    ("firefly", {"kind": "Dictionary", "input": "问", "target": "答"}, ["问", "答"], "instruction"),
    ("tigerbot", {"instruction": "\n\n### Instruction:\n问", "input": None, "output": "\n\n### Response:\n答"},
     ["\n\n### Instruction:\n问", "\n\n### Response:\n答"], "instruction"),
    ("deepctrl_sft", {"instruction": "", "input": "问", "output": "答", "history": []}, ["问", "答"], "instruction"),
    ("deepctrl_sft", ALPACA | {"history": [["一", "二"]]}, ["一", "二", "问", "答"], "instruction"),
    ("code_alpaca", ALPACA, ["问", "答"], "code"),
    ("python_code_instructions", ALPACA | {"prompt": "三合一"}, ["问", "答"], "code"),
    ("mathglm", {"question": "问", "answer": "x=1"}, ["问", "x=1"], "math"),
    ("mathglm", {"text": "1+2*3=1+6=7"}, ["1+2*3=", "1+6=7"], "math"),
    ("qizhengpt", ALPACA, ["问", "答"], "medical"),
    ("qizhen_eval", {"药品": "甲片", "医学专家标注的适应病症": "头痛|发热", "instruction": "甲片的适应病症"},
     ["甲片的适应病症", "头痛、发热"], "medical"),
    ("huatuo", ALPACA, ["问", "答"], "medical"),
    ("chatmed", {"query": "<s>问：\n问\n答：\n", "response": "答"}, ["<s>问：\n问\n答：\n", "答"], "medical"),
    ("shennong_tcm", {"query": "问", "response": "答"}, ["问", "答"], "medical"),
    ("safety_prompts", {"prompt": "问", "response": "答", "type": "Insult"}, ["问", "答"], "safety"),
    ("safety_prompts", {"Insult": [{"prompt": "问", "response": "答", "type": "Insult"}]}, ["问", "答"], "safety"),
    ("advgen", {"content": "类型#裙", "summary": "好看"}, ["根据下面的商品特征写一段推广文案：\n类型#裙", "好看"], "writing"),
    ("advgen", {"input": "类型#裙", "output": "好看"}, ["根据下面的商品特征写一段推广文案：\n类型#裙", "好看"], "writing"),
    ("identity", {"instruction": "你是谁", "input": "", "output": "{{author}}的{{name}}"},
     ["你是谁", "Gemma Keras 项目组的Gemma 中文助手"], "identity"),
    ("identity", {"instruction": "hi", "input": "", "output": "I am {{name}}"},
     ["hi", "I am Gemma Chinese Assistant"], "identity"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "said", "type"), SOUND)
def test_a_sound_row(name, row, said, type):
    (record,) = SOURCES[name].read(row)
    assert [turn["content"] for turn in record.messages] == said
    assert [turn["role"] for turn in record.messages] == ["user", "model"] * (len(said) // 2)
    assert record.type == type and SOURCES[name].type in ("", type)


def test_every_entry_has_a_sound_row_and_says_its_schema():
    assert {name for name, *_ in SOUND} == {source.name for source in instructions.SOURCES}
    assert all(source.schema and source.licence for source in instructions.SOURCES)
    assert all((source.places or (source.name,))[0] == source.name for source in instructions.SOURCES)


def test_input_is_labelled_once():
    for given in ("天晴了", "输入：天晴了", "### 输入：\n天晴了"):
        (record,) = SOURCES["alpaca_gpt4_zh"].read(ALPACA | {"instruction": "改写。\n", "input": given})
        assert record.messages[0]["content"] == "改写。\n\n所给内容：\n天晴了"


@pytest.mark.parametrize(
    "given", ["", "  \n", "无", "无输入", "“无需输入。”", "<noinput>", "No input", "没有输入。", None]
)
def test_words_for_no_input_are_no_input(given):
    (record,) = SOURCES["alpaca_chinese"].read(ALPACA | {"input": given})
    assert record.messages[0]["content"] == "问"


def test_long_runs_of_blanks_take_no_time():
    given = " " * 300_000 + "甲" + "\n" * 300_000 + "乙"
    assert SOURCES["alpaca"].read(ALPACA | {"input": given})


def test_knowledge_of_guanaco_becomes_the_system_turn():
    row = {"instruction": "User: 一\nAssistant: 二", "input": "System: 资料\nUser: 三", "output": "四"}
    (record,) = SOURCES["guanaco"].read(row)
    assert record.messages[0] == {"role": "system", "content": "资料"}
    assert [turn["content"] for turn in record.messages[1:]] == ["一", "二", "三", "四"]


def test_a_row_of_many():
    tasks = SOURCES["belle_seed_tasks"].read(
        {"instruction": "问", "instances": [{"input": "甲", "output": "1"}, {"input": "乙", "output": "2"}]}
    )
    assert [record.messages[1]["content"] for record in tasks] == ["1", "2"]
    entry = {"prompt": "问", "response": "答"}
    assert len(SOURCES["safety_prompts"].read({"Insult": [entry, entry], "Mental_Health": [entry]})) == 3


@pytest.mark.parametrize(
    ("name", "row", "rule"),
    [
        ("belle_eval_set", {"question": "问", "std_answer": ""}, "no_answer"),
        ("instruction_wild", {"instruction": "问"}, "no_answer"),
        ("mathglm", {"text": "4849+5090="}, "no_answer"),
    ],
)
def test_rows_without_an_answer_are_skipped(name, row, rule):
    with pytest.raises(SkippedRow, match=rule):
        SOURCES[name].read(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("belle", {"instruction": "x"}),
        ("belle", {"instruction": "x", "input": [], "output": "y"}),
        ("belle_chat", {"input": ["a"], "output": []}),
        ("belle_chat", {"input": [], "output": []}),
        ("belle_csv", {"text": "<s>Human: a"}),
        ("belle_csv", {"text": "<s>Someone: a</s>"}),
        ("deepctrl_sft", ALPACA | {"history": [["只有一句"]]}),
        ("mathglm", {"text": "甲"}),
        ("safety_prompts", {}),
        ("safety_prompts", {"Insult": [{"prompt": "问"}]}),
        ("coig", {"round_0": {"response": "不是 JSON"}}),
    ],
)
def test_bad_rows(name, row):
    with pytest.raises(BadRow, match="."):
        SOURCES[name].read(row)


def test_kinds_are_selectable(tmp_path):
    (tmp_path / "firefly").mkdir()
    rows = [{"kind": kind, "input": "问", "target": "答"} for kind in ("NLI", "StoryGeneration", "Couplet")]
    (tmp_path / "firefly" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def skipped(*kinds):
        corpus = CorpusConfig(name="firefly", kinds=kinds)
        return [row.skipped for row in read_corpus(locate(corpus, tmp_path))]

    assert skipped() == ["other_kind", "", "other_kind"]
    assert skipped("NLI", "Couplet") == ["", "other_kind", ""]
    assert skipped("all") == ["", "", ""]


@pytest.mark.parametrize("source", instructions.SOURCES, ids=lambda source: source.name)
def test_no_row_breaks_the_reading(source):
    reads_anything(source, [row for name, row, *_ in SOUND if name == source.name])


# rows, usable, skipped by rule, quarantined
REAL = {
    "belle": (800, 800, {}, 0), "belle_05m": (10, 10, {}, 0), "belle_chat": (3, 3, {}, 0), "belle_csv": (148, 148, {}, 0),
    "belle_seed_tasks": (175, 175, {}, 0), "belle_eval_set": (798, 497, {"no_answer": 301}, 0),
    "alpaca_gpt4_zh": (833, 833, {}, 0), "gpt4_llm_zh": (35, 35, {}, 0), "alpaca_gpt4_en": (500, 500, {}, 0),
    "alpaca_chinese": (8000, 8000, {}, 0), "alpaca_cot": (2700, 2700, {}, 0),
    "instruction_wild": (1246, 0, {"no_answer": 1241}, 5), "tigerbot": (4000, 4000, {}, 0),
    "code_alpaca": (1700, 1700, {}, 0), "python_code_instructions": (1700, 1700, {}, 0),
    "mathglm": (12000, 4000, {"no_answer": 8000}, 0), "qizhengpt": (6000, 6000, {}, 0), "huatuo": (6000, 6000, {}, 0),
    "qizhen_eval": (94, 94, {}, 0), "chatmed": (350, 350, {}, 0), "shennong_tcm": (350, 350, {}, 0),
    "advgen": (10, 10, {}, 0), "identity": (91, 91, {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    rows, usable, skipped, quarantined = REAL[name]
    corpus = CorpusConfig(name=name)
    read = list(read_corpus(locate(corpus, real_data)))
    assert sum(row.rows for row in read) == rows
    assert sum(bool(row.records) for row in read) == usable
    assert {rule: sum(row.skipped == rule for row in read) for rule in {row.skipped for row in read} - {""}} == skipped
    assert sum(bool(row.quarantined) for row in read) == quarantined
    assert not any("{{" in turn["content"] for row in read if name == "identity" for turn in row.records[0].messages)
