import json
from collections import Counter

import numpy as np
import pytest

from gemma_keras.data.letter_pairs import extract_letter, letter_pair, stratified_split
from gemma_keras.data.records import ChoiceRecord, SkippedRow, validate

QUESTION = ChoiceRecord(question="水在几度结冰？", choices=["0", "10", "20", "30"], answer="A", subject="physics")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("答案为 D。", "D"),
        ("选C", "C"),
        ("A. 0", "A"),
        ("Answer: 应选 B，而不是 A。", "B"),
        ("DNA 是遗传物质，所以选C", "C"),
        ("选 E", ""),
        ("无法确定", ""),
        ("", ""),
    ],
)
def test_letter_of_a_reply(reply, letter):
    assert extract_letter(reply) == letter


def test_the_letter_alone_is_preferred_to_the_answer_right_or_wrong():
    pair = letter_pair(QUESTION, "答案是 C. 20。")
    validate(pair)
    assert (pair.chosen, pair.rejected) == ("C", "答案是 C. 20。")
    assert [turn["role"] for turn in pair.prompt] == ["system", "user"]
    assert pair.prompt[1]["content"].startswith("题目：水在几度结冰？\nA. 0\nB. 10\nC. 20\nD. 30\n")


@pytest.mark.parametrize(
    ("reply", "rule"), [("B", "already_a_letter"), (" B\n", "already_a_letter"), ("?", "no_letter")]
)
def test_replies_that_make_no_pair(reply, rule):
    with pytest.raises(SkippedRow, match=rule):
        letter_pair(QUESTION, reply)


def test_only_letters_of_the_options_count():
    two = ChoiceRecord(question="对吗？", choices=["对", "错"], answer="A", subject="")
    assert letter_pair(two, "C 不在其中，选 B。").chosen == "B"


def test_split_takes_the_share_of_every_subject_and_at_least_one_row():
    subjects = ["law"] * 25 + ["art"] * 4 + ["logic"] + ["tax"] * 100
    validation = stratified_split(subjects, 0.2, seed=1)
    assert Counter(np.array(subjects)[validation]) == {"law": 5, "art": 1, "logic": 1, "tax": 20}
    assert stratified_split(["x"] * 100, 0.29, seed=1).sum() == 29
    assert np.array_equal(validation, stratified_split(subjects, 0.2, seed=1))
    assert not np.array_equal(validation, stratified_split(subjects, 0.2, seed=2))
    assert stratified_split([], 0.2, seed=1).shape == (0,)


def test_the_recipes_own_answers(real_data):
    """1,346 questions less 1 answered by a letter are split 1,107 / 238; the letters are those that the recipe found."""
    parts = [
        json.loads((real_data / "ceval_abcd_preference" / f"{part}_data.json").read_text(encoding="utf-8"))["data"]
        for part in ("train", "val")
    ]
    rows = [row for part in parts for row in part]
    assert [extract_letter(row["model_response"]) for row in rows] == [row["extracted"] for row in rows]
    subjects = [row["category"] for row in rows]
    validation = stratified_split(subjects, 0.2, seed=0)
    assert (int((~validation).sum()), int(validation.sum())) == (1107, 238)
    assert Counter(np.array(subjects)[validation]) == Counter(row["category"] for row in parts[1])
