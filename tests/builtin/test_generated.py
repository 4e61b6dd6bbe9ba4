"""The rows that were composed from templates: schemas, computed answers, forms of verses, both sides of translations."""

import csv
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gemma_keras import builtin
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.sources import locate, read_corpus

NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(rf"((?:[（]?{NUMBER}[）]?[＋－×÷])+[（]?{NUMBER}[）]?)＝({NUMBER})(?:余(\d+))?")
COUNT = 600  # rows of every corpus of one task
FILES = {
    "news_commentary": "news_commentary/generated.jsonl",
    "hc3_chinese": "hc3_chinese/generated.jsonl",
    "firefly": "firefly/generated.jsonl",
    "chinese_modern_poetry": "chinese_modern_poetry/generated.jsonl",
    "chinese_poetry": "chinese_poetry/generated.json",
    "classical_modern": "classical_modern/generated.jsonl",
    "dpo_en_zh_20k": "dpo_en_zh_20k/generated.json",
    "csl": "csl/ts/train.tsv",
}
KEYS = {
    "news_commentary": {"translation"},
    "hc3_chinese": {"question", "human_answers", "chatgpt_answers"},
    "firefly": {"kind", "input", "target"},
    "chinese_modern_poetry": {"uuid", "prompt", "response"},
    "chinese_poetry": {"context", "instruction", "response"},
    "classical_modern": {"inputs", "truth"},
    "dpo_en_zh_20k": {"conversations", "chosen", "rejected"},
}
FORMS = {"五言绝句": (5, 4), "七言绝句": (7, 4), "五言律诗": (5, 8), "七言律诗": (7, 8)}
SUBJECTS = ("arithmetic", "antonyms", "provinces", "idioms")


@pytest.fixture(scope="module")
def made() -> dict[str, list]:
    return {corpus: read(builtin.CORPUS / name) for corpus, name in FILES.items()}


@pytest.fixture(scope="module")
def chat() -> list[dict[str, str]]:
    return [row for name in ("belle", "alpaca_gpt4_zh") for row in read(builtin.CORPUS / name / "generated.json")]


def read(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".tsv":
        return [line.split("\t") for line in text.splitlines()]
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def read_exam(split: str, subject: str) -> list[dict[str, str]]:
    path = builtin.CORPUS / "ceval" / split / f"{subject}_{split}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def value(expression: str) -> Fraction:
    """Evaluate a sum in Chinese notation, by Python's own arithmetic on exact fractions."""
    exact = re.sub(NUMBER, lambda match: f"Fraction('{match[0]}')", expression)
    return eval(exact.translate(str.maketrans("＋－×÷（）", "+-*/()")), {"Fraction": Fraction})


def wrong_equations(text: str) -> list[str]:
    wrong = []
    for expression, result, rest in EQUATION.findall(text):
        if expression.count("（") != expression.count("）"):
            expression = expression.strip("（）")
        if rest:
            a, b = map(int, expression.split("÷"))
            right = divmod(a, b) == (int(result), int(rest))
        else:
            right = value(expression) == Fraction(result)
        if not right:
            wrong.append(f"{expression}＝{result}")
    return wrong


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in (value.values() if isinstance(value, dict) else value) for text in strings(item)]


def test_the_check_of_equations_finds_mistakes() -> None:
    assert wrong_equations("先算2＋3×4＝14，再算（8＋5）×2＝26，17÷5＝3余2，0.5×3＝1.5") == []
    assert wrong_equations("2＋3＝6") and wrong_equations("17÷5＝3余1") and wrong_equations("（8＋5）×2＝27")


def test_equations_of_all_text_are_right() -> None:
    found = 0
    for path in sorted(builtin.CORPUS.rglob("*.*")):
        text = path.read_text(encoding="utf-8")
        assert wrong_equations(text) == [], path
        found += len(EQUATION.findall(text))
    assert found > 300


def test_chat_rows_differ_and_no_slot_is_left_open(chat: list[dict[str, str]]) -> None:
    assert len({(row["instruction"], row["input"]) for row in chat}) == len(chat) == 1500
    documents = (builtin.CORPUS / "cluecorpussmall/generated.txt").read_text(encoding="utf-8").splitlines()
    for line in [*documents, *(row["output"] for row in chat), *(row["input"] for row in chat)]:
        assert not re.search(r"[{}_]|。。|，，|；。|，。|”。”", line.replace("def ", "")), line
        assert line == line.strip()


