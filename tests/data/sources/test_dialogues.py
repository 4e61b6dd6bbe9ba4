import json

import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, SkippedRow
from gemma_keras.data.sources import SOURCES, dialogues, locate, read_corpus
from gemma_keras.text.templates import TEMPLATES
from tests.data.sources.hostile import reads_anything

QA = ["问", "答"]
SYSTEM = {"role": "system", "content": "资料"}
CHAT = [{"role": "user", "content": "问"}, {"role": "model", "content": "答"}]
SHAREGPT = {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}
SHAREAI = {"conversation": [{"human": "问", "assistant": "答"}, {"human": "再问", "assistant": "再答"}]}
MESSAGES = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}


def moss_turn(human, reply, thoughts="None", commands="None", results="None"):
    return {
        "Human": f"<|Human|>: {human}<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thoughts}<eot>\n",
        "Commands": f"<|Commands|>: {commands}<eoc>\n",
        "Tool Responses": f"<|Results|>: {results}<eor>\n",
        "MOSS": f"<|MOSS|>: {reply}<eom>\n",
    }


MOSS = {
    "meta_instruction": "You are ...",
    "chat": {"turn_1": moss_turn("问", "答"), "turn_2": moss_turn("再问", "再答")},
}
MOSS_PLUGINS = {"chat": {"turn_1": moss_turn("1+1", "2", "要计算", "Calculate(1+1)", "\nCalculate(1+1) => 2\n")}}


def message(number, role, said, parent=None, **more):
    return {"message_tree_id": "m1", "message_id": f"m{number}", "parent_id": parent, "role": role, "text": said,
            "lang": "zh", "rank": None, "deleted": False, "review_result": True} | more  # fmt: skip


OASST = [
    message(1, "prompter", "问"),
    message(2, "assistant", "次答", "m1", rank=1),
    message(3, "assistant", "答", "m1", rank=0),
    message(4, "assistant", "删去的", "m1", rank=-1, deleted=True),
    message(5, "assistant", "退回的", "m1", rank=-1, review_result=False),
    message(6, "prompter", "无人答", "m3"),
    message(7, "prompter", "再问", "m3"),
    message(8, "assistant", "再答", "m7"),
]
TREE = {
    "message_tree_id": "m1",
    "prompt": OASST[0] | {"replies": [OASST[1], OASST[2] | {"replies": [OASST[6] | {"replies": [OASST[7]]}]}]},
}

# name, a raw row, what is said by turns (user first), type
SOUND = [
    ("sharegpt", SHAREGPT, QA, "dialogue"),
    ("sharegpt", SHAREGPT | {"type": "code"}, QA, "code"),
    ("messages", MESSAGES, QA, "dialogue"),
    ("messages", MESSAGES | {"type": "translation"}, QA, "translation"),
    ("history", {"instruction": "问", "input": "", "output": "答", "history": [["一", "二"]]}, ["一", "二", *QA], "dialogue"),
    ("history", {"prompt": "问", "query": "", "response": "答", "history": None}, QA, "dialogue"),
    ("history", {"query": "问", "response": "答"}, QA, "dialogue"),
    ("sharegpt_zh", SHAREGPT, QA, "dialogue"),
    ("sharegpt_cn", SHAREAI, [*QA, "再问", "再答"], "dialogue"),
    ("sharegpt_90k", SHAREAI | {"category": "a"}, [*QA, "再问", "再答"], "dialogue"),
    ("sharegpt_vicuna", {"id": "1"} | SHAREGPT, QA, "dialogue"),
    ("sharegpt_multilang", {"id": "1", "lang": "zh", "text": "\n<|user|>: 问\n\n<|bot|>: 答\n\n"}, QA, "dialogue"),
    ("baiduzhidao", {"input": "问", "output": "答"}, QA, "dialogue"),
    ("firefly_dialogues", SHAREAI | {"dataset": "moss"}, [*QA, "再问", "再答"], "dialogue"),
    ("llama3_chinese_sharegpt", SHAREGPT, QA, "dialogue"),
    ("belle_multiturn", {"instruction": "Human:一\nAssistant:二\nHuman:问 \nAssistant:", "input": "", "output": "答"},
     ["一", "二", *QA], "dialogue"),
    ("hc3_chinese", {"question": "问", "human_answers": [], "chatgpt_answers": ["答", "另"]}, QA, "dialogue"),
    ("naturalconv", {"dialog_id": "0_1", "document_id": 0, "content": ["问", "答", "再问", "再答", "再见"]},
     [*QA, "再问", "再答"], "dialogue"),
    ("moss", MOSS, [*QA, "再问", "再答"], "dialogue"),
    ("moss", MOSS_PLUGINS, ["1+1", "【思考】要计算\n【调用】Calculate(1+1)\n【结果】Calculate(1+1) => 2\n2"], "dialogue"),
    ("oasst", TREE, [*QA, "再问", "再答"], "dialogue"),
    ("oasst_zh", {"instruction": "问", "input": "", "output": "答", "history": []}, QA, "dialogue"),
    ("gemmalm_chinese", {"text": TEMPLATES["gemmalm_zh"].render(CHAT), "type": "instruction"}, QA, "instruction"),
]  # fmt: skip

