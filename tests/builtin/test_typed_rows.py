"""Generated rows of one task each: schemas, volume, forms of verses, right answers, both sides of translations."""

import csv
import json
import random
import re
from pathlib import Path

import pytest

from gemma_keras import builtin
from gemma_keras.builtin import exams, lists, preferences, typed_rows, verses
from gemma_keras.builtin.tables import table
from gemma_keras.config.schema import CorpusConfig
from gemma_keras.data.sources import locate, read_corpus

COUNT = 2000
KEYS = {
    "news_commentary": {"translation"},
    "hc3_chinese": {"question", "human_answers", "chatgpt_answers"},
    "firefly": {"kind", "input", "target"},
    "chinese_modern_poetry": {"prompt", "response"},
    "chinese_poetry": {"context", "instruction", "response"},
    "classical_modern": {"inputs", "truth"},
    "dpo_en_zh_20k": {"conversations", "chosen", "rejected"},
}


@pytest.fixture(scope="module")
def made() -> dict[str, list]:
    return {corpus: typed_rows.rows(corpus, COUNT, seed=3) for corpus in typed_rows.MAKERS}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.data_root(tmp_path_factory.mktemp("root"), chat_rows=10, text_bytes=5_000)


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in (value.values() if isinstance(value, dict) else value) for text in strings(item)]


@pytest.mark.parametrize("corpus", typed_rows.MAKERS)
def test_volume_schema_and_clean_text(corpus: str, made: dict[str, list]) -> None:
    rows = made[corpus]
    assert len({json.dumps(row, ensure_ascii=False) for row in rows}) == COUNT
    for row in rows:
        assert set(row) == KEYS[corpus] if corpus in KEYS else len(row) == 3
        for text in strings(row):
            assert text and text == text.strip(), row
            assert not re.search(r"\{[a-z]|[|\t]|。。|，，|；。|，。|：。|”。”", text), row


def test_same_seed_same_rows_and_another_seed_others() -> None:
    for corpus in typed_rows.MAKERS:
        first = typed_rows.rows(corpus, 50, seed=0)
        assert first == typed_rows.rows(corpus, 50, seed=0)
        assert first[:20] != typed_rows.rows(corpus, 20, seed=1)


def test_more_rows_than_the_templates_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(typed_rows.MAKERS, "one", ("one.jsonl", lambda rng: {"same": "row"}))
    with pytest.raises(ValueError, match="2 different rows of one"):
        typed_rows.rows("one", 2, seed=0)


def test_every_side_of_an_alternative_has_the_same_slots() -> None:
    for name in ("news", "classical"):
        table = lists.lists(name)
        for alternatives in table.values():
            for sides in alternatives:
                assert len(sides) == 2 and all(sides), sides
                assert len({frozenset(lists.SLOT.findall(side)) for side in sides}) == 1, sides
                assert {match[0] for match in lists.SLOT.findall(sides[0])} <= set(table), sides


def test_slots_of_one_symbol_differ_and_keep_their_value() -> None:
    words = {"town": (("one",), ("two",))}
    for seed in range(20):
        (text,) = lists.fill(("{town} {town2} {town}",), random.Random(seed), words, {})
        first, second, third = text.split()
        assert first == third != second


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
    images = {sides[0] for (setting, *_) in lists.lists("free_verse")["settings"] for sides in _images(setting)}
    for row in made["chinese_modern_poetry"]:
        assert 6 <= len(list(filter(None, row["response"].split("\n")))) <= 14
        listed = max(re.findall(r"[\w、]+", row["prompt"]), key=lambda part: part.count("、"))
        quoted = re.findall("“(.+?)”", row["prompt"])
        for image in quoted or [part for part in re.split("、", listed) if part in images]:
            assert image in row["response"], row


def _images(setting: str):
    return lists.lists("free_verse")[setting]


def test_classical_verses_keep_form_and_rhyme(made: dict[str, list]) -> None:
    symbols = lists.lists("verses")
    rhymes = {
        rhyme: {
            sides[0][-1] for name, found in symbols.items() if name[1:] == rhyme and name[0] != "s" for sides in found
        }
        for rhyme in lists.words("verses", "rhyme")
    }
    for row in made["chinese_poetry"]:
        width, count = verses.FORMS[row["instruction"]]
        clauses = re.findall(r"\w+", row["response"])
        assert [len(clause) for clause in clauses] == [width] * count, row
        assert row["response"].count("\n") == count // 2 - 1
        assert len(set("".join(clauses))) == width * count, row
        ends = {clause[-1] for clause in clauses[1::2]}
        assert any(ends <= rhyme for rhyme in rhymes.values()), row


