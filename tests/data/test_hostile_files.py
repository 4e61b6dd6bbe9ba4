import gzip
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.reading.readers import read_file
from gemma_keras.data.sources import locate, read_corpus
from gemma_keras.text.templates import TEMPLATES
from tests.data.hostile import COUNT, belle, lines, write_hostile_files

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
EXTENSIONS = ["json", "jsonl", "csv", "tsv", "txt", "parquet", "json.gz", "jsonl.zst"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return folder, write_hostile_files(folder)


def read(folder, name, corpus):
    config = CorpusConfig(name=corpus, path=name)
    return list(read_corpus(locate(config, folder)))


def test_there_are_many(hostile):
    assert len(hostile[1]) >= 60


def test_every_file_accounts_for_its_rows(hostile):
    folder, files = hostile
    wrong = {}
    for name, (corpus, rows, sound) in files.items():
        raw = list(read_file(folder / name))
        numbers = [number for number, _, _ in raw]
        came = read(folder, name, corpus)
        ok = (
            numbers == sorted(set(numbers))
            and all((row is None) == bool(reason) for _, row, reason in raw)
            and sum(row.rows for row in came) == len(raw) == (rows or len(raw)) > 0
            and all(bool(row.records) + bool(row.skipped) + (bool(row.quarantined)) == 1 for row in came)
            and sum(bool(row.records) for row in came) >= sound
        )
        if not ok:
            wrong[name] = (len(raw), rows, sum(bool(row.records) for row in came), sound)
    assert not wrong


def test_a_folder_of_them_is_a_corpus(hostile):
    folder, files = hostile
    came = read(folder, "belle", "belle")
    assert {row.file for row in came} == {name for name in files if name.startswith("belle/")}


def test_what_comes_through_can_be_written_and_forges_no_turn(hostile, tokenizer):
    folder, files = hostile
    template = TEMPLATES["gemmalm_zh"]
    markers = [
        tokenizer.encode_with_control(text)[0] for text in ("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>")
    ]
    for name, (corpus, _, _) in files.items():
        for row in read(folder, name, corpus):
            for record in row.records:
                turns = len(record.messages)
                ids, _ = template.encode(tokenizer, record.messages)
                assert [ids.count(marker) for marker in markers] == [turns, turns, turns, 1], name


MEASURED = """
import resource, sys
from pathlib import Path
from gemma_keras.data.reading.readers import read_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [(number, row is not None, reason) for number, row, reason in read_file(Path(sys.argv[1]))]
assert rows == [(1, True, ""), (2, False, "longer than 32 MiB"), (3, True, "")], rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_a_row_of_200_mb_is_never_held(tmp_path):
    files = write_hostile_files(tmp_path, long_line=200_000_000)
    for name in files:
        if "/long_" in name:
            done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / name], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) < 150 * 1024


@QUICK
@given(
    data=st.binary(max_size=300),
    extension=st.sampled_from(EXTENSIONS),
    unit=st.sampled_from(["line", "paragraph", "file"]),
)
def test_random_bytes_never_raise(tmp_path_factory, data, extension, unit):
    path = tmp_path_factory.mktemp("random") / f"x.{extension}"
    path.write_bytes(data)
    check(list(read_file(path, text_unit=unit)))


@QUICK
@given(text=st.text(alphabet='[]{}",:\\ \n\r1a"data的', max_size=60), extension=st.sampled_from(["json", "csv", "tsv"]))
def test_random_structure_never_raises(tmp_path_factory, text, extension):
    path = tmp_path_factory.mktemp("random") / f"x.{extension}"
    path.write_text(text, encoding="utf-8", newline="")
    check(list(read_file(path)))


FORMS = {
    "jsonl": lines,
    "json": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]",
    "pretty.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
    "data.json": lambda rows: json.dumps({"data": rows}, indent=2, ensure_ascii=False),
    "csv": lambda rows: "instruction,input,output\n" + "".join(",".join(row.values()) + "\n" for row in rows),
    "tsv": lambda rows: "instruction\tinput\toutput\n" + "".join("\t".join(row.values()) + "\n" for row in rows),
}


@QUICK
@given(
    form=st.sampled_from(list(FORMS)), place=st.floats(0.1, 0.99), junk=st.binary(max_size=6), length=st.integers(0, 40)
)
def test_damage_leaves_the_rows_before_it(tmp_path_factory, form, place, junk, length):
    rows = [belle(number) for number in range(COUNT)]
    content = FORMS[form](rows).encode()
    cut = int(place * len(content))
    path = tmp_path_factory.mktemp("damaged") / f"x.{form}"
    path.write_bytes(content[:cut] + junk + content[cut + length :])
    read = list(read_file(path))
    check(read)
    markers = [content.find(str(row["output"]).encode()) for row in rows]
    if -1 in markers:
        markers = [content.find(json.dumps(row["output"]).encode()) for row in rows]
    before = [row for row, marker in zip(rows, markers) if marker + 100 < cut]
    assert [row for _, row, _ in read if row is not None][: len(before)] == before


@QUICK
@given(place=st.floats(0, 1), junk=st.binary(min_size=1, max_size=6), suffix=st.sampled_from(["gz", "zst", "parquet"]))
def test_damaged_binary_files_never_raise(tmp_path_factory, hostile, place, junk, suffix):
    rows = [belle(number) for number in range(COUNT)]
    if suffix == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
    else:
        text = lines(rows).encode()
        content = gzip.compress(text) if suffix == "gz" else pa.compress(text, "zstd", asbytes=True)
    cut = int(place * len(content))
    path = tmp_path_factory.mktemp("binary") / ("x.parquet" if suffix == "parquet" else f"x.jsonl.{suffix}")
    path.write_bytes(content[:cut] + junk + content[cut + len(junk) :])
    check(list(read_file(path)))


def check(rows):
    assert rows and all((row is None) == bool(reason) for _, row, reason in rows)
    numbers = [number for number, _, _ in rows]
    assert numbers == sorted(set(numbers)) and (numbers[0] > 0 or len(numbers) == 1)
