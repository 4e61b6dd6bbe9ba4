"""Questions of files: one a line, JSON of several layouts, tables; their options and known answers."""

import gzip
import json
import os
import threading

import pyarrow
import pyarrow.parquet
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.solvers.question_file import parse_questions, read_questions
from gemma_keras.solvers.question_rows import Asked
from gemma_keras.solvers.trace import Question

SUM = Asked(Question("2 加 2？", ("3", "4"), "7"), "B")


@pytest.mark.parametrize(
    "text",
    [
        "question;other\n一？;x\n二 {x}？;\n",
        "一？\r\n\n  二 {x}？ \n",
        "\ufeff一？\n二 {x}？",
        '["一？", "二 {x}？"]',
        '[\n"一？",\n{"question": "二 {x}？"}]',
        '{"name": "set", "questions": ["一？", "二 {x}？"]}',
        '{"data": [{"Question": "一？"}, {"题目": "二 {x}？"}]}',
        '{"0": {"question": "一？"}, "1": {"question": "二 {x}？"}}',
        '{"question": "一？"}\r\n\n{"problem": "二 {x}？"}\n',
        '{"question": "一？"},\n{"question": "二 {x}？"},',
        "question,other\n一？,x\n二 {x}？,\n",
        'other\tquestion\n"x\t一？\n\t二 {x}？\n',
    ],
)
def test_the_layout_is_told_by_how_a_text_begins(text):
    assert parse_questions(text, "here") == [Asked(Question("一？")), Asked(Question("二 {x}？"))]


@pytest.mark.parametrize(
    "line",
    [
        "[1,2,3] 的平均数是多少？",
        '["a", "b"] 有几个元素？',
        "{1,2} 的子集有几个？",
        "{} 是什么？",
        "question",
        "a, question?",
        '"答案"？',
    ],
)
def test_sentences_are_no_json_and_no_table(line):
    assert parse_questions(f"{line}\n{line}", "here") == [Asked(Question(line))] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2 加 2？", "choices": ["3", "4"], "answer": "B", "id": 7},
        {"question": "2 加 2？", "options": [3, 4], "answer": " b", "id": "7"},
        {"Question": "2 加 2？", "A": "3", "B": "4", "C": "", "D": None, "Answer": "（Ｂ）", "Id": 7},
        {"问题": "2 加 2？", "选项A": 3, "选项B": 4, "答案": "B.", "id": 7},
        {"question": "2 加 2？", "option_a": "3", "option_b": "4", "answer": "4", "id": 7, "a": "x"},
        {"question": "2 加 2？", "choices": {"B": "4", "A": "3", "C": None}, "answer": "B", "id": 7},
        {"question": "2 加 2？", "choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answerKey": "2", "id": 7},
        {"question": "2 加 2？", "choices": ["A. 3", "B. 4"], "answer": "B. 4", "id": 7},
        {"question": "2 加 2？", "choices": '["3", "4"]', "answer": 4, "": 7},
    ],
)
def test_options_and_answers_as_files_have_them(row):
    assert parse_questions(json.dumps(row), "here") == [SUM]


def test_options_keep_what_is_no_letter_of_theirs():
    text = '{"question": "q", "A": "A型", "B": "", "C": "C. c"}\n{"question": "q", "choices": ["A、B", "B、C"]}'
    assert [asked.question.choices for asked in parse_questions(text, "here")] == [
        ("A型", "", "C. c"),
        ("A、B", "B、C"),
    ]


def test_questions_without_options():
    rows = '{"question": "一加一？", "answer": 2, "choices": []}\n{"question": "q", "answer": null, "A": "", "B": ""}'
    assert parse_questions(rows, "here") == [Asked(Question("一加一？"), "2"), Asked(Question("q"))]
    assert parse_questions('{"question": "\\ud800", "answer": 14}', "here") == [Asked(Question("?"), "14")]
    halves = '{"question": "a", "choices": ["\\ud800b", "\\ud83d\\ude00"], "answer": NaN}'
    assert parse_questions(halves, "here") == [Asked(Question("a", ("?b", "😀")))]


