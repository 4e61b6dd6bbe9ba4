"""Volume for the corpora of one task each: rows in their raw schemas, composed from tables and templates by a seed.

The same arguments give the same rows on every machine, as with `generator`.
"""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_keras.builtin import (
    abstracts,
    classical,
    exams,
    exchanges,
    free_verse,
    news,
    preferences,
    tales,
    verses,
)

# Corpus -> its file below the data root and what makes one of its rows.
MAKERS: dict[str, tuple[str, Callable[[random.Random], Any]]] = {
    "news_commentary": ("news_commentary/generated.jsonl", news.row),
    "hc3_chinese": ("hc3_chinese/generated.jsonl", exchanges.row),
    "firefly": ("firefly/generated.jsonl", tales.row),
    "chinese_modern_poetry": ("chinese_modern_poetry/generated.jsonl", free_verse.row),
    "chinese_poetry": ("chinese_poetry/generated.json", verses.row),
    "classical_modern": ("classical_modern/generated.jsonl", classical.row),
    "dpo_en_zh_20k": ("dpo_en_zh_20k/generated.json", preferences.row),
    "csl": ("csl/ts/train.tsv", abstracts.row),
}
_DEV_ROWS = 5  # of a subject, as in C-Eval
_VAL_SHARE = 12  # one question of a subject for so many rows of a corpus


def rows(corpus: str, count: int, seed: int) -> list[Any]:
    """`count` rows of one of `MAKERS`, no two of which ask for the same with the same (chosen) answer.

    Raises ValueError when the templates cannot make so many different rows.
    """
    rng = random.Random(f"{corpus} rows {seed}")
    _, make = MAKERS[corpus]
    made: dict[str, Any] = {}
    for _ in range(50 * count + 1000):
        if len(made) >= count:
            return list(made.values())
        row = make(rng)
        key = {name: value for name, value in row.items() if name != "rejected"} if isinstance(row, dict) else row
        made.setdefault(json.dumps(key, ensure_ascii=False, sort_keys=True), row)
    raise ValueError(f"{count} different rows of {corpus} were asked for, but the templates make about {len(made)}")


def write(root: Path, count: int, seed: int) -> None:
    """`count` rows of every corpus of `MAKERS` below `root`, and exams in C-Eval's layout with questions in proportion."""
    for corpus, (name, _) in MAKERS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_file(rows(corpus, count, seed), path.suffix, seed), encoding="utf-8")
    for subject in exams.SUBJECTS:
        questions = exams.questions(subject, _DEV_ROWS + max(1, count // _VAL_SHARE), seed)
        columns = ["id", "question", *exams.LETTERS, "answer", "explanation"]
        _write_exam(root / "ceval" / "dev" / f"{subject}_dev.csv", questions[:_DEV_ROWS], columns)
        _write_exam(root / "ceval" / "val" / f"{subject}_val.csv", questions[_DEV_ROWS:], columns[:-1])


def _file(made: list[Any], suffix: str, seed: int) -> str:
    """The text of a file of rows in the layout of its suffix."""
    if suffix == ".tsv":
        return "".join("\t".join(row) + "\n" for row in made)
    if suffix == ".json":
        return json.dumps(made, ensure_ascii=False, indent=0) + "\n"
    if made and "prompt" in made[0]:
        made = [{"uuid": f"generated-{seed}-{i:05d}", **row} for i, row in enumerate(made)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)


def _write_exam(path: Path, questions: list[dict[str, str]], columns: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**question, "id": str(i)} for i, question in enumerate(questions))