READING = [
    ("redgpt", {"reference": "资料", "dialogue": "Human: 问\n\nAssistant: 答"}),
    ("redgpt", {"reference": "资料", "dialogue": "\n\nHUMAN(用户)：问\n\nAssistant：答\n\nHuman: 谢谢"}),
    ("refgpt_fact", {"reference": "资料", "dialogue": "<user> 问\n<assistant> 答"}),
    ("refgpt_fact", {"reference": "资料",
                     "dialogue": "<start_chat><Human 1>:（字数要求：20字）问 <Assistant 1>：（字数要求：200字）答 <end_chat>"}),
]  # fmt: skip
SMILE = [
    {"role": "client", "content": "问", "annotation": []},
    {"role": "counselor", "content": "答"},
    {"role": "counselor", "content": "又答"},
    {"role": "client", "content": "谢谢"},
]


@pytest.mark.parametrize(("name", "row", "said", "type"), SOUND)
def test_a_sound_row(name, row, said, type):
    (record,) = SOURCES[name].read([row] if SOURCES[name].group else row)
    assert [turn["content"] for turn in record.messages] == said
    assert [turn["role"] for turn in record.messages] == ["user", "model"] * (len(said) // 2)
    assert record.type == type and SOURCES[name].type in ("", type)


@pytest.mark.parametrize(("name", "row"), READING)
def test_a_passage_becomes_the_system_turn(name, row):
    (record,) = SOURCES[name].read(row)
    assert (record.messages, record.type) == ([SYSTEM, *CHAT], "reading")


def test_every_entry_has_a_sound_row_and_says_its_schema():
    rest = {"smile", *(name for name, _ in READING)}
    assert {name for name, *_ in SOUND} | rest == {source.name for source in dialogues.SOURCES}
    assert all(source.schema and source.licence for source in dialogues.SOURCES)


def sharegpt(*turns):
    return {"conversations": [{"from": name, "value": said} for name, said in turns]}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (sharegpt(("human", "问"), ("chatgpt", "答"), ("human", "还有")), CHAT),
        (sharegpt(("gpt", "你好"), ("user", "问"), ("bing", "答")), CHAT),
        (sharegpt(("system", "资料"), ("gpt", "你好"), ("Human", "问"), ("Assistant", "答")), [SYSTEM, *CHAT]),
        (SHAREGPT | {"system": "资料"}, [SYSTEM, *CHAT]),
        (sharegpt(("human", "问"), ("human", "二"), ("gpt", "答"), ("gpt", "三")),
         [{"role": "user", "content": "问\n二"}, {"role": "model", "content": "答\n三"}]),
        (sharegpt(("human", ""), ("gpt", "答")), [{"role": "user", "content": ""}, CHAT[1]]),
    ],
)  # fmt: skip
def test_irregular_turns(row, messages):
    (record,) = SOURCES["sharegpt"].read(row)
    assert record.messages == messages


@pytest.mark.parametrize("turns", [[("human", "问")], [("gpt", "答")], [("system", "资料"), ("human", "问")]])
def test_one_sided_conversations_are_skipped(turns):
    with pytest.raises(SkippedRow, match="one_sided"):
        SOURCES["sharegpt"].read(sharegpt(*turns))


def test_questions_without_an_answer_are_skipped():
    with pytest.raises(SkippedRow, match="no_answer"):
        SOURCES["hc3_chinese"].read({"question": "问", "chatgpt_answers": []})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("sharegpt", {}),
        ("sharegpt", {"conversations": []}),
        ("sharegpt", {"conversations": ["问", "答"]}),
        ("sharegpt", sharegpt(("humna", "问"), ("gpt", "答"))),
        ("messages", {"messages": [{"role": "user"}]}),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}),
        ("sharegpt_cn", {"conversation": [{"human": "问"}]}),
        ("sharegpt_multilang", {"text": "没有标记"}),
        ("history", {"instruction": "问", "output": "答", "history": ["一", "二"]}),
        ("history", {"output": "答"}),
        ("belle_multiturn", {"instruction": "问", "output": "答"}),
        ("hc3_chinese", {"question": "x", "chatgpt_answers": [1]}),
        ("redgpt", {"dialogue": "Human: 问\nAssistant: 答"}),
        ("moss", {"chat": {"turn_1": {"Human": "问"}}}),
        ("moss", {"chat": {}}),
        ("oasst", {"message_id": "1"}),
        ("gemmalm_chinese", {"text": "x", "type": "y"}),
        ("gemmalm_chinese", {"text": TEMPLATES["gemmalm_zh"].render(CHAT)}),
    ],
)
def test_bad_rows(name, row):
    with pytest.raises(BadRow, match="."):
        SOURCES[name].read([row] if SOURCES[name].group else row)