def numbered(choices: list, answers: list) -> str:
    return "\n".join(json.dumps({"question": "q", "choices": choices, "answer": answer}) for answer in answers)


@pytest.mark.parametrize(
    ("choices", "answers", "letters"),
    [
        (["x", "y", "z"], [0, 1, 2], "ABC"),
        (["x", "y", "z"], ["3", "1", "1"], "CAA"),
        (["x", "y", "z"], [0, "B", "z"], "ABC"),
        (["10", "20", "30"], ["20", "10", "C"], "BAC"),
        (["x", "y"], [1.0, 0.0], "BA"),
        (["0", "1", "2"], [0, 2], "AC"),  # texts and indices from 0 say the same
    ],
)
def test_numbers_for_answers(choices, answers, letters):
    assert "".join(asked.expected for asked in parse_questions(numbered(choices, answers), "here")) == letters


@pytest.mark.parametrize(
    ("choices", "answers", "sentence"),
    [
        (
            ["x", "y", "z"],
            [1, 2],
            "row 1 of here has the answer '1', and the numbers that here gives as answers may be",
        ),
        (["2", "3", "1"], [3, 1], "may be texts of choices, or count them from 0 or from 1; give letters"),
        (["x", "y"], [0, 1, 2], "are neither texts nor places of choices; give letters"),
        (
            ["x", "y"],
            [1, 5],
            "row 2 of here has the answer '5', and the numbers that here gives as answers are neither",
        ),
    ],
)
def test_numbers_that_may_mean_either(choices, answers, sentence):
    with pytest.raises(UserError) as error:
        parse_questions(numbered(choices, answers), "here")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "here holds no question; write one a line"),
        (" \n\n", "here holds no question"),
        ("[]", "here holds no question"),
        ('{"question": "a"}\nb', "row 2 of here cannot be read (no JSON: Expecting value"),
        ('{"question": "a"}\n[1]', "row 2 of here cannot be read (list, not an object)"),
        ('[{"question": "a"},\n {"question": "b"]', "row 2 of here cannot be read (no JSON: Expecting ',' delimiter"),
        ('{"question": "a",\n "answer": ', "row 1 of here cannot be read (no JSON: brackets or quotes are not closed)"),
        ('["a", 1]', "row 2 of here cannot be read (int, not an object)"),
        (
            '{"instruction": "a", "output": "b"}',
            "row 1 of here has no question but instruction, output; give objects such as",
        ),
        ('{"train": [{"question": "a"}], "test": []}', "has no question but train, test"),
        ('{"question": " "}', "has no question;"),
        ('{"question": ["a"]}', "has a list as its question"),
        ('{"question": true}', "has a bool as its question"),
        ('{"question": "a", "choices": "xy"}', "has choices that are no list of two or more texts"),
        ('{"question": "a", "choices": ["x"]}', "has choices that are no list"),
        ('{"question": "a", "A": "x", "B": ""}', "has choices that are no list"),
        ('{"question": "a", "choices": ["x", true]}', "has choices that are no list"),
        ('{"question": "a", "choices": {"text": ["x", "y"], "label": ["A"]}}', "has choices that are no list"),
        ('{"question": "a", "choices": ["x", "y"], "answer": "C"}', "has the answer 'C'; for a question with choices"),
        ('{"question": "a", "choices": ["x", "x"], "answer": "x"}', "has the answer 'x'; for a question with choices"),
        ('{"question": "a", "choices": ["' + '", "'.join("abcdefghijk") + '"]}', "has 11 choices; give at most 10"),
        ("question,A,B\nq,x\n", "line 2 of here has 2 fields for 3 columns"),
        ("question,answer\nq,a,b\n", "line 2 of here has 3 fields for 2 columns"),
        ('question,answer\n"q,a\n', "line 2 of here is no row of a table (unexpected end of data)"),
        ("question,answer\n", "here holds no question"),
    ],
)
def test_mistakes(text, sentence):
    with pytest.raises(UserError) as error:
        parse_questions(text, "here")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("suffix", "sentence"),
    [
        (".json", "row 1 of here cannot be read (no JSON: Expecting value"),
        (".jsonl", "row 1 of here cannot be read (no JSON: Expecting value"),
        (".csv", "here has no column called question, but begins with '一？'"),
        (".tsv", "here has no column called question, but begins with '一？'"),
    ],
)
def test_a_suffix_says_what_a_text_has_to_be(suffix, sentence):
    with pytest.raises(UserError) as error:
        parse_questions("一？\n二？", "here", suffix)
    assert sentence in str(error.value)
    assert parse_questions("一？\n二？", "here", ".md") == [Asked(Question("一？")), Asked(Question("二？"))]


