from collections import Counter

import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, SkippedRow
from gemma_keras.data.sources import SOURCES, locate, preferences, read_corpus
from tests.data.sources.hostile import reads_anything

USER = {"role": "user", "content": "问"}
SYSTEM = {"role": "system", "content": "你是助手"}
TURNS = [{"from": "human", "value": "问"}]
ASKED, GOOD, BAD = (
    {"role": "user", "content": "问"},
    {"role": "assistant", "content": "好"},
    {"role": "assistant", "content": "坏"},
)
PAIR = {"chosen": "好", "rejected": "坏"}
OWN = {"category": "law_val", "question": "题", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "A"}

# name, a raw row, its prompt
SOUND = [
    ("dpo_en_zh_20k", {"conversations": [{"from": "system", "value": "你是助手"}, *TURNS],
                       "chosen": {"from": "gpt", "value": "好"}, "rejected": {"from": "gpt", "value": "坏"}}, [SYSTEM, USER]),
    ("dpo_zh_medicalgpt", {"conversations": TURNS} | PAIR, [USER]),
    ("dpo_zh_medicalgpt", {"system": "", "history": [["一", "二"]], "question": "问", "response_chosen": "好",
                           "response_rejected": "坏"},
     [{"role": "user", "content": "一"}, {"role": "model", "content": "二"}, USER]),
    ("orca_dpo_pairs", {"system": "你是助手", "question": "问"} | PAIR, [SYSTEM, USER]),
    ("chinese_dpo_pairs", {"system": None, "prompt": "问"} | PAIR, [USER]),
    ("ultrafeedback", {"prompt": "问", "prompt_id": "1", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, [USER]),
    ("oasst_zh_ranked", {"instruction": "问", "input": "", "output": ["好", "中", "坏"], "history": []}, [USER]),
    ("preference", {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
    ("preference", {"instruction": "问", "input": ""} | PAIR, [USER]),
    ("preference", {"prompt": [{"role": "Human", "content": "问"}], "chosen": {"role": "bot", "content": "好"},
                    "rejected": {"role": "chatgpt", "content": "坏"}}, [USER]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "prompt"), SOUND)
def test_a_sound_row(name, row, prompt):
    (record,) = SOURCES[name].read(row)
    assert (record.prompt, record.chosen, record.rejected, record.type) == (prompt, "好", "坏", "preference")


def test_a_models_own_answer():
    (record,) = SOURCES["ceval_abcd_preference"].read(OWN | {"model_response": "答案为 B。"})
    assert (record.chosen, record.rejected) == ("B", "答案为 B。")
    assert "题" in record.prompt[-1]["content"] and "D. 丁" in record.prompt[-1]["content"]


def test_every_entry_has_a_sound_row_and_says_its_schema():
    others = {"ceval_abcd_preference", "kto_mix"}
    assert {source.name for source in preferences.SOURCES} - others == {name for name, *_ in SOUND}
    assert all(source.schema and source.licence for source in preferences.SOURCES)


@pytest.mark.parametrize(
    ("name", "row", "rule"),
    [
        ("orca_dpo_pairs", {"question": "问", "chosen": "好", "rejected": "好\n"}, "equal_answers"),
        ("oasst_zh_ranked", {"instruction": "问", "output": ["好"]}, "one_answer"),
        ("kto_mix", {"messages": [ASKED, GOOD], "label": True}, "unpaired_preference"),
        ("ceval_abcd_preference", OWN | {"model_response": "B"}, "already_a_letter"),
        ("ceval_abcd_preference", OWN | {"model_response": "说不好"}, "no_letter"),
    ],
)
def test_rows_that_make_no_pair_are_skipped(name, row, rule):
    with pytest.raises(SkippedRow, match=rule):
        SOURCES[name].read(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("dpo_en_zh_20k", {"conversations": TURNS, "chosen": {"from": "human", "value": "好"}, "rejected": "坏"}),
        ("dpo_en_zh_20k", {"conversations": [1]} | PAIR),
        ("orca_dpo_pairs", {"question": "问", "chosen": "好"}),
        ("orca_dpo_pairs", PAIR),
        ("orca_dpo_pairs", {"question": "问", "history": [["一"]]} | PAIR),
        ("ultrafeedback", {"chosen": [ASKED, GOOD], "rejected": [{"role": "user", "content": "另问"}, BAD]}),
        ("ultrafeedback", {"prompt": "问", "chosen": [], "rejected": [BAD]}),
        ("oasst_zh_ranked", {"instruction": "问", "output": "好"}),
        ("kto_mix", {"messages": [], "label": "true"}),
        ("ceval_abcd_preference", {"question": "题", "model_response": "B。"}),
    ],
)
def test_bad_rows(name, row):
    with pytest.raises(BadRow, match="."):
        SOURCES[name].read(row)


@pytest.mark.parametrize("source", preferences.SOURCES, ids=lambda source: source.name)
def test_no_row_breaks_the_reading(source):
    rows = [row for name, row, *_ in SOUND if name == source.name]
    reads_anything(source, rows or [OWN | {"model_response": "选 B。"}, {"messages": [ASKED, GOOD], "label": False}])


# rows, pairs, skipped by rule
REAL = {
    "dpo_en_zh_20k": (354, 354, {}), "dpo_zh_medicalgpt": (658, 658, {}), "ultrafeedback": (16, 16, {}),
    "oasst_zh_ranked": (621, 618, {"equal_answers": 3}), "kto_mix": (231, 0, {"unpaired_preference": 231}),
    "ceval_abcd_preference": (1345, 1343, {"no_letter": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    rows, usable, skipped = REAL[name]
    corpus = CorpusConfig(name=name)
    read = list(read_corpus(locate(corpus, real_data)))
    assert sum(row.rows for row in read) == rows == usable + sum(skipped.values())
    assert sum(len(row.records) for row in read) == usable
    assert Counter(row.skipped for row in read if row.skipped) == skipped
    assert not [row.quarantined for row in read if row.quarantined]