def written(folder, name, rows):
    (folder / name).mkdir()
    (folder / name / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(name, root, *kinds):
    corpus = CorpusConfig(name=name, kinds=kinds)
    return list(read_corpus(locate(corpus, root)))


def test_messages_of_a_tree_are_read_together(tmp_path):
    english = message(9, "prompter", "Hi", message_tree_id="m9", lang="en")
    written(
        tmp_path, "oasst", [*OASST, english, message(10, "assistant", "Hello", "m9", message_tree_id="m9", lang="en")]
    )
    chinese, other = read("oasst", tmp_path)
    assert [turn["content"] for turn in chinese.records[0].messages] == [*QA, "再问", "再答"]
    assert (chinese.rows, other.rows, other.skipped) == (8, 2, "other_kind")
    assert read("oasst", tmp_path, "en")[1].records[0].messages[1]["content"] == "Hello"


def test_a_tree_that_leads_back_to_itself_ends():
    loop = [OASST[0], message(2, "assistant", "答", "m1"), message(1, "prompter", "又", "m2")]
    (record,) = SOURCES["oasst"].read(loop)
    assert record.messages == CHAT


def test_a_file_of_turns_is_one_dialogue(tmp_path):
    (tmp_path / "smile").mkdir()
    for number in (1, 2):
        (tmp_path / "smile" / f"{number}.json").write_text(json.dumps(SMILE, indent=1), encoding="utf-8")
    rows = read("smile", tmp_path)
    assert [(row.rows, len(row.records)) for row in rows] == [(4, 1), (4, 1)]
    assert rows[0].records[0].messages == [CHAT[0], {"role": "model", "content": "答\n又答"}]


def test_plugins_of_moss_are_taken_if_asked_for(tmp_path):
    written(tmp_path, "moss", [MOSS, MOSS_PLUGINS])
    assert [row.skipped for row in read("moss", tmp_path)] == ["", "other_kind"]
    assert [row.skipped for row in read("moss", tmp_path, "plugins")] == ["other_kind", ""]
    assert [len(row.records) for row in read("moss", tmp_path, "all")] == [1, 1]


def test_long_runs_take_no_time():
    blanks = "\n" * 200_000 + " " * 200_000
    for name, key, front in (
        ("redgpt", "dialogue", "Human: 问\nAssistant: 答"),
        ("refgpt_fact", "dialogue", "<user> 问\n<assistant> 答"),
        ("belle_multiturn", "instruction", "Human:问"),
    ):
        assert SOURCES[name].read({"reference": "资料", key: front + blanks + "。", "output": "答"})
    assert SOURCES["sharegpt"].read(sharegpt(*[("human", "问")] * 100_000, ("gpt", "答")))


@pytest.mark.parametrize("source", dialogues.SOURCES, ids=lambda source: source.name)
def test_no_row_breaks_the_reading(source):
    rows = [row for name, row, *_ in [*SOUND, *READING] if name == source.name]
    reads_anything(source, {"smile": SMILE, "oasst": [*OASST, TREE]}.get(source.name, rows))


# files' rows (dialogues of smile count by their turns), usable, skipped by rule, quarantined
REAL = {
    "sharegpt_zh": (800, 799, {"one_sided": 1}, 0), "llama3_chinese_sharegpt": (800, 799, {"one_sided": 1}, 0),
    "sharegpt_cn": (33, 33, {}, 0), "firefly_dialogues": (33, 33, {}, 0), "sharegpt_90k": (10, 10, {}, 0),
    "sharegpt_vicuna": (12, 12, {}, 0), "sharegpt_multilang": (6, 4, {"one_sided": 2}, 0),
    "baiduzhidao": (28, 28, {}, 0), "moss": (375, 300, {"other_kind": 75}, 0), "oasst_zh": (542, 542, {}, 0),
    "smile": (4571, 400, {}, 0), "gemmalm_chinese": (800, 800, {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    rows, usable, skipped, quarantined = REAL[name]
    got = read(name, real_data)
    assert sum(bool(row.records) for row in got) == usable
    assert {rule: sum(row.skipped == rule for row in got) for rule in {row.skipped for row in got} - {""}} == skipped
    assert sum(bool(row.quarantined) for row in got) == quarantined
    assert sum(row.rows for row in got) == rows
