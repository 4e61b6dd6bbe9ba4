"""Relations of rows stand in columns: whatever files are called, ids are read by people only."""

import json
from pathlib import Path

import datasets
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig, DataConfig
from gemma_keras.data.pipeline import PreparedSplit
from gemma_keras.data.prepare import prepare
from gemma_keras.data.records import SIDES

NAMES = ("part~1.jsonl", "part#1.jsonl", "part@1.jsonl", "chosen/a~2#3@4.jsonl")


def run(root: Path, tokenizer, out: Path, **settings):
    config = DataConfig(**{"root": str(root), "sequence_length": 64, **settings})
    return prepare(config, tokenizer, out, progress=lambda line: None)


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def load(out: Path, split: str = "train"):
    return datasets.load_from_disk(str(out / split))


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_file_with_such_a_name_stay_rows_of_their_own(tokenizer, tmp_path, name):
    rows = [{"instruction": f"第{i}问", "input": "", "output": f"答{i}"} for i in range(40)]
    write(tmp_path / "belle" / name, rows)
    corpora = (CorpusConfig(name="belle"),)
    run(tmp_path, tokenizer, tmp_path / "one", corpora=corpora)
    report = run(
        tmp_path, tokenizer, tmp_path / "two", corpora=corpora, earlier=(str(tmp_path / "one"),), validation_rows=4
    )
    assert report["corpora"]["belle"]["origin"] == "earlier stage"
    assert (report["rows_in"], report["records"], report["validation"]["records"]) == (40, 36, 4)
    drawn = {row_id for split in ("train", "valid") for row_id in load(tmp_path / "two", split)["id"]}
    assert drawn == set(load(tmp_path / "one")["id"])


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_of_a_translation_stay_together_in_such_a_file(tokenizer, tmp_path, name):
    pairs = [{"en": f"Number {i} is here.", "zh": f"第{i}号在这里。"} for i in range(40)]
    write(tmp_path / "news_commentary" / name, pairs)
    corpora = (CorpusConfig(name="news_commentary"),)
    run(tmp_path, tokenizer, tmp_path / "one", corpora=corpora)
    report = run(
        tmp_path, tokenizer, tmp_path / "two", corpora=corpora, earlier=(str(tmp_path / "one"),), validation_rows=8
    )
    train, valid = (set(load(tmp_path / "two", split)["parent"]) for split in ("train", "valid"))
    assert not train & valid and len(train | valid) == report["rows_in"] == 40


def test_columns_say_what_ids_show(tokenizer, tmp_path):
    write(tmp_path / "news_commentary" / "a.jsonl", [{"en": "Spring is here.", "zh": "春天来了。"}])
    csl = tmp_path / "csl" / "a.tsv"
    csl.parent.mkdir()
    csl.write_text("to title\t春天来了。\t春天\n", encoding="utf-8")
    corpora = tuple(CorpusConfig(name=name) for name in ("news_commentary", "csl"))
    report = run(tmp_path, tokenizer, tmp_path / "out", corpora=corpora, editions=2)
    rows = {row["id"]: row for row in load(tmp_path / "out")}
    relations = {i: tuple(row[name] for name in ("parent", "part", "edition", "side")) for i, row in rows.items()}
    assert relations == {
        "news_commentary/news_commentary/a.jsonl:1#0": ("news_commentary/news_commentary/a.jsonl:1", 0, 255, None),
        "news_commentary/news_commentary/a.jsonl:1#1": ("news_commentary/news_commentary/a.jsonl:1", 1, 255, None),
        "csl/csl/a.tsv:1~0": ("csl/csl/a.tsv:1", None, 0, None),
        "csl/csl/a.tsv:1~1": ("csl/csl/a.tsv:1", None, 1, None),
    }
    assert [i for i, row in rows.items() if row["record"] is None] == ["csl/csl/a.tsv:1~1"]
    assert report["pairs"] is report["validation"]["pairs"] is False


def test_pieces_of_documents_are_numbered(tokenizer, tmp_path):
    write(tmp_path / "docs" / "a.jsonl", [{"paragraphs": [{"context": "短文。"}, {"context": "长文，" * 60}]}])
    run(tmp_path, tokenizer, tmp_path / "out", corpora=(CorpusConfig(name="zh_wiki", path="docs"),))
    rows = sorted(load(tmp_path / "out"), key=lambda row: (row["part"], row["piece"] or 0))
    assert len(rows) > 3 and {row["parent"] for row in rows} == {"zh_wiki/docs/a.jsonl:1"}
    assert [(row["part"], row["piece"]) for row in rows] == [(0, None), *((1, n) for n in range(len(rows) - 1))]


def test_whether_rows_are_pairs_stands_in_the_report(tokenizer, tmp_path):
    write(
        tmp_path / "preference" / "a.jsonl", [{"prompt": f"问{i}", "chosen": "好", "rejected": "坏"} for i in range(9)]
    )
    corpora = (CorpusConfig(name="preference"),)
    report = run(tmp_path, tokenizer, tmp_path / "one", corpora=corpora, validation_rows=2)
    assert report["pairs"] is report["validation"]["pairs"] is True
    rows = load(tmp_path / "one")
    assert rows["side"] == [0, 1] * 7 and all(row["id"].endswith(SIDES[row["side"]]) for row in rows)
    assert rows["parent"][::2] == rows["parent"][1::2] and len(set(rows["parent"])) == 7
    assert all(PreparedSplit.load(tmp_path / "one" / split).pairs for split in ("train", "valid"))
    later = run(tmp_path, tokenizer, tmp_path / "two", corpora=corpora, earlier=(str(tmp_path / "one"),))
    assert later["rows_in"] == later["records"] == 7 and set(load(tmp_path / "two")["id"]) == set(rows["id"])


def test_data_of_another_format_is_prepared_again_with_the_same_rows(tokenizer, tmp_path):
    write(tmp_path / "belle" / "a.jsonl", [{"instruction": f"{i}", "input": "", "output": "答"} for i in range(20)])
    settings = {"corpora": (CorpusConfig(name="belle"),), "validation_rows": 4}
    first = run(tmp_path, tokenizer, tmp_path / "one", **settings)
    older = {name: value for name, value in first.items() if name not in ("format", "pairs")}
    (tmp_path / "one" / "report.json").write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(UserError, match="by another version of this package.*prepare it again"):
        PreparedSplit.load(tmp_path / "one" / "train")
    with pytest.raises(UserError, match="which another version of this package prepared; prepare it again"):
        run(tmp_path, tokenizer, tmp_path / "two", **settings, earlier=(str(tmp_path / "one"),))
    # A run on it goes on: for that the fingerprint counts, which is of the rows.
    assert run(tmp_path, tokenizer, tmp_path / "one", **settings) == first
