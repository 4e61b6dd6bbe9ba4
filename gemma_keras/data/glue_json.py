"""QQP and CoLA for the recipe that trains on JSON files of instruction, input and output."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.config.writing import write_whole
from gemma_keras.data.reading.readers import read_file
from gemma_keras.data.records import BadRow
from gemma_keras.data.sources.exams import COLA_COLUMNS, GLUE_INSTRUCTIONS, glue_example

SPLITS = ("train", "dev")

Outcome = tuple[dict[str, int], list[dict[str, Any]]]
"""Of one file's `rows` how many were `written`, `unlabelled` (written with an empty output) and `bad`; and the bad ones."""

_COLA_WITHOUT_LABELS = {3: ("source", "mark", "sentence"), 2: ("index", "sentence")}


def run(root: Path, names: Iterable[str], out: Path) -> dict[str, Outcome]:
    """Preprocesses `{name}_train.tsv` and `{name}_dev.tsv` of `root`, or GLUE's `{name}/train.tsv` and `{name}/dev.tsv`.

    Returns:
        By the name of the file written in `out`, such as `qqp_train.json`.

    Raises:
        UserError: a file is missing, or a name is unknown.
    """
    outcomes = {}
    for name in names:
        for split in SPLITS:
            places = (root / f"{name}_{split}.tsv", root / name / f"{split}.tsv")
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                raise UserError(f"there is neither {places[0]} nor {places[1]}; give the folder that holds one of them")
            target = out / f"{name}_{split}.json"
            outcomes[target.name] = preprocess(name, found, target, labelled=split == "train")
    return outcomes


def preprocess(dataset: str, tsv_path: Path, json_path: Path, labelled: bool = False) -> Outcome:
    """Writes the rows of a GLUE file as a JSON array, one object `{"instruction", "input", "output"}` a line.

    Args:
        dataset: "qqp" (with header) or "cola" (without; source, label, mark, sentence, the second of which may lack).
        labelled: a row without a label is bad; otherwise its output is empty.

    Raises:
        UserError: there is no such dataset.
    """
    if dataset not in GLUE_INSTRUCTIONS:
        raise UserError(f"no GLUE dataset is called {dataset!r}; choose one of {', '.join(GLUE_INSTRUCTIONS)}")
    total, unlabelled = 0, 0
    lines: list[str] = []
    bad: list[dict[str, Any]] = []
    columns = _cola_columns(tsv_path) if dataset == "cola" else ()
    for number, row, reason in read_file(tsv_path, columns=columns):
        total += number > 0
        try:
            if row is None:
                raise BadRow(reason)
            given, label = glue_example(dataset, row)
            if labelled and not label:
                raise BadRow("no label")
        except BadRow as error:
            bad.append({"file": tsv_path.name, "row": number, "reason": str(error)})
            continue
        unlabelled += not label
        example = {"instruction": GLUE_INSTRUCTIONS[dataset], "input": given, "output": label}
        lines.append(json.dumps(example, ensure_ascii=False))
    write_whole(json_path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
    return {"rows": total, "written": len(lines), "unlabelled": unlabelled, "bad": len(bad)}, bad


def _cola_columns(path: Path) -> tuple[str, ...]:
    """Names by the number of fields; none for a file of GLUE's test form, which has a header."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(1_000_000).rstrip("\r\n").split("\t")
    return () if first == ["index", "sentence"] else _COLA_WITHOUT_LABELS.get(len(first), COLA_COLUMNS)
