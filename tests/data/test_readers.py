import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_keras.data.reading import elements
from gemma_keras.data.reading.readers import read_file

ROWS = [{"a": "一", "b": "x\ny"}, {"a": "二", "b": ""}, {"a": "三 {[\"'\\", "b": "2023-01-01"}]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rows_of(path, **options):
    return [row for _, row, _ in read_file(path, **options)]


def sound(read):
    return [row for _, row, _ in read if row is not None]


def bad(read):
    return [(number, reason) for number, row, reason in read if row is None]


LAYOUTS = {
    "lines": lines,
    "spaced lines": lambda rows: "\n\n" + lines(rows).replace("\n", "\n \n"),
    "array on one line": json.dumps,
    "array, an element a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "array, elements from the first line": lambda rows: "[" + ",\n ".join(map(json.dumps, rows)) + "]",
    "indented array": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "array without indentation": lambda rows: json.dumps(rows, indent=0),
    "data on one line": lambda rows: json.dumps({"version": "{", "data": rows}),
    "indented data": lambda rows: json.dumps({"x": {"data": [1]}, "data": rows, "tail": [{"a": "]"}]}, indent=1),
    "indented data alone": lambda rows: json.dumps({"data": rows}, indent=1, ensure_ascii=False),
    "numbered on one line": lambda rows: json.dumps({str(3 * n): row for n, row in enumerate(rows)}),
    "indented numbered": lambda rows: json.dumps({str(3 * n): row for n, row in enumerate(rows)}, indent=4),
    "objects one after another": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
}


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_json_is_told_apart_by_its_content(tmp_path, name, layout, end):
    assert rows_of(write(tmp_path / name, LAYOUTS[layout](ROWS).replace("\n", end))) == ROWS


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
TABLE = st.lists(st.dictionaries(st.sampled_from(["a", "b", "0", "data"]), VALUES, min_size=1), min_size=2, max_size=6)


@QUICK
@given(rows=TABLE, layout=st.sampled_from(list(LAYOUTS)), chunk=st.integers(1, 40))
def test_any_rows_come_through_any_layout(tmp_path_factory, rows, layout, chunk):
    if layout == "objects one after another":
        rows = [{"text": "x", **row} for row in rows]  # not to be taken for one that holds the rows
        rows = [{key: value for key, value in row.items() if key != "data"} for row in rows]
    path = write(tmp_path_factory.mktemp("rows") / "x.json", LAYOUTS[layout](rows))
    with pytest.MonkeyPatch.context() as patch:
        # Small chunks, so that a boundary falls everywhere.
        patch.setattr("gemma_keras.data.reading.streams._CHUNK", chunk)
        read = list(read_file(path))
    assert sound(read) == rows
    assert [number for number, _, _ in read] == sorted({number for number, _, _ in read})


def test_one_object_is_one_row(tmp_path):
    for indent in (None, 1):
        assert rows_of(write(tmp_path / "x.json", json.dumps(ROWS[0], indent=indent))) == [ROWS[0]]
    dialogue = {"messages": [{"role": "user", "content": "问"}]}
    assert rows_of(write(tmp_path / "y.jsonl", json.dumps(dialogue, indent=1))) == [dialogue]
    single = {"data": ["问", "答"]}
    assert rows_of(write(tmp_path / "z.jsonl", json.dumps(single))) == [single]


def test_lines_with_data_of_their_own_stay_lines(tmp_path):
    rows = [{"id": "1", "data": [{"a": 1}]}, {"id": "2", "data": [{"a": 2}]}]
    assert rows_of(write(tmp_path / "x.jsonl", lines(rows))) == rows


def test_broken_lines_do_not_take_the_others_along(tmp_path):
    content = lines(ROWS[:1]).encode() + b'{"a": "x"\n[1]\n\n{"a": "\xff"}\n' + lines(ROWS[1:]).encode() + b'{"a": "tr'
    read = list(read_file(write(tmp_path / "x.jsonl", content)))
    assert [number for number, _ in bad(read)] == [2, 3, 5, 8] and sound(read) == ROWS
    assert "not UTF-8" in read[3][2] and "list, not an object" in read[2][2]


