import csv
import json

import numpy as np
import pytest

from gemma_keras.data.cleaning.contamination import Contamination
from gemma_keras.data.cleaning.ngrams import units

QUESTION = "在标准大气压下，水的沸点是多少摄氏度？\n零\n五十\n一百\n二百"
SENTENCE = "The gardener watered that the roses."  # 6 units
ITEMS = [
    ("exam", QUESTION),
    ("grammar", SENTENCE),
    ("grammar", "Who left?"),
    ("papers", "黄河三角洲湿地植被的演替规律研究"),
]


@pytest.fixture(scope="module")
def contamination():
    return Contamination(ITEMS)


def test_what_is_known_of_the_items(contamination):
    assert contamination.corpora == ["exam", "grammar", "papers"]


@pytest.mark.parametrize(
    "row, corpus",
    [
        ([QUESTION, "一百"], "exam"),
        (["请回答：在 标准大气压 下 水的沸点是\n\n多少摄氏度"], "exam"),
        (["你好", "有一道题：“在标准大气压下，水的沸点是多少摄氏度？”我不会做，请讲一讲它的原理。"], "exam"),
        (["标准大气压下，水的沸点是多"], ""),
        ([SENTENCE], "grammar"),
        (["Is this acceptable?\nTHE GARDENER WATERED THAT THE ROSES!\nNo."], "grammar"),
        (["The gardener watered that the roses were red."], ""),
        (["We saw that the gardener watered that the roses."], ""),
        (["The gardener watered", "that the roses."], ""),
        (["Who left?"], ""),
        (["论文题目：黄河三角洲湿地植被的演替规律研究。" + QUESTION], "exam"),
        ([""], ""),
        ([], ""),
    ],
)
def test_rows(contamination, row, corpus):
    others = [["今天天气很好。"], [], ["黄河三角洲湿地植被的演替规律研究进展"]]
    index = contamination.corpora.index(corpus) if corpus else -1
    assert contamination.hits([row]).tolist() == [index]
    assert contamination.hits([*others, row, *others]).tolist() == [-1, -1, 2, index, -1, -1, 2]


def test_a_short_question_with_its_options():
    contamination = Contamination([("exam", "1+1=?\n1\n2\n3\n4")])
    assert contamination.hits([["做题。\n1+1=?\n1\n2\n3\n4\n请作答。"], ["1+1=?\n1\n2\n3\n5"]]).tolist() == [0, -1]


def test_boilerplate_does_not_count():
    stem = "根据下面这段文字的内容选出最恰当的一项"
    items = [("exam", f"{stem}：{rest}") for rest in ("春天到了花都开了", "夏夜池塘边蛙声一片", "秋风吹落满山红叶")]
    row = [[f"{stem}，并说明理由。"]]
    assert Contamination(items[:2]).hits(row).tolist() == [0]
    assert Contamination(items).hits(row).tolist() == [-1]
    assert Contamination(items).hits([[items[0][1]]]).tolist() == [0]


def test_a_text_that_many_tasks_share_is_no_boilerplate():
    text = "本文研究了城市轨道交通网络在突发客流下的脆弱性，并提出了一种基于图论的评估方法，实例验证了它的有效性。"
    items = [("papers", f"{text}\n{target}") for target in ("", "脆弱性评估", "轨道交通_客流_图论", "交通运输")]
    assert Contamination(items).hits([[f"摘要：{text}"]]).tolist() == [0]


def test_length_of_the_ngrams():
    item, row = [("a", "天地玄黄宇宙洪荒日月盈昃辰宿列张")], [["宇宙洪荒日月盈昃，如何解释"]]
    assert Contamination(item, n=8).hits(row).tolist() == [0]
    assert Contamination(item, n=9).hits(row).tolist() == [-1]


def test_no_items():
    assert Contamination([]).hits([["天地玄黄宇宙洪荒日月盈昃辰宿列张"], []]).tolist() == [-1, -1]


@pytest.fixture(scope="module")
def real_items(real_data):
    items = []
    for corpus, part, question in (("ceval", "val", "question"), ("cmmlu", "dev", "Question")):
        for path in sorted((real_data / corpus / part).glob("*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                items += [(corpus, "\n".join(row[key] for key in (question, *"ABCD"))) for row in rows]
    for corpus, path, column in (
        ("cola", "cola/dev.tsv", 3),
        ("csl", "csl/ts/dev.tsv", 1),
        ("csl", "csl/kg/dev.tsv", 1),
    ):
        lines = (real_data / path).read_text(encoding="utf-8").splitlines()
        items += [(corpus, line.split("\t")[column]) for line in lines]
    return items


@pytest.fixture(scope="module")
def of_real_items(real_items):
    return Contamination(real_items)


def other_marks(text):
    return "".join({"，": " , ", "。": " .\n", "（": "(", "）": ")", " ": "  "}.get(c, c) for c in text).upper()


@pytest.mark.parametrize("change", [str, other_marks], ids=["verbatim", "other_marks"])
def test_planted_items_are_found(of_real_items, real_items, change):
    lengths = np.diff(units([text for _, text in real_items])[1])
    planted = [[f"请看材料。\n{change(text)}\n请总结以上内容。", "好的。"] for _, text in real_items]
    found = of_real_items.hits(planted) >= 0
    for corpus in of_real_items.corpora:
        long = (lengths >= 13) & np.array([name == corpus for name, _ in real_items])
        assert found[long].mean() >= 0.99
        short = (lengths >= 6) & (lengths < 13) & np.array([name == corpus for name, _ in real_items])
        assert not short.any() or found[short].mean() >= 0.85


def test_ordinary_rows_are_clean(of_real_items, real_data):
    rows = json.loads((real_data / "alpaca_chinese_carbonz0" / "zh-data-part-00.json").read_text(encoding="utf-8"))
    texts = [[row["instruction"], row["input"], row["output"]] for row in rows]
    lines = (real_data / "belle_school_math" / "dev1K.json").read_text(encoding="utf-8").splitlines()
    texts += [[row["instruction"], row["output"]] for row in map(json.loads, lines)]
    assert (of_real_items.hits(texts) >= 0).mean() < 0.002
