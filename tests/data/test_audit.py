"""The account of corpora: everything that is read balances, and the page names every entry."""

import json
from pathlib import Path

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.audit import audit, page, unread
from gemma_keras.data.sources import SOURCES

ROOT = Path(__file__).parents[2]


def quiet(line):
    pass


def test_a_folder_is_accounted_for(tmp_path):
    (tmp_path / "belle").mkdir()
    rows = [{"instruction": "问\r\n题", "output": "答"}, {"instruction": "问", "output": ""}, {"output": "答"}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"instruction": "'
    (tmp_path / "belle" / "a.json").write_text(text, encoding="utf-8")
    (tmp_path / "smile").mkdir()
    turns = [{"role": role, "content": role} for role in ("client", "counselor")]
    (tmp_path / "smile" / "1.json").write_text(json.dumps(turns))
    (tmp_path / "notes.md").write_text("x")
    more = (CorpusConfig(name="text", path="notes.md"),)
    belle, smile, notes = audit(more, tmp_path, quiet)
    assert (belle.rows_in, belle.used, dict(belle.skipped), belle.quarantined) == (4, 1, {"empty": 1}, 2)
    assert dict(belle.mended) == {"encoding": 1}
    assert (smile.rows_in, smile.used, smile.records) == (2, 2, 1)
    assert (notes.rows_in, notes.used, notes.quarantined) == (1, 0, 1)
    assert [path.as_posix() for path in unread([belle, smile], tmp_path)] == ["notes.md"]
    text = page([belle, smile, notes], unread([belle, smile], tmp_path))
    assert "| `belle` | 1 | 4 | 1 | 1 | 1 empty | 1 no instruction" in text
    assert "3 readings, 7 rows, all accounted for." in text and "notes.md (1)" in text


def test_the_page_in_the_repository_lists_every_entry():
    written = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert page([], []).partition("## What was read")[0] == written.partition("## What was read")[0]


def test_every_real_slice_is_accounted_for(real_data):
    audits = list(audit((), real_data, quiet))
    assert len(audits) > 50
    assert {entry.corpus.name for entry in audits if not entry.used} == {"instruction_wild", "kto_mix"}
    assert {entry.corpus.name for entry in audits} <= set(SOURCES)
