import json

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.data.glue_json import preprocess, run

HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def test_recipe_files(tmp_path):
    (tmp_path / "qqp_train.tsv").write_text(HEADER + '0\t1\t2\tWhat is "a?\tWhat is b?\t1\n1\t1\t2\tonly one\t0\n')
    (tmp_path / "qqp_dev.tsv").write_text("id\tquestion1\tquestion2\n0\tWhat?\tWhy?\n")
    (tmp_path / "cola_train.tsv").write_text("gj04\t1\t\tHe ran.\ngj04\t0\t*\tHim ran.\ngj04\t\t\tNo label.\n")
    (tmp_path / "cola_dev.tsv").write_text("gj04\t\tShe ran.\n")
    counts = run(tmp_path, ("qqp", "cola"), tmp_path / "out")
    read = {name: json.loads((tmp_path / "out" / name).read_text(encoding="utf-8")) for name in counts}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(counts)
    assert all(set(row) == {"instruction", "input", "output"} for rows in read.values() for row in rows)
    assert [(row["input"], row["output"]) for row in read["qqp_train.json"]] == [
        ('Question 1: What is "a?\nQuestion 2: What is b?', "1")
    ]
    assert [row["output"] for row in read["qqp_dev.json"]] == [""]
    assert [(row["input"], row["output"]) for row in read["cola_train.json"]] == [("He ran.", "1"), ("Him ran.", "0")]
    assert [(row["input"], row["output"]) for row in read["cola_dev.json"]] == [("She ran.", "")]
    assert counts["qqp_train.json"][1] == [{"file": "qqp_train.tsv", "row": 2, "reason": "5 fields, but 6 columns"}]
    assert [(bad["row"], bad["reason"]) for bad in counts["cola_train.json"][1]] == [(3, "no label")]
    assert counts["cola_dev.json"][0]["unlabelled"] == 1
    assert all(found["rows"] == found["written"] + len(bad) for found, bad in counts.values())


def test_one_row_a_line_and_the_same_bytes_again(tmp_path):
    source, target = tmp_path / "cola_dev.tsv", tmp_path / "a.json"
    source.write_text("gj04\t1\t\tHe ran.\ngj04\t0\t*\tHim ran.\n")
    preprocess("cola", source, target)
    first = target.read_bytes()
    assert first.count(b"\n") == 4 and first.startswith(b"[\n{")
    preprocess("cola", source, target)
    assert target.read_bytes() == first


def test_test_form_of_glue_has_a_header(tmp_path):
    (tmp_path / "cola_dev.tsv").write_text("index\tsentence\n0\tHe ran.\n")
    counts = preprocess("cola", tmp_path / "cola_dev.tsv", tmp_path / "a.json")
    assert counts == ({"rows": 1, "written": 1, "unlabelled": 1, "bad": 0}, [])


def test_an_empty_file_is_reported(tmp_path):
    (tmp_path / "cola_dev.tsv").write_text("")
    counts, bad = preprocess("cola", tmp_path / "cola_dev.tsv", tmp_path / "a.json")
    assert (counts["rows"], [row["row"] for row in bad]) == (0, [0])
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_missing_files_and_unknown_names(tmp_path):
    with pytest.raises(UserError, match="qqp_train.tsv"):
        run(tmp_path, ("qqp",), tmp_path)
    with pytest.raises(UserError, match="choose one of qqp, cola"):
        preprocess("mrpc", tmp_path / "x.tsv", tmp_path / "x.json")


def test_real_slices(real_data, tmp_path):
    counts = run(real_data, ("qqp", "cola"), tmp_path)
    assert {name: (*found.values(), bad) for name, (found, bad) in counts.items()} == {
        "qqp_train.json": (128, 128, 0, 0, []),
        "qqp_dev.json": (128, 128, 0, 0, []),
        "cola_train.json": (7248, 7248, 0, 0, []),
        "cola_dev.json": (842, 842, 0, 0, []),
    }
