from collections import Counter

import pytest

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.records import BadRow, ChoiceRecord, SkippedRow
from gemma_keras.data.sources import SOURCES, exams, locate, read_corpus
from gemma_keras.data.sources.base import FILE
from gemma_keras.text.templates import GIVEN
from tests.data.sources.hostile import reads_anything

OPTIONS = {"A": "甲", "B": "乙", "C": "丙", "D": "丁"}
EXAM = {"id": "0", "question": "题"} | OPTIONS
QQP = {"id": "1", "qid1": "2", "qid2": "3", "question1": "Why?", "question2": "How?", "is_duplicate": "0"}
COLA = {"source": "gj04", "label": "1", "mark": "", "sentence": "He ran."}

ROWS = {
    "ceval": [EXAM | {"answer": "B", "explanation": "因为", FILE: "ceval/dev/law_dev.csv"}],
    "cmmlu": [{"": "0", "Question": "题", "Answer": "B", FILE: "cmmlu/test/law.csv"} | OPTIONS],
    "qqp": [QQP, {"text_a": "Why?", "text_b": "How?", "label": "0"}],
    "cola": [COLA],
}


@pytest.mark.parametrize(
    ("name", "row", "subject", "answer"),
    [
        ("ceval", EXAM | {"answer": "B", "explanation": "因为", FILE: "x/dev/law_dev.csv"}, "law", "B"),
        ("ceval", EXAM | {"answer": "b ", FILE: "civil_servant_val.csv.gz"}, "civil_servant", "B"),
        ("ceval", EXAM | {FILE: "ceval/test/law_test.csv"}, "law", ""),
        ("ceval", EXAM | {FILE: "hub:ceval/ceval-exam:law"}, "law", ""),
        ("ceval", EXAM, "", ""),
        ("cmmlu", {"": "0", "Question": "题", "Answer": "D", FILE: "cmmlu/test/food_science.csv"} | OPTIONS,
         "food_science", "D"),
    ],
)  # fmt: skip
def test_a_question(name, row, subject, answer):
    assert SOURCES[name].read(row) == [
        ChoiceRecord(
            question="题",
            choices=["甲", "乙", "丙", "丁"],
            answer=answer,
            subject=subject,
        )
    ]


@pytest.mark.parametrize(
    ("name", "row", "given", "label"),
    [
        ("qqp", QQP, "Question 1: Why?\nQuestion 2: How?", "0"),
        ("qqp", {"text_a": "Why? ", "text_b": "How?", "label": "1"}, "Question 1: Why?\nQuestion 2: How?", "1"),
        ("cola", COLA, "He ran.", "1"),
        ("cola", {"sentence": "He ran.", "label": 0, "idx": 1}, "He ran.", "0"),
    ],
)
def test_a_row_of_glue(name, row, given, label):
    (record,) = SOURCES[name].read(row)
    asked, answered = (turn["content"] for turn in record.messages)
    assert asked.split(GIVEN)[1:] == [given] and answered == label and record.type == "classification"


@pytest.mark.parametrize(("name", "row"), [("qqp", QQP | {"is_duplicate": ""}), ("cola", COLA | {"label": -1})])
def test_rows_without_a_label_are_skipped(name, row):
    with pytest.raises(SkippedRow, match="no_label"):
        SOURCES[name].read(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("ceval", {"question": "题", "A": "甲"}),
        ("cmmlu", {"Question": "题", FILE: 1} | OPTIONS),
        ("qqp", QQP | {"is_duplicate": "2"}),
        ("qqp", QQP | {"label": True}),
        ("qqp", {"question1": "x", "is_duplicate": "1"}),
        ("cola", COLA | {"label": "*"}),
        ("cola", {"label": "1"}),
    ],
)
def test_bad_rows(name, row):
    with pytest.raises(BadRow, match="."):
        SOURCES[name].read(row)


def test_every_entry_says_its_schema():
    assert {source.name for source in exams.SOURCES} == set(ROWS)
    assert all(source.schema and source.licence for source in exams.SOURCES)


def test_the_file_gives_the_subject(tmp_path):
    (tmp_path / "ceval" / "val").mkdir(parents=True)
    (tmp_path / "ceval" / "val" / "law_val.csv").write_text(
        "id,question,A,B,C,D,answer\n0,题,甲,乙,丙,丁,C\n1,题,甲,乙,丙,丁,E\n"
    )
    corpus = CorpusConfig(name="ceval")
    good, bad = read_corpus(locate(corpus, tmp_path))
    (record,) = good.records
    assert (record.subject, record.answer) == ("law", "C")
    assert "'E'" in bad.quarantined


@pytest.mark.parametrize("source", exams.SOURCES, ids=lambda source: source.name)
def test_no_row_breaks_the_reading(source):
    reads_anything(source, ROWS[source.name])


# rows, usable, records by split
REAL = {
    "ceval": (13948, 13948, {"dev": 260, "val": 1346, "test": 12342}),
    "cmmlu": (11917, 11917, {"dev": 335, "test": 11582}),
    "qqp": (6256, 6256, {"": 6256}),
    "cola": (8091, 8090, {"": 8090}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_slices_are_read_whole(real_data, name):
    rows, usable, splits = REAL[name]
    corpus = CorpusConfig(name=name)
    read = list(read_corpus(locate(corpus, real_data)))
    assert (sum(row.rows for row in read), sum(bool(row.records) for row in read)) == (rows, usable)
    records = [record for row in read for record in row.records]
    exam = name in ("ceval", "cmmlu")
    folders = [record.parent.split("/")[2] if exam else "" for record in records]
    assert Counter(folders) == splits
    if exam:
        assert len({record.subject for record in records}) == {"ceval": 52, "cmmlu": 67}[name]
        assert all(record.answer or (name, folder) == ("ceval", "test") for record, folder in zip(records, folders))
    # The one file that CoLA's carrier left empty.
    assert [row.file for row in read if row.quarantined] == ["cola/val.tsv"] * (name == "cola")
