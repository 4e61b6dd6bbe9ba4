"""Corpora that models are judged by: multiple-choice exams, and two tasks of GLUE."""

import re
from functools import partial

from gemma_keras.data.cleaning.rules import contents
from gemma_keras.data.records import BadRow, ChoiceRecord, Record, SkippedRow
from gemma_keras.data.sources.base import FILE, Corpus, Row, answer, optional_text, text
from gemma_keras.text.templates import GIVEN


def _choice(row: Row) -> list[Record]:
    return [
        ChoiceRecord(
            question=text(row, "question", "Question"),
            choices=[text(row, letter) for letter in "ABCD"],
            answer=optional_text(row, "answer", "Answer").strip().upper(),
            subject=_subject(optional_text(row, FILE)),
        )
    ]


def _subject(file: str) -> str:
    """Of a file such as `val/law_val.csv` (C-Eval) or `test/law.csv` (CMMLU); of a hub id, its subset."""
    name = re.split("[:/]", file)[-1].split(".")[0]
    return re.sub("_(dev|val|test)$", "", name)


GLUE_INSTRUCTIONS = {
    "qqp": "判断下面两个英文问题问的是不是同一件事：是就回答 1，不是就回答 0。",
    "cola": "判断下面这个英文句子是否合乎语法：合乎就回答 1，不合乎就回答 0。",
}


def glue_example(dataset: str, row: Row) -> tuple[str, str]:
    """Input and label, "1", "0" or "" where there is none, of a row of `GLUE_INSTRUCTIONS`' dataset.

    Raises:
        BadRow: a sentence is missing, or the label is something else.
    """
    if dataset == "qqp":
        first, second = text(row, "question1", "text_a"), text(row, "question2", "text_b")
        given = f"Question 1: {first.strip()}\nQuestion 2: {second.strip()}"
    else:
        given = text(row, "sentence").strip()
    label = row.get("is_duplicate") if row.get("label") is None else row["label"]
    # The hub has numbers, and -1 for the rows whose labels are kept secret.
    shown = "" if label is None or label == -1 else str(label).strip()
    if isinstance(label, bool) or shown not in ("", "0", "1"):
        raise BadRow(f"label is {shown[:20]!r}, neither 0 nor 1")
    return given, shown


def _glue(dataset: str, row: Row) -> list[Record]:
    given, label = glue_example(dataset, row)
    if not label:
        raise SkippedRow("no_label")
    return answer(GLUE_INSTRUCTIONS[dataset] + GIVEN + given, label, "classification")


def _whole_question(record: Record) -> list[str]:
    """A question with its options: alone it is often a phrase that many exams share."""
    return ["\n".join(contents(record))]


_PAIR_LABEL = re.compile(r"^Question [12]: ", re.MULTILINE)


def _sentences(record: Record) -> list[str]:
    """The sentences that are judged, without what we say around them."""
    given = contents(record)[0].partition(GIVEN)[2]
    return _PAIR_LABEL.sub("", given).split("\n")


COLA_COLUMNS = ("source", "label", "mark", "sentence")

SOURCES: tuple[Corpus, ...] = (
    Corpus(
        name="ceval", read=_choice, type="multiple_choice", hub_id="ceval/ceval-exam", licence="CC BY-NC-SA 4.0",
        schema="<split>/<subject>_<split>.csv: id, question, A, B, C, D, answer (dev, val), explanation (dev)",
        names_file=True, bodies=_whole_question,
    ),
    Corpus(
        name="cmmlu", read=_choice, type="multiple_choice", hub_id="haonan-li/cmmlu", licence="CC BY-NC-SA 4.0",
        schema="<split>/<subject>.csv: (number), Question, A, B, C, D, Answer", names_file=True,
        bodies=_whole_question,
    ),
    Corpus(
        name="qqp", read=partial(_glue, "qqp"), type="classification", hub_id="nyu-mll/glue:qqp",
        licence="Quora's terms, non-commercial", schema="question1, question2, is_duplicate; or text_a, text_b, label",
        bodies=_sentences,
    ),
    Corpus(
        name="cola", read=partial(_glue, "cola"), type="classification", hub_id="nyu-mll/glue:cola", columns=COLA_COLUMNS,
        schema="without header: source, label, mark, sentence", bodies=_sentences,
    ),
)  # fmt: skip
