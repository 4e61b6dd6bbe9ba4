"""The table of sources: finding files, rows with their origin, groups and kinds."""

import json

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.sources import SOURCES, get_source, locate, read_corpus


def read(root, name, **settings):
    corpus = CorpusConfig(name=name, **settings)
    return list(read_corpus(locate(corpus, root)))


def files(root, **settings):
    return list(locate(CorpusConfig(name="belle", **settings), root).files)


def test_the_table_is_complete_for_people():
    for source in SOURCES.values():
        assert source.schema and source.licence, source.name
        assert source.type or source.kind or source.name in source.name


def test_bad_rows_are_quarantined_with_file_row_and_reason(tmp_path):
    (tmp_path / "belle").mkdir()
    rows = [{}, {"instruction": "x"}, {"instruction": 1, "output": "x"}, {"instruction": "x", "output": "y"}]
    (tmp_path / "belle" / "x.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = read(tmp_path, "belle")
    assert [bool(row.quarantined) for row in result] == [True, True, True, False]
    assert [row.row for row in result[:-1]] == [1, 2, 3]
    assert all(row.file == "belle/x.json" and row.quarantined for row in result[:-1])
    (record,) = result[-1].records
    assert (record.id, record.source) == ("belle/belle/x.json:4", "belle")


def test_kinds_are_chosen_by_the_configuration(tmp_path):
    (tmp_path / "firefly").mkdir()
    rows = [{"kind": kind, "input": "a", "target": "b"} for kind in ("NLI", "StoryGeneration", "Couplet")]
    (tmp_path / "firefly" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def skipped(*kinds):
        return [row.skipped for row in read(tmp_path, "firefly", kinds=kinds)]

    assert skipped() == ["other_kind", "", "other_kind"]
    assert skipped("NLI", "Couplet") == ["", "other_kind", ""]
    assert skipped("all") == ["", "", ""]


def test_rows_of_a_group_are_read_together_and_all_counted(tmp_path):
    (tmp_path / "smile").mkdir()
    for name in ("1", "2"):
        turns = [{"role": role, "content": f"{role}{name}"} for role in ("client", "counselor", "client")]
        (tmp_path / "smile" / f"{name}.json").write_text(json.dumps(turns))
    one, two = read(tmp_path, "smile")
    assert (one.rows, two.rows, one.file, two.file) == (3, 3, "smile/1.json", "smile/2.json")
    assert [turn["content"] for turn in two.records[0].messages] == ["client2", "counselor2"]


def test_files_are_sorted_and_found_by_file_folder_and_glob(tmp_path):
    folder = tmp_path / "belle" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.json", "a.jsonl.gz", "notes.md", ".hidden.json"):
        (folder / name).write_text("{}")
    both = [folder / "a.jsonl.gz", folder / "b.json"]
    assert files(tmp_path) == both
    assert files(tmp_path, path="belle/deep/b.json") == both[1:]
    assert files(tmp_path, path="belle/*/*.json") == both[1:]
    assert files(tmp_path / "elsewhere", path=str(folder)) == both


def test_a_root_with_the_characters_of_a_pattern(tmp_path):
    folder = tmp_path / "data [1]*" / "belle"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    assert files(folder.parent, path="belle/*.json") == [folder / "a.json"]
    assert files(folder.parent) == [folder / "a.json"]


def test_missing_corpora_are_told_with_the_places(tmp_path):
    with pytest.raises(UserError, match="belle_school_math"):
        files(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.json"):
        files(tmp_path, path="nowhere.json")
    with pytest.raises(UserError, match="did you mean belle"):
        get_source("bele")
    with pytest.raises(UserError, match="cannot be looked through"):
        files(tmp_path, path="a**b")


def test_the_package_stands_in_only_where_it_is_allowed_and_has_rows(tmp_path):
    corpus = CorpusConfig(name="firefly")
    with pytest.raises(UserError, match="no files of corpus 'firefly'"):
        locate(corpus, tmp_path)
    located = locate(corpus, tmp_path, missing="builtin")
    assert (
        located.kind == "builtin" and located.files and all(row.records or row.skipped for row in read_corpus(located))
    )
    with pytest.raises(UserError, match="the package has no such rows either"):
        locate(CorpusConfig(name="coig"), tmp_path, missing="builtin")
