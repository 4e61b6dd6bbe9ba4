import json

import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, SkippedRow
from gemma_keras.data.sources import SOURCES, locate, read_corpus, texts
from tests.data.sources.hostile import reads_anything

PARTS = [
    {"行号": 1, "是否重复": False, "是否跨文件重复": False, "md5": "a", "内容": "甲"},
    {"行号": 2, "是否重复": True, "是否跨文件重复": False, "md5": "a", "内容": "甲"},
    {"行号": 3, "是否重复": False, "是否跨文件重复": True, "md5": "b", "内容": "乙"},
]

# name, a raw row, its documents
SOUND = [
    ("zh_wiki", {"text": "题\n\n文\n"}, ["题\n\n文"]),
    ("zh_wiki", {"id": "1", "url": "u", "title": "题", "text": "文"}, ["文"]),
    ("zh_wiki", {"title": "题", "paragraphs": [{"context": "一", "qas": []}, {"context": "二"}]}, ["一", "二"]),
    ("cluecorpussmall", {"text": "文"}, ["文"]),
    ("cluecorpussmall", {"news_id": "1", "title": "题", "content": "文"}, ["文"]),
    ("mnbvc", {"文件名": "a.txt", "段落数": 3, "段落": PARTS}, ["甲\n乙"]),
    ("mnbvc", {"text": json.dumps(PARTS, ensure_ascii=False), "meta": "{}"}, ["甲\n乙"]),
    ("mnbvc", {"id": 1, "问": "为何？", "答": "因为。", "来源": "某处", "元数据": {}}, ["为何？\n因为。"]),
    ("mnbvc", {"text": "[注] 文"}, ["[注] 文"]),
    ("zhihu", {"INSTRUCTION": "为何？", "RESPONSE": "因为。", "SOURCE": "Zhihu", "METADATA": "{}"}, ["为何？\n因为。"]),
    ("zhihu", {"INSTRUCTION": "为何？", "RESPONSE": None}, ["为何？"]),
    ("zhihu", {"问": "为何？", "答": "因为。"}, ["为何？\n因为。"]),
    ("classical_raw_text", {"text": "学而时习之。\n"}, ["学而时习之。"]),
    ("plain_text", {"text": "文"}, ["文"]),
    ("text", {"content": "文"}, ["文"]),
]


@pytest.mark.parametrize(("name", "row", "documents"), SOUND)
def test_a_sound_row(name, row, documents):
    records = SOURCES[name].read(row)
    assert [record.text for record in records] == documents
    assert {record.type for record in records} == {SOURCES[name].type}


def test_every_entry_has_a_sound_row_and_says_its_schema():
    assert {source.name for source in texts.SOURCES} == {name for name, *_ in SOUND}
    assert all(source.schema and source.licence for source in texts.SOURCES)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("zh_wiki", {"paragraphs": "x"}),
        ("zh_wiki", {"paragraphs": [{}]}),
        ("mnbvc", {"段落": [{"行号": 1}]}),
        ("mnbvc", {"text": '[{"行号": 1, '}),
        ("mnbvc", {"问": "x"}),
        ("zhihu", {"INSTRUCTION": 1}),
        ("text", {}),
        ("plain_text", {"text": 1}),
    ],
)
def test_bad_rows(name, row):
    with pytest.raises(BadRow, match="."):
        SOURCES[name].read(row)


def test_a_file_of_repeated_paragraphs_is_empty():
    with pytest.raises(SkippedRow, match="empty"):
        SOURCES["mnbvc"].read({"段落": PARTS[1:2]})


@pytest.mark.parametrize(("name", "count"), [("plain_text", 1), ("classical_raw_text", 1), ("text", 2)])
def test_a_text_file_is_a_document_or_a_line_each(tmp_path, name, count):
    (tmp_path / name).mkdir()
    (tmp_path / name / "text.txt").write_text("一\n\n二\n", encoding="utf-8")
    corpus = CorpusConfig(name=name)
    assert len(list(read_corpus(locate(corpus, tmp_path)))) == count


@pytest.mark.parametrize("source", texts.SOURCES, ids=lambda source: source.name)
def test_no_row_breaks_the_reading(source):
    reads_anything(source, [row for name, row, *_ in SOUND if name == source.name])


# rows and documents
REAL = {
    "zh_wiki": (1511, 2688), "cluecorpussmall": (2200, 2200), "plain_text": (274, 274), "classical_raw_text": (431, 431)
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    corpus = CorpusConfig(name=name)
    read = list(read_corpus(locate(corpus, real_data)))
    assert (sum(row.rows for row in read), sum(len(row.records) for row in read)) == REAL[name]
    assert not [row for row in read if row.skipped or row.quarantined]