def test_preferences_end_with_a_question_and_differ(made: dict[str, list]) -> None:
    for row in made["dpo_en_zh_20k"]:
        assert [turn["from"] for turn in row["conversations"]] in (["human"], ["human", "gpt", "human"])
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
        assert row["chosen"]["value"] != row["rejected"]["value"]


def test_rejected_sums_are_wrong_and_chosen_forms_are_right() -> None:
    rng = random.Random(4)
    for _ in range(300):
        _, chosen, rejected = preferences.wrong_sum(rng)
        assert re.findall(r"\d+", chosen)[-1] not in re.findall(r"\d+", rejected)
        _, chosen, rejected = preferences.number_only(rng)
        assert chosen.isdecimal() and chosen != rejected
        (asked,), chosen, rejected = preferences.counted(rng)
        count = "零一二三四五".index(re.findall("用(.)条", asked)[0])
        assert len(re.findall(r"(?m)^\d\. ", chosen)) == count != len(re.findall(r"(?m)^\d\. ", rejected))
        (asked,), chosen, _ = preferences.as_json(rng)
        found = json.loads(chosen)
        for place in found if isinstance(found, list) else [found]:
            assert place["名称"] in asked


@pytest.mark.parametrize("subject", exams.SUBJECTS)
@pytest.mark.parametrize("count", [55, 505])
def test_exam_answers_are_right(subject: str, count: int) -> None:
    pairs = {frozenset(row.values()) for row in table("antonyms")}
    meanings = {row["idiom"]: row["meaning"] for row in table("idioms")}
    places = [set(row.values()) for row in table("provinces")]
    rows = exams.questions(subject, count, seed=2)
    assert len({(row["question"], *sorted(row[letter] for letter in "ABCD")) for row in rows}) == count
    for row in rows:
        options = [row[letter] for letter in "ABCD"]
        right = row[row["answer"]]
        assert len(set(options)) == 4 and row["explanation"].endswith(f"所以选{row['answer']}。")
        quoted = re.findall("“(.+?)”", row["question"])
        if subject == "arithmetic":
            assert right == re.findall(r"\d+", row["explanation"])[-1]
        elif subject == "antonyms":
            fitting = [o for o in options if frozenset(o.split("——") if "——" in o else [*quoted, o]) in pairs]
            assert fitting == [right], row
        elif subject == "provinces":
            names = [o.split("——") if "——" in o else [o, *_named(row["question"], places)] for o in options]
            assert [o for o, name in zip(options, names) if any(set(name) <= place for place in places)] == [right], row
        elif "（）" in row["question"]:
            assert quoted[0].replace("（）", right) in meanings
        else:
            assert right in (meanings.get(quoted[0]), *(idiom for idiom, text in meanings.items() if text == quoted[0]))


def _named(question: str, places: list[set[str]]) -> list[str]:
    """The longest name of a table of provinces that a question mentions."""
    names = [name for place in places for name in place if name in question and name not in ("省", "自治区")]
    return [max(names, key=len)]


def test_files_of_a_data_root(root: Path) -> None:
    for corpus, (name, _) in typed_rows.MAKERS.items():
        text = (root / name).read_text(encoding="utf-8")
        rows = json.loads(text) if name.endswith(".json") else text.splitlines()
        assert len(rows) == 600, corpus
    for subject in exams.SUBJECTS:
        dev = _read_exam(root / "ceval" / "dev" / f"{subject}_dev.csv")
        val = _read_exam(root / "ceval" / "val" / f"{subject}_val.csv")
        assert (len(dev), len(val)) == (5, 50)
        assert [*dev[0]] == [*val[0], "explanation"] == ["id", "question", *"ABCD", "answer", "explanation"]
        assert [row["id"] for row in val] == [str(i) for i in range(50)]
        assert not {row["question"] + row[row["answer"]] for row in dev} & {
            row["question"] + row[row["answer"]] for row in val
        }
        assert {row["answer"] for row in val} == set("ABCD")


def _read_exam(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("corpus", [*typed_rows.MAKERS, "ceval"])
def test_the_readers_of_the_real_corpora_take_every_row(corpus: str, root: Path) -> None:
    config = CorpusConfig(name=corpus)
    found = list(read_corpus(config, locate(config, root)))
    assert not [row for row in found if row.quarantined]
    assert {row.skipped for row in found} <= {"", None, "other_kind"}
    assert sum(len(row.records) for row in found) >= (220 if corpus == "ceval" else 450)