CSV = 'id,question,A,B,answer\n7,2 加 2？,3,4,B\n\n8,"多行\n""问题"", 第二",x,y,A\n'
TABLE = [SUM, Asked(Question('多行\n"问题", 第二', ("x", "y"), "8"), "A")]


def test_files(tmp_path):
    path = tmp_path / "questions.txt"
    for encoding in ("utf-8-sig", "utf-16", "gb18030"):
        path.write_bytes("一？\n二？".encode(encoding))
        assert [asked.question.text for asked in read_questions(str(path))] == ["一？", "二？"]
    path.write_bytes("一？".encode() + b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"solver.input=.*questions.txt is no UTF-8 text"):
        read_questions(str(path))
    for missing in (tmp_path, tmp_path / "none", tmp_path / "none.parquet"):
        with pytest.raises(UserError, match="cannot be read"):
            read_questions(str(missing))


def test_files_by_their_suffixes(tmp_path):
    (tmp_path / "a.CSV").write_text(CSV, encoding="utf-8-sig")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    (tmp_path / "c.csv").write_bytes(CSV.replace("，", ",").encode("gb18030"))
    (tmp_path / "d.csv").write_text(CSV.replace(", 第二", "; 第二").replace(",", ";"), encoding="utf-8")
    for name in ("a.CSV", "b.csv.gz", "c.csv"):
        assert read_questions(str(tmp_path / name)) == TABLE
    assert read_questions(str(tmp_path / "d.csv"))[0] == SUM
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(CSV.encode())[:-9])
    with pytest.raises(UserError, match=r"b.csv.gz compressed data is cut or corrupt"):
        read_questions(str(tmp_path / "b.csv.gz"))
    (tmp_path / "e.jsonl").write_text('{"question": "一？"}\n{"question": "二？"}\n', encoding="utf-8-sig")
    assert [asked.question.text for asked in read_questions(str(tmp_path / "e.jsonl"))] == ["一？", "二？"]
    row = {"question": "2 加 2？", "choices": ["3", "4"], "answer": 1, "id": 7}
    table = pyarrow.Table.from_pylist([row, row | {"answer": 0}])
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    assert [asked.expected for asked in read_questions(str(tmp_path / "f.parquet"))] == ["B", "A"]
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"f.parquet cannot be read"):
        read_questions(str(tmp_path / "f.parquet"))


def test_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(CSV,), kwargs={"encoding": "utf-8"})
    writer.start()
    assert read_questions(str(path)) == TABLE
    writer.join()


@pytest.mark.parametrize(("files", "known"), [("ceval/val/*.csv", 1346), ("cmmlu/test/*.csv", 11582)])
def test_exams_as_they_are_published(real_data, files, known):
    asked = [one for path in sorted(real_data.glob(files)) for one in read_questions(str(path))]
    assert len(asked) == known
    assert all(len(one.question.choices) == 4 and one.expected in tuple("ABCD") and one.question.id for one in asked)
