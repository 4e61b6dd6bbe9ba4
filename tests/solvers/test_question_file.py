"""Questions one a line, or as JSON lines."""

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.solvers.question_file import Asked, parse_questions, read_questions
from gemma_keras.solvers.trace import Question


def test_one_question_a_line():
    assert parse_questions("一？\r\n\n  二 {x}？ \n", "here") == [Asked(Question("一？")), Asked(Question("二 {x}？"))]


def test_json_lines():
    text = (
        '\n{"question": "2 加 2？", "choices": ["3", "4"], "answer": "B", "id": 7}\n\n{"question": "q", "other": 1}\n'
    )
    assert parse_questions(text, "here") == [
        Asked(Question("2 加 2？", ("3", "4"), "7"), "B"),
        Asked(Question("q")),
    ]
    assert parse_questions('{"question": "\\ud800", "answer": 14}', "here") == [Asked(Question("?"), "14")]
    halves = '{"question": "a", "choices": ["\\ud800b", "\\ud83d\\ude00"]}'
    assert parse_questions(halves, "here") == [Asked(Question("a", ("?b", "😀")))]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "here holds no question; write one a line"),
        (" \n\n", "here holds no question"),
        ('{"question": "a"}\nb', "line 2 of here is no JSON"),
        ('{"question": "a"}\n[1]', "line 2 of here is a list"),
        ('{"text": "a"}', "line 1 of here has no question; give an object such as"),
        ('{"question": " "}', "has no question"),
        ('{"question": ["a"]}', "has a list as its question"),
        ('{"question": true}', "has a bool as its question"),
        ('{"question": "a", "choices": "xy"}', "has choices that are no list of two or more texts"),
        ('{"question": "a", "choices": ["x"]}', "has choices that are no list"),
        ('{"question": "a", "choices": ["x", 1]}', "has choices that are no list"),
        ('{"question": "a", "choices": ["x", "y"], "answer": "C"}', "has the answer 'C'; for a question with choices"),
        ('{"question": "a", "choices": ["x", "y"], "answer": "x"}', "has the answer 'x'"),
        ('{"question": "a", "choices": ["' + '", "'.join("abcdefghijk") + '"]}', "has 11 choices; give at most 10"),
    ],
)
def test_mistakes(text, sentence):
    with pytest.raises(UserError) as error:
        parse_questions(text, "here")
    assert sentence in str(error.value)


def test_files(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("一？\n二？", encoding="utf-8-sig")
    assert [asked.question.text for asked in read_questions(str(path))] == ["一？", "二？"]
    path.write_bytes("一？".encode("gbk"))
    with pytest.raises(UserError, match=r"solver.input=.*questions.txt is no UTF-8 text"):
        read_questions(str(path))
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be read"):
            read_questions(str(missing))
