"""Which files of a folder are a corpus, and what is said of the others."""

import os

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.reading.finding import AGAIN, BROKEN, CYCLE, HIDDEN, SPECIAL, UNREAD_FORMAT, below, describe, find
from gemma_keras.data.sources import locate


def is_json(path):
    return path.suffix == ".json"


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")


def found(place, root):
    """Paths below `root` that are read, and those that are not with the reason."""
    result = find(place, root, is_json)
    names = [path.relative_to(root).as_posix() for path in result.files]
    return names, {path.relative_to(root).as_posix(): reason for path, reason in result.not_read}


def test_what_is_hidden_is_not_read_and_named(tmp_path):
    put(tmp_path, "c/a.json", "c/.ipynb_checkpoints/a-checkpoint.json", "c/deep/.git/objects/x.json", "c/deep/.x.json")
    hidden = {"c/.ipynb_checkpoints": HIDDEN, "c/deep/.git": HIDDEN, "c/deep/.x.json": HIDDEN}
    assert found("c", tmp_path) == (["c/a.json"], hidden)
    assert found("c/**/*.json", tmp_path) == (["c/a.json"], hidden)
    assert found("c/*/*.json", tmp_path)[0] == []


def test_what_is_hidden_is_read_where_it_is_named(tmp_path):
    put(tmp_path, ".cache/hub/a.json", "c/.x.json", "c/.part/b.json")
    assert found(".cache", tmp_path) == ([".cache/hub/a.json"], {})
    assert found("c/.x.json", tmp_path) == (["c/.x.json"], {})
    assert found("c/.part/*.json", tmp_path) == (["c/.part/b.json"], {})
    assert found("c/.p*/*.json", tmp_path) == (["c/.part/b.json"], {})


def test_links_are_followed_and_broken_ones_named(tmp_path):
    put(tmp_path, "elsewhere/part/b.json", "c/a.json")
    (tmp_path / "c" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c" / "one.json").symlink_to(tmp_path / "elsewhere" / "part" / "b.json")
    (tmp_path / "c" / "gone.json").symlink_to(tmp_path / "nowhere.json")
    (tmp_path / "c" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "lost.json").symlink_to(tmp_path / "nowhere.json")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    files, not_read = found("c", tmp_path)
    assert files == ["c/a.json", "c/more/part/b.json"]
    assert not_read == {"c/gone": BROKEN, "c/gone.json": BROKEN, "c/one.json": AGAIN}
    assert found("lost.json", tmp_path) == ([], {"lost.json": BROKEN})
    assert found("link", tmp_path)[0] == ["link/part/b.json"]
    assert found("li*/part/*.json", tmp_path)[0] == ["link/part/b.json"], "whichever name a glob chooses"


def test_a_file_that_several_paths_lead_to_is_read_once_by_its_own(tmp_path):
    put(tmp_path, "c/z/b.json")
    (tmp_path / "c" / "a").symlink_to("z")
    (tmp_path / "c" / "latest.json").symlink_to("z/b.json")
    assert found("c", tmp_path) == (["c/z/b.json"], {"c/a/b.json": AGAIN, "c/latest.json": AGAIN})


@pytest.mark.parametrize("target", [".", "..", "../..", "../deep", "/"])
def test_links_to_a_folder_around_them_are_not_followed(tmp_path, target):
    put(tmp_path, "c/deep/a.json")
    (tmp_path / "c" / "deep" / "loop").symlink_to(target)
    assert found("c", tmp_path) == (["c/deep/a.json"], {"c/deep/loop": CYCLE})


def test_folders_that_link_to_each_other(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        put(tmp_path, f"c/{name}/{name}.json")
        (tmp_path / "c" / name / "other").symlink_to(f"../{other}")
    files, not_read = found("c", tmp_path)
    assert files == ["c/a/a.json", "c/b/b.json"]
    assert not_read == {
        "c/a/other/other": CYCLE,
        "c/b/other/other": CYCLE,
        "c/a/other/b.json": AGAIN,
        "c/b/other/a.json": AGAIN,
    }
    assert found("c/**/*.json", tmp_path)[0] == files


def test_unread_formats_and_special_files(tmp_path):
    put(tmp_path, "c/a.json", "c/b.json.bz2", "c/c.zip", "c/README.md", "c/LICENSE")
    os.mkfifo(tmp_path / "c" / "pipe.json")
    files, not_read = found("c", tmp_path)
    assert files == ["c/a.json"]
    assert not_read == dict.fromkeys(("c/LICENSE", "c/README.md", "c/b.json.bz2", "c/c.zip"), UNREAD_FORMAT) | {
        "c/pipe.json": SPECIAL
    }
    assert found("c/*.zip", tmp_path) == ([], {"c/c.zip": UNREAD_FORMAT})
    assert found("c/*.json", tmp_path)[1] == {"c/pipe.json": SPECIAL}, "a glob asks for no others"
    assert found("c/c.zip", tmp_path) == ([], {"c/c.zip": UNREAD_FORMAT}), "not even where it is named"
    assert found("c/LICENSE", tmp_path) == (["c/LICENSE"], {})


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("c/*.json", ["c/a.json"]),
        ("c/**", ["c/a.json", "c/x/b.json", "c/x/y/c.json"]),
        ("**/c.json", ["c/x/y/c.json"]),
        ("c/**/[bc].json", ["c/x/b.json", "c/x/y/c.json"]),
        ("c/**/y/**/*.json", ["c/x/y/c.json"]),
        ("*/?/*.json", ["c/x/b.json"]),
        ("nowhere/*.json", []),
        ("c/a.json/*", []),
        ("x" * 5000, []),
    ],
)
def test_globs(tmp_path, place, files):
    put(tmp_path, "c/a.json", "c/x/b.json", "c/x/y/c.json")
    assert found(place, tmp_path)[0] == files
    assert [
        path.relative_to(tmp_path).as_posix() for path in find(str(tmp_path / place), tmp_path, is_json).files
    ] == files


@pytest.mark.parametrize("place", ["c/a**.json", "c\0/*"])
def test_what_is_no_glob(tmp_path, place):
    with pytest.raises(UserError, match="cannot be looked through"):
        find(place, tmp_path, is_json)


def test_a_folder_that_is_not_there(tmp_path):
    assert below(tmp_path / "nowhere", is_json).files == ()


def test_one_line_says_it_all():
    names = [(f"c/{number}.zip", UNREAD_FORMAT) for number in range(5)]
    assert describe([("c/.git", HIDDEN), *names]) == (
        "c/.git (hidden), c/0.zip, c/1.zip, c/2.zip and 2 more (of a format that is not read)"
    )


def test_where_nothing_is_read_the_error_names_what_there_is(tmp_path):
    put(tmp_path, "belle/train.zip", "belle/.cache/a.json")
    with pytest.raises(
        UserError, match=r"only belle/.cache \(hidden\), belle/train.zip \(of a format that is not read\)"
    ):
        locate(CorpusConfig(name="belle"), tmp_path)
