"""Files of other forms than JSON: encodings, compression, tables, texts, datasets; and what is no data."""

import csv
import gzip
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_keras.config.errors import UserError
from gemma_keras.data.reading.readers import read_file, read_hub, suffix_of
from tests.data.test_readers import QUICK, ROWS, bad, lines, rows_of, sound, write

TEXT = "".join(f"第{n}行，以及 text\n" for n in range(50))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt"])
def test_encodings(tmp_path, encoding, name, monkeypatch):
    monkeypatch.setattr("gemma_keras.data.reading.streams._CHUNK", 333)
    rows = [{"text": line} for line in TEXT.splitlines()]
    text = {".jsonl": lines(rows), ".json": json.dumps(rows, ensure_ascii=False)}.get(suffix_of(tmp_path / name), TEXT)
    text = "text\n" + text if suffix_of(tmp_path / name) in (".csv", ".tsv") else text
    mark = "\ufeff" if encoding.endswith("e") else ""
    assert rows_of(write(tmp_path / name, (mark + text).encode(encoding))) == rows


@pytest.mark.parametrize("garbage", ["naïve café", "Übergröße", "£5", "élève à l'école"])
@pytest.mark.parametrize("others", ["只有中文。", "plain"])
def test_stray_latin_1_does_not_become_chinese(tmp_path, garbage, others):
    rows = [{"text": others}, {"text": garbage}, {"text": others}]
    content = b"".join(lines([row]).encode("latin-1" if row["text"] == garbage else "utf-8") for row in rows)
    assert list(read_file(write(tmp_path / "x.jsonl", content))) == [
        (1, rows[0], ""),
        (2, None, "not UTF-8"),
        (3, rows[2], ""),
    ]


