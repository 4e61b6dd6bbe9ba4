"""A folder of hostile files goes through the whole preparation: every row accounted for, no turn forged."""

import json

import datasets

from gemma_keras.config.sections import CorpusConfig, DataConfig, SystemPromptConfig
from gemma_keras.data.prepare import prepare
from tests.data.hostile import write_hostile_files


def test_hostile_files_are_prepared(tmp_path, tokenizer):
    files = write_hostile_files(tmp_path / "corpora", long_line=200_000_000)
    assert len(files) >= 25
    config = DataConfig(
        root=str(tmp_path / "corpora"),
        corpora=(CorpusConfig(name="belle"), CorpusConfig(name="messages")),
        system_prompts=SystemPromptConfig(none=0.5, fixed=0.5),
        validation_rows=4,
    )
    report = prepare(config, tokenizer, tmp_path / "out", progress=lambda line: None)
    for part in (report, report["validation"]):
        assert part["rows_in"] == part["used"] + sum(part["removed"].values()) + part["quarantined"]
    quarantine = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").open(encoding="utf-8")]
    assert len(quarantine) == report["quarantined"] > 40
    assert all(row["file"] and row["reason"] and row["row"] >= 0 for row in quarantine)
    read = {file for corpus in report["corpora"].values() for file in corpus["files"]}
    assert read == {path for path in files if not path.startswith("a_folder")}

    rows = datasets.load_from_disk(str(tmp_path / "out" / "train"))
    assert len(rows) == report["rows"] > 20
    for row in rows:
        messages = json.loads(row["record"])["messages"]
        turns = len(messages) + (row["system_prompt"] == "fixed")
        cut = len(row["tokens"]) == config.sequence_length
        for literal in ("<start_of_turn>", "<end_of_turn>", "<eos>"):
            count = row["tokens"].count(tokenizer.control_pieces[literal])
            assert count == turns or (cut and count in (turns - 1, turns)), (row["id"], literal, count, turns)
