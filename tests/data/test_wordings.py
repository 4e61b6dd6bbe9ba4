import re

import pytest

from gemma_keras.data.mixing.wordings import WORDINGS, reword

MESSAGES = [
    {"role": "system", "content": "你是助手。"},
    {"role": "user", "content": "摘要 {text}\n{0} %s"},
    {"role": "model", "content": "其一_{body}_其二"},
]
wordings = pytest.mark.parametrize("wording", WORDINGS)


def drawn(wording, draws):
    return [reword(MESSAGES, wording, draw) for draw in draws]


def bodies(wording):
    """The user's body, and the model's as it is written."""
    answer = MESSAGES[2]["content"]
    return MESSAGES[1]["content"], answer


@wordings
def test_the_draw_decides(wording):
    before = [dict(message) for message in MESSAGES]
    once, again = drawn(wording, range(50)), drawn(wording, range(50))
    assert once == again and before == MESSAGES
    assert drawn(wording, [2**64 + 3, -1, 2**64 - 1]) == drawn(wording, [3, 2**64 - 1, -1])


@wordings
def test_requests_differ(wording):
    rows = drawn(wording, range(2000))
    body, _ = bodies(wording)
    assert len({row[1]["content"].replace(body, "").strip() for row in rows}) > 1000
    assert len({row[2]["content"] for row in rows}) == len(set(WORDINGS[wording].answers))
    first = sum(row[1]["content"].startswith(body) for row in rows)
    assert 900 < first < 1100
    bare = sum(row[2]["content"] == bodies(wording)[1] for row in rows)
    assert 600 < bare < 1200


@wordings
def test_bodies_stay_as_they_are(wording):
    question, answer = bodies(wording)
    for row in drawn(wording, range(500)):
        assert row[0] == MESSAGES[0]
        assert [message["role"] for message in row] == ["system", "user", "model"]
        assert row[1]["content"].count(question) == row[2]["content"].count(answer) == 1


@wordings
def test_requests_are_whole_sentences(wording):
    """No slot is left, and the sentence ends as its place asks for."""
    question, answer = bodies(wording)
    for row in drawn(wording, range(2000)):
        request, said = row[1]["content"].replace(question, ""), row[2]["content"].replace(answer, "")
        assert not re.search("[{}_ ]", request + said)
        assert "这" in request
        if row[1]["content"].startswith(question):
            assert re.fullmatch(r"\n\n?[^\n：]+[。？]", request) and "下" not in request
        else:
            assert re.fullmatch(r"[^\n。]+[：？]\n\n?", request) and "上" not in request


@wordings
def test_every_word_is_used(wording):
    requests = "".join(row[1]["content"] for row in drawn(wording, range(3000)))
    tables = WORDINGS[wording]
    slots = set(re.findall(r"\{(\w+)\}", "".join(tables.tasks + tables.questions))) - {"text"}
    assert slots == set(tables.words)
    assert all(word in requests for words in (*tables.words.values(), tables.nouns) for word in words)