def test_stray_bytes_in_a_gb18030_file(tmp_path):
    content = TEXT.encode("gb18030").replace("第7行，".encode("gb18030"), b"\xff\xff")
    assert bad(read_file(write(tmp_path / "x.txt", content))) == [(8, "not UTF-8")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(tmp_path, suffix):
    generator = random.Random(0)
    rows = [{"a": str(generator.random()), "b": "行"} for _ in range(60_000)]
    text = lines(rows).encode()
    packed = gzip.compress(text) if suffix == ".gz" else pa.compress(text, "zstd", asbytes=True)
    path = tmp_path / f"X.JSONL{suffix}"
    assert suffix_of(path) == ".jsonl"
    assert rows_of(write(path, packed)) == rows
    assert rows_of(write(path, packed + packed)) == rows + rows
    for damaged in (packed[: len(packed) // 2], packed[:-3], packed + b"junk"):
        read = list(read_file(write(path, damaged)))
        number, row, reason = read.pop()
        assert (
            sound(read) == rows[: len(read)] and row is None and "cut or corrupt" in reason and number == len(read) + 1
        )
        assert len(read) > 0.3 * len(rows)
    ((number, row, reason),) = read_file(write(path, text))
    assert number == 0 and "cut or corrupt" in reason


def test_csv_values_are_text(tmp_path):
    path = write(tmp_path / "x.csv", '\ufeff,a,b\r\n0,"1, 2\n3",\r\n\r\n1,007,NA\r\n2,"say ""hi""",5" x\r\n')
    assert rows_of(path) == [
        {"": "0", "a": "1, 2\n3", "b": ""},
        {"": "1", "a": "007", "b": "NA"},
        {"": "2", "a": 'say "hi"', "b": '5" x'},
    ]


def test_broken_csv_rows(tmp_path):
    content = b'a,b\n1,2\n1,2,3\n\x00,5\n"x" y,1\n1,\xff\n6,7'
    read = list(read_file(write(tmp_path / "x.csv", content)))
    assert sound(read) == [{"a": "1", "b": "2"}, {"a": "\x00", "b": "5"}, {"a": "6", "b": "7"}]
    assert [number for number, _ in bad(read)] == [2, 4, 5]
    assert read[1][2] == "3 fields, but 2 columns" and read[4][2] == "not UTF-8"


def test_an_unclosed_quote_takes_no_other_row_along(tmp_path):
    following = [{"a": str(n), "b": f"line\n{n}" if n == 7 else "x"} for n in range(9)]
    text = 'a,b\n1,"open\n' + "".join(f'{row["a"]},"{row["b"]}"\n' for row in following)
    read = list(read_file(write(tmp_path / "x.csv", text)))
    assert [row is None for _, row, _ in read] == [True] + [False] * 9 and sound(read) == following
    text = 'a,b\n1,2\n1,"open\n' + "3,4\n" * 5
    assert len(sound(read_file(write(tmp_path / "y.csv", text)))) == 6


def test_quotes_that_never_close_take_linear_time(tmp_path):
    read = list(read_file(write(tmp_path / "x.csv", "a,b\n" + 'x","\n' * 30_000)))
    assert len(read) == 30_000 and not sound(read)


def test_tsv_has_no_quotes(tmp_path):
    path = write(tmp_path / "x.tsv", '1\t"open\n2\ta "b" c\n3\n')
    read = list(read_file(path, columns=("id", "text")))
    assert read[:2] == [(1, {"id": "1", "text": '"open'}, ""), (2, {"id": "2", "text": 'a "b" c'}, "")]
    assert bad(read) == [(3, "1 fields, but 2 columns")]
    assert rows_of(path)[0] == {"1": "2", '"open': 'a "b" c'}


@QUICK
@given(rows=st.lists(st.tuples(st.text(max_size=5), st.text(min_size=1, max_size=5)), min_size=1, max_size=5))
def test_csv_as_the_standard_library_writes_it(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    # Values are as read by csv, to which a quoted field ends with any line end.
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    assert rows_of(path) == [{"a": a, "b": b} for a, b in rows]


def test_parquet(tmp_path):
    rows = [{"a": "行", "b": [{"c": 1}], "d": None}, {"a": "x", "b": [], "d": 1.5}] * 400
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=300)
    assert rows_of(path) == rows
    data = path.read_bytes()
    ((number, row, reason),) = read_file(write(path, data[:-20]))
    assert (number, row) == (0, None) and reason.startswith("cannot be read: ")


def test_one_wrong_string_in_a_parquet_file(tmp_path):
    column = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    read = list(read_file(tmp_path / "x.parquet"))
    assert sound(read) == [{"a": "a"}, {"a": "c"}] and bad(read)[0][0] == 2


def test_text_by_line_and_whole(tmp_path):
    path = write(tmp_path / "x.txt", "第一\n\n第二 \u2028 行\r\n三\r四")
    assert rows_of(path, text_unit="file") == [{"text": "第一\n\n第二 \u2028 行\r\n三\r四"}]
    assert [row["text"] for row in rows_of(path)] == ["第一", "第二 \u2028 行", "三", "四"]
    poem = write(tmp_path / "poem.pt", "title:诗\n\n行\n")
    assert rows_of(poem, text_unit="file", plain=True) == [{"text": "title:诗\n\n行\n"}]
    assert bad(read_file(write(poem, b"\xff\xff"), text_unit="file", plain=True)) == [(1, "not UTF-8")]


def test_a_dataset_that_cannot_be_had(tmp_path):
    with pytest.raises(UserError, match="cannot be read from the hub"):
        list(read_hub(str(tmp_path / "no_such_dataset")))


def test_a_dataset_folder_stands_for_one_on_the_hub(tmp_path):
    write(tmp_path / "train.jsonl", lines(ROWS))
    assert [row for _, row, _ in read_hub(str(tmp_path))] == ROWS


def test_strings_are_rows_of_text(tmp_path):
    for name, content in (
        ("a.json", '["一", "二"]'),
        ("l.jsonl", '"一"\n"二"\n'),
        ("p.json", '[\n  "一",\n  "二"\n]\n'),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert rows_of(tmp_path / name) == [{"text": "一"}, {"text": "二"}]


def test_paragraphs_of_a_text(tmp_path):
    path = write(tmp_path / "a.txt", "\n一\n二\n \n\n三\r\n四".encode())
    assert list(read_file(path, text_unit="paragraph")) == [
        (2, {"text": "一\n二\n"}, ""),
        (6, {"text": "三\r\n四"}, ""),
    ]
    path = write(tmp_path / "b.txt", "一\n\n".encode() + b"\xff\xff\n\n" + "二\n".encode())
    assert list(read_file(path, text_unit="paragraph"))[1:] == [(3, None, "not UTF-8"), (5, {"text": "二\n"}, "")]


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\nsize 12345\n"


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.json.gz", "a.jsonl.zst", "a.bin"]
)
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LFS, "a Git LFS pointer, not the data .run git lfs pull"),
        (LFS.replace("git-lfs", "hawser").replace("\n", "\r\n"), "a Git LFS pointer"),
        ("/annex/objects/SHA256E-s12--abc.txt\n", "a git-annex pointer, not the data .run git annex get"),
    ],
)
@pytest.mark.parametrize("unit", ["line", "file"])
def test_pointers_are_not_data(tmp_path, name, content, what, unit):
    ((number, row, reason),) = read_file(write(tmp_path / name, content), text_unit=unit)
    assert (number, row) == (0, None)
    assert re.match(what, reason)


@pytest.mark.parametrize("text", ["说明：\n" + LFS, LFS + "正文" * 500])
def test_texts_about_pointers_are_data(tmp_path, text):
    assert rows_of(write(tmp_path / "a.txt", text), text_unit="file") == [{"text": text}]
