import json

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.data.readers import json_form, read_file, read_hub

ROWS = [{"a": "一", "b": "x\ny"}, {"a": "二", "b": ""}, {"a": "三", "b": "2023-01-01"}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rows_of(path, **options):
    return [row for _, row, _ in read_file(path, **options)]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        lines(ROWS),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        json.dumps({"version": 1, "data": ROWS}),
        json.dumps({"data": ROWS}, indent=1),
        "\ufeff" + lines(ROWS),
        "\ufeff" + json.dumps(ROWS),
        "\n\n" + lines(ROWS),
    ],
)
def test_json_is_told_apart_by_its_content(tmp_path, name, text):
    assert rows_of(write(tmp_path / name, text)) == ROWS


def test_one_object_is_one_row(tmp_path):
    assert rows_of(write(tmp_path / "x.json", json.dumps(ROWS[0], indent=1))) == [ROWS[0]]
    assert json_form(tmp_path / "x.json") == "object"


def test_times_stay_strings(tmp_path):
    dates = [{"a": "2023-01-01"}, {"a": "2023-01-02 10:00:00"}]
    assert rows_of(write(tmp_path / "x.jsonl", lines(dates))) == dates


def test_broken_lines_do_not_take_the_others_along(tmp_path):
    content = lines(ROWS[:1]).encode() + b'{"a": "x"\n[1]\n\n{"a": "\xff"}\n' + lines(ROWS[1:]).encode() + b'{"a": "tr'
    read = list(read_file(write(tmp_path / "x.jsonl", content)))
    assert [number for number, row, _ in read if row is None] == [2, 3, 5, 8]
    assert [row for _, row, _ in read if row is not None] == ROWS
    assert "not UTF-8" in read[3][2] and "list, not an object" in read[2][2]


def test_truncated_array_keeps_its_sound_elements(tmp_path):
    text = "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + ',\n{"a": "cut'
    read = list(read_file(write(tmp_path / "x.json", text)))
    assert [row for _, row, _ in read] == [*ROWS, None] and read[-1][0] == 4


def test_array_with_a_broken_element(tmp_path):
    text = "[\n" + json.dumps(ROWS[0]) + ',\n{"a": "b" "c"},\n3,\n' + json.dumps(ROWS[1]) + "\n]"
    read = list(read_file(write(tmp_path / "x.json", text)))
    assert [row for _, row, _ in read if row is not None] == ROWS[:2]
    assert sum(row is None for _, row, _ in read) >= 1


def test_rows_of_mixed_types_come_through(tmp_path):
    mixed = [{"a": "x"}, {"a": 1}, {"a": None, "b": [1]}, {"c": {"d": "e"}}]
    read = rows_of(write(tmp_path / "x.jsonl", lines(mixed)))
    # A missing key may come back as None.
    assert [{k: v for k, v in row.items() if v is not None} for row in read] == [
        {k: v for k, v in row.items() if v is not None} for row in mixed
    ]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.txt", "x.parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xef\xbb\xbf", b"\xff\xfe\x00\x01", b"\x00" * 50, b"[", b"{", b'"', b"[[[[["]
)
def test_hostile_files_never_crash(tmp_path, name, content):
    read = list(read_file(write(tmp_path / name, content)))
    assert all((row is None) == bool(reason) for _, row, reason in read)
    assert read, "a file without rows must be reported"


def test_deep_nesting_is_one_bad_row(tmp_path):
    read = list(read_file(write(tmp_path / "x.jsonl", '{"a": ' + "[" * 100_000 + "\n" + lines(ROWS))))
    assert [row for _, row, _ in read] == [None, *ROWS]


def test_csv_values_are_text(tmp_path):
    path = write(tmp_path / "x.csv", '\ufeffa,b\r\n"1, 2\n3",\r\n007,NA\r\n')
    assert rows_of(path) == [{"a": "1, 2\n3", "b": ""}, {"a": "007", "b": "NA"}]


def test_broken_csv_row(tmp_path):
    read = list(read_file(write(tmp_path / "x.csv", "a,b\n1,2\n1,2,3\n4,5\n")))
    assert [row for _, row, _ in read if row] == [{"a": "1", "b": "2"}, {"a": "4", "b": "5"}]
    assert [(n, reason) for n, row, reason in read if row is None] == [(2, "3 fields, but 2 columns")]


def test_text_by_line_and_whole(tmp_path):
    path = write(tmp_path / "x.txt", "第一\n\n第二 \u2028 行\n")
    assert rows_of(path, whole_text=True)[0]["text"].strip() == "第一\n\n第二 \u2028 行"
    assert [row["text"] for row in rows_of(path) if row["text"]] == ["第一", "第二 \u2028 行"]


def test_a_dataset_that_cannot_be_had(tmp_path):
    with pytest.raises(UserError, match="cannot be read from the hub"):
        list(read_hub(str(tmp_path / "no_such_dataset")))


def test_a_dataset_folder_stands_for_one_on_the_hub(tmp_path):
    write(tmp_path / "train.jsonl", lines(ROWS))
    assert [row for _, row, _ in read_hub(str(tmp_path))] == ROWS