@pytest.mark.parametrize(
    "broken, reasons",
    [
        ('{"a": "b" "c"}', 1),
        ('{"a": "b', 1),
        ('{"a": "b}', 1),
        ('{"a": ["b"}', 1),
        ('{"a": "b"', 1),
        ('{"a": {"b": "c"}', 1),
        ('"a": "b"}', 1),
        ('{"a": "b"}}', 0),
        ("x", 1),
        ("3", 1),
        ("[1, [2]]", 1),
        ("null", 1),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_array_with_a_broken_element(tmp_path, broken, reasons, indent):
    rows = [{**row, "c": [{"d": 1}, {"e": 2}]} for row in ROWS]
    parts = [json.dumps(row, indent=indent).replace("\n", "\n  ") for row in rows]
    text = "[\n  " + ",\n  ".join([*parts[:1], broken, *parts[1:]]) + "\n]\n"
    read = list(read_file(write(tmp_path / "x.json", text)))
    assert [row for row in sound(read) if row != {"a": "b"}] == rows
    assert len(bad(read)) == reasons


def test_many_unclosed_elements_take_linear_time(tmp_path):
    text = "[\n" + '{"a": {"b": "c"},\n' * 30_000 + "]"
    read = list(read_file(write(tmp_path / "x.json", text)))
    assert len(read) == 30_000 and not sound(read)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file_keeps_its_sound_rows(tmp_path, layout):
    rows = [{"a": f"第{n}行", "b": ["x"] * 3} for n in range(20)]
    text = LAYOUTS[layout](rows).rstrip("\n")
    cut = text.index("第15行" if "第15行" in text else json.dumps("第15行")[1:-1])
    read = list(read_file(write(tmp_path / "x.json", text[: cut + 2])))
    assert sound(read) == rows[:15] and len(bad(read)) == 1


def test_what_follows_an_array_is_not_lost(tmp_path):
    text = json.dumps(ROWS) + "\n" + json.dumps(ROWS[0]) + '\n{"data": [1]}'
    assert rows_of(write(tmp_path / "x.json", text)) == [*ROWS, ROWS[0], {"data": [1]}]
    text = json.dumps({"data": ROWS}, indent=1)
    assert sound(read_file(write(tmp_path / "y.json", text + "\n" + text))) == [*ROWS, {"data": ROWS}]


def test_values_come_through_as_they_are(tmp_path):
    text = (
        '{"a": 1, "a": "2", "b": 1.5, "c": null, "d": [{}], "e": "2023-01-01 10:00:00"}\n{"a": "\\ud800", "b": NaN}\n'
    )
    first, second, third = rows_of(write(tmp_path / "x.jsonl", text + '\ufeff{"a": "\t\x00"}'))
    assert first == {"a": "2", "b": 1.5, "c": None, "d": [{}], "e": "2023-01-01 10:00:00"}
    assert second["a"] == "\ud800" and second["b"] != second["b"]
    assert third == {"a": "\t\x00"}


@pytest.mark.parametrize(
    "name", ["x.json", "x.jsonl", "x.csv", "x.tsv", "x.txt", "x.parquet", "x.json.gz", "x.csv.zst"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\r",
        b"\xef\xbb\xbf",
        b"\xff\xfe\x00\x01",
        b"\xff\xfe\x00",
        b"\x00" * 50,
        b"[",
        b"{",
        b'"',
        b"[[[[[",
    ],
)
def test_hostile_files_never_crash(tmp_path, name, content):
    read = list(read_file(write(tmp_path / name, content)))
    assert all((row is None) == bool(reason) for _, row, reason in read)
    assert read, "a file without rows must be reported"


@pytest.mark.parametrize("name", ["x.json", "x.csv", "x.txt", "x.parquet", "x.json.gz"])
@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n"])
def test_a_file_without_rows_is_reported(tmp_path, name, content):
    content = gzip.compress(content) if name.endswith(".gz") else content
    ((number, row, reason),) = read_file(write(tmp_path / name, content))
    assert (number, row) == (0, None) and (reason == "no rows" or name == "x.parquet")


def test_what_is_no_file_is_reported(tmp_path):
    (tmp_path / "x.json").mkdir()
    assert list(read_file(tmp_path / "x.json")) == [(0, None, "cannot be read: not a regular file")]
    assert list(read_file(tmp_path / "none.csv")) == [(0, None, "cannot be read: No such file or directory")]


@pytest.mark.parametrize("layout", ["lines", "indented array"])
def test_deep_nesting_is_one_bad_row(tmp_path, layout):
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    text = LAYOUTS[layout]([{"a": "deep"}, *ROWS])
    text = text.replace('{"a": "deep"}', deep).replace('{\n    "a": "deep"\n  }', deep)
    read = list(read_file(write(tmp_path / "x.jsonl", text)))
    assert [row for _, row, _ in read] == [None, *ROWS] and read[0][2] == "nested too deeply"


@pytest.mark.parametrize("layout", ["lines", "array, an element a line", "indented array", "indented data alone"])
@pytest.mark.parametrize("chunk", [50, 500])
def test_a_row_that_is_too_long_is_passed_over(tmp_path, monkeypatch, layout, chunk):
    monkeypatch.setattr("gemma_keras.data.reading.streams.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(elements, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(elements, "_TAIL", 100)
    monkeypatch.setattr("gemma_keras.data.reading.streams._CHUNK", chunk)
    long = {"a": "长" * 1000, "b": [{"c": "x" * 5000}] * 9}
    path = write(tmp_path / "x.json", LAYOUTS[layout]([ROWS[0], long, *ROWS[1:], long]))
    assert [(number, row) for number, row, _ in read_file(path)] == list(enumerate([ROWS[0], None, *ROWS[1:], None], 1))
    assert {reason for _, reason in bad(read_file(path))} == {elements.TOO_LONG}