@pytest.mark.parametrize("corpus", FILES)
def test_volume_schema_and_clean_text(corpus: str, made: dict[str, list]) -> None:
    rows = made[corpus]
    assert len({json.dumps(row, ensure_ascii=False) for row in rows}) == len(rows) == COUNT
    for row in rows:
        assert set(row) == KEYS[corpus] if corpus in KEYS else len(row) == 3
        for text in strings(row):
            assert text and text == text.strip(), row
            assert not re.search(r"\{[a-z]|[|\t]|。。|，，|；。|，。|：。|”。”", text), row


def test_news_are_english_and_chinese_of_each_other(made: dict[str, list]) -> None:
    for row in made["news_commentary"]:
        english, chinese = row["translation"]["en"], row["translation"]["zh"]
        assert english.isascii() and english[0] == english[0].upper() and english.endswith(".")
        assert chinese.endswith("。") and not re.search("[A-Za-z]", chinese)
        assert re.findall(r"([\d.]+) percent", english) == re.findall(r"([\d.]+)%", chinese), row


def test_classical_sentences_differ_from_their_wording(made: dict[str, list]) -> None:
    assert all(
        row["inputs"] != row["truth"] and len(row["inputs"]) <= len(row["truth"]) for row in made["classical_modern"]
    )


def test_stories_name_what_the_request_names(made: dict[str, list]) -> None:
    stories = [row for row in made["firefly"] if row["kind"] == "StoryGeneration"]
    assert 0.75 * COUNT < len(stories) < COUNT
    for row in stories:
        assert 120 <= len(row["target"]) <= 300
        asked = re.fullmatch("主人公：(.+)；愿望：.+；帮手：(.+)", row["input"])
        assert not asked or (asked[1] in row["target"] and asked[2] in row["target"])
        opening = row["input"].partition("故事的开头是：")[2]
        assert row["target"].startswith(opening)


def test_modern_poems_have_6_to_14_lines_and_the_images_asked_for(made: dict[str, list]) -> None:
    for row in made["chinese_modern_poetry"]:
        assert 6 <= len(list(filter(None, row["response"].split("\n")))) <= 14
        for image in re.findall("“(.+?)”", row["prompt"]):
            assert image in row["response"], row


def test_classical_verses_keep_their_form(made: dict[str, list]) -> None:
    for row in made["chinese_poetry"]:
        width, count = FORMS[row["instruction"]]
        clauses = re.findall(r"\w+", row["response"])
        assert [len(clause) for clause in clauses] == [width] * count, row
        assert row["response"].count("\n") == count // 2 - 1
        assert len(set("".join(clauses))) == width * count, row


def test_preferences_end_with_a_question_and_differ(made: dict[str, list]) -> None:
    for row in made["dpo_en_zh_20k"]:
        assert [turn["from"] for turn in row["conversations"]] in (["human"], ["human", "gpt", "human"])
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
        assert row["chosen"]["value"] != row["rejected"]["value"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_exams(subject: str) -> None:
    dev, val = read_exam("dev", subject), read_exam("val", subject)
    assert (len(dev), len(val)) == (5, 50)
    assert [*dev[0]] == [*val[0], "explanation"] == ["id", "question", *"ABCD", "answer", "explanation"]
    assert [row["id"] for row in val] == [str(i) for i in range(50)]
    assert len({row["question"] + row[row["answer"]] for row in dev + val}) == 55
    assert {row["answer"] for row in val} == set("ABCD")
    assert all(len({row[letter] for letter in "ABCD"}) == 4 for row in dev + val)
    for row in dev:
        assert row["explanation"].endswith(f"所以选{row['answer']}。")
        assert subject != "arithmetic" or row[row["answer"]] == re.findall(r"\d+", row["explanation"])[-1]


@pytest.mark.parametrize("corpus", [*FILES, "ceval"])
def test_the_readers_of_the_real_corpora_take_every_row(corpus: str) -> None:
    config = CorpusConfig(name=corpus)
    found = list(read_corpus(locate(config, builtin.CORPUS)))
    assert not [row for row in found if row.quarantined]
    assert {row.skipped for row in found} <= {"", None, "other_kind"}
    assert sum(len(row.records) for row in found) >= (220 if corpus == "ceval" else 450)
