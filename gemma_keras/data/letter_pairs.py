"""Preference pairs from a model's own answers to multiple-choice questions: just the letter is better than any sentence.

Such pairs teach the form of the answer and nothing else: the preferred letter is the one that the model chose itself,
whether it is right or wrong.
"""

import math
import re

import numpy as np

from gemma_keras.data.records import ChoiceRecord, PreferenceRecord, SkippedRow
from gemma_keras.text.templates import Message

LETTERS = "ABCDEFGHIJ"

SYSTEM = "你在答单项选择题。只写出所选选项的字母，不写理由，也不写别的内容。"


def letter_prompt(question: ChoiceRecord) -> list[Message]:
    """System and user turns that show a question with its options and ask for the letter alone."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    asked = "\n".join([f"题目：{question.question}", *options, "请只回答一个字母："])
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def extract_letter(reply: str, letters: str = "ABCD") -> str:
    """The first of `letters` that stands in a reply by itself, not within a Latin word; empty if there is none.

    >>> extract_letter("Answer: 应选 B，而不是 A。")
    'B'
    """
    found = re.search(rf"(?<![A-Za-z])[{letters}](?![A-Za-z])", reply)
    return found[0] if found else ""


def letter_pair(question: ChoiceRecord, reply: str) -> PreferenceRecord:
    """The letter in a model's reply, preferred to the reply.

    Raises:
        SkippedRow: the reply is a letter already, or holds none.
    """
    letters = LETTERS[: len(question.choices)]
    letter = extract_letter(reply, letters)
    if not letter:
        raise SkippedRow("no_letter")
    if reply.strip() == letter:
        raise SkippedRow("already_a_letter")
    return PreferenceRecord(prompt=letter_prompt(question), chosen=letter, rejected=reply)


def stratified_split(subjects: list[str], share: float, seed: int) -> np.ndarray:
    """Draws a share of each subject's rows for validation: rounded down, but at least one.

    Args:
        subjects: of the rows, n of them.
        share: between 0 and 1, such as 0.2.

    Returns:
        bool[n], True for validation; the same for the same arguments.
    """
    random = np.random.default_rng(seed)
    names = np.array(subjects, dtype=object)
    validation = np.zeros(len(subjects), dtype=bool)
    for subject in sorted(set(subjects)):
        rows = np.flatnonzero(names == subject)
        # The small addend keeps products such as 0.29 · 100 from falling below their whole number.
        count = max(1, math.floor(share * len(rows) + 1e-9))
        validation[random.permutation(rows)[:count]] = True
    return validation
