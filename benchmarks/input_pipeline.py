"""Data preparation and batches against the usual way (`datasets.map`, a Hugging Face fast tokenizer, padding to 512).

Four questions, one run: how many rows a second are prepared, how much memory that takes from 10 thousand to a million
rows, how soon the first batch of a late step is there, how many tokens a second the batches bring. Rows are composed
from the sentences of the builtin corpus, or of the text corpora below --root, at the lengths of stage 1 (median about
120 tokens).

    python -m benchmarks.input_pipeline [--rows=40000] [--many=1000000] [--root=CORPORA] [--tokenizer=FILE]
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from gemma_keras import builtin
from gemma_keras.config.sections import CleaningConfig, CorpusConfig, DataConfig
from gemma_keras.text.tokenizer import Tokenizer

ROWS = flags.DEFINE_integer("rows", 40_000, "rows that both ways prepare")
FEW = flags.DEFINE_integer("few", 10_000, "rows of the smaller measurement of memory")
MANY = flags.DEFINE_integer("many", 1_000_000, "rows of the larger measurement of memory")
ROOT = flags.DEFINE_string("root", "", "folder of corpora whose sentences are used; empty: the builtin corpus")
TOKENIZER = flags.DEFINE_string("tokenizer", "", "SentencePiece model; empty: the builtin one")
REPEATS = flags.DEFINE_integer("repeats", 3, "times that each way prepares the rows")
ONLY = flags.DEFINE_list("only", ["preparation", "memory", "steps", "batches"], "what to measure")

SEQUENCE_LENGTH, BATCH_ROWS = 1024, 32
GATE = {"preparation": 3.0, "near_duplicates": 2048, "late_step": 2.0, "tokens_per_second": 400_000}


def main(argv: list[str]) -> None:
    print(f"{os.cpu_count()} cores, {ROOT.value or 'builtin'} sentences, tokenizer {_tokenizer().path.name} of "
          f"{_tokenizer().vocabulary_size} pieces")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ONLY.value:
            {"preparation": preparation, "memory": memory, "steps": steps, "batches": batches}[name](work)


def preparation(work: Path) -> None:
    """Rows per second, everything included: from a file of rows to what training reads."""
    source = write_rows(work / "rows" / "belle" / "rows.jsonl", ROWS.value)
    fast = _fast_tokenizer(work / "fast")
    ways: dict[str, Callable[[Path], Any]] = {
        "datasets.map, row by row": lambda out: reference(source, fast, out, batched=False, processes=None),
        "datasets.map, batched": lambda out: reference(source, fast, out, batched=True, processes=None),
        "datasets.map, batched, 2 processes": lambda out: reference(source, fast, out, batched=True, processes=2),
        "gemma_keras": lambda out: ours(work / "rows", out, sequence_length=512),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # By turns, so that whatever else the machine does falls on all alike.
    for repeat in range(REPEATS.value):
        for number, (name, way) in enumerate(ways.items()):
            start = time.perf_counter()
            way(work / f"out_{repeat}_{number}")
            seconds[name].append(time.perf_counter() - start)
    report = json.loads((work / f"out_0_{len(ways) - 1}" / "report.json").read_text(encoding="utf-8"))
    print(f"\n## Preparation: {ROWS.value} rows of {report['token_lengths']['mean']} tokens (median "
          f"{report['token_lengths']['median']}), median of {REPEATS.value} runs")  # fmt: skip
    print("| way | rows/s | gemma_keras is faster by |\n|---|---:|---:|")
    own = statistics.median(seconds["gemma_keras"])
    for name, times in seconds.items():
        print(f"| {name} | {ROWS.value / statistics.median(times):,.0f} | {statistics.median(times) / own:.2f} |")
    print(f"required of the batched way: {GATE['preparation']}; useful tokens: {report['useful_token_share']:.4f} "
          f"against {report['token_lengths']['mean'] / 512:.4f} of rows padded to 512")  # fmt: skip


def reference(source: Path, tokenizer: Any, out: Path, *, batched: bool, processes: int | None) -> None:
    """The usual way: a chat string a row, tokens padded and cut to 512, labels a copy, saved for training."""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(out / "cache"))

    def as_text(row: dict) -> dict:
        turns = (("user", row["instruction"]), ("model", row["output"]))
        return {"text": "".join(f"<start_of_turn>{r}\n{t}\n<end_of_turn><eos>\n" for r, t in turns)}

    def tokens(rows: dict) -> dict:
        encoded = tokenizer(rows["text"], truncation=True, max_length=512, padding="max_length")
        encoded["labels"] = [list(ids) for ids in encoded["input_ids"]] if batched else list(encoded["input_ids"])
        return encoded

    texts = rows.map(as_text, remove_columns=rows.column_names, num_proc=processes)
    encoded = texts.map(tokens, batched=batched, remove_columns=["text"], num_proc=processes)
    encoded.save_to_disk(str(out / "train"))


def ours(root: Path, out: Path, *, sequence_length: int, near_duplicates: float = 0.0) -> None:
    from gemma_keras.data.prepare import prepare

    config = DataConfig(
        root=str(root),
        corpora=(CorpusConfig(name="belle"),),
        sequence_length=sequence_length,
        cleaning=CleaningConfig(near_duplicates=near_duplicates),
    )
    prepare(config, _tokenizer(), out, progress=lambda line: None)


def memory(work: Path) -> None:
    """Peak memory of a process that prepares, at two sizes, without and with the removal of near duplicates."""
    roots = {}
    for count in (FEW.value, MANY.value):
        roots[count] = work / f"memory_{count}"
        write_rows(roots[count] / "belle" / "rows.jsonl", count)
    print(f"\n## Peak memory of preparation, {FEW.value:,} and {MANY.value:,} rows")
    print("| near duplicates | rows | peak MB (resident) | peak MB (anonymous) | bytes a row more | rows/s |")
    print("|---|---:|---:|---:|---:|---:|")
    for threshold in (0.0, 0.8):
        few = None
        for count, root in roots.items():
            peak = _in_process(root, work / "out", threshold)
            few = few or peak
            growth = (peak["resident"] - few["resident"]) / max(1, count - FEW.value)
            print(f"| {f'from {threshold}' if threshold else 'kept'} | {count:,} | {peak['resident'] / 1e6:,.0f} "
                  f"| {peak['anonymous'] / 1e6:,.0f} | {growth:,.0f} | {count / peak['seconds']:,.0f} |")  # fmt: skip
    print(f"required: flat without, at most {GATE['near_duplicates']} bytes a row with")


def _in_process(root: Path, out: Path, near_duplicates: float) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.input_pipeline",
        f"--root={ROOT.value}",
        f"--tokenizer={TOKENIZER.value}",
    ]
    arguments = [f"--measure={root}", f"--measure_out={out}", f"--near_duplicates={near_duplicates}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


MEASURE = flags.DEFINE_string("measure", "", "(internal) prepare this folder and print the peak memory")
MEASURE_OUT = flags.DEFINE_string("measure_out", "", "(internal) where to")
NEAR_DUPLICATES = flags.DEFINE_float("near_duplicates", 0.0, "(internal) threshold")


def measure() -> None:
    """Prepares in this process and prints its peak memory, which the parent reads."""
    import shutil

    out = Path(MEASURE_OUT.value)
    shutil.rmtree(out, ignore_errors=True)
    _tokenizer()
    peak = {"resident": 0.0, "anonymous": 0.0}
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.02):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            for name, key in (("resident", "VmHWM"), ("anonymous", "RssAnon")):
                found = re.search(rf"{key}:\s+(\d+) kB", status)
                peak[name] = max(peak[name], 1024.0 * int(found[1]) if found else 0.0)

    watcher = threading.Thread(target=sample)
    watcher.start()
    start = time.perf_counter()
    ours(Path(MEASURE.value), out, sequence_length=512, near_duplicates=NEAR_DUPLICATES.value)
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    print(json.dumps(peak | {"seconds": seconds}))


def steps(work: Path) -> None:
    """Time to the first batch, from opening the prepared data, at the first and at a late step."""
    from gemma_keras.data.pipeline import PreparedSplit, batches

    folder = _prepared(work)
    times: dict[int, list[float]] = {0: [], 1_000_000: []}
    next(batches(PreparedSplit.load(folder), start_step=0, steps=1, batch_rows=BATCH_ROWS, seed=0))
    for _ in range(15):
        for step, taken in times.items():
            start = time.perf_counter()
            next(batches(PreparedSplit.load(folder), start_step=step, steps=None, batch_rows=BATCH_ROWS, seed=0))
            taken.append(time.perf_counter() - start)
    early, late = (statistics.median(taken) for taken in times.values())
    print(f"\n## First batch (B={BATCH_ROWS}, T={SEQUENCE_LENGTH}), median of 15\n"
          f"step 0: {early * 1e3:.1f} ms, step 1,000,000: {late * 1e3:.1f} ms, ratio {late / early:.2f} "
          f"(required: at most {GATE['late_step']})")  # fmt: skip


def batches(work: Path) -> None:
    """Tokens per second that the batches bring when nothing else is done."""
    from gemma_keras.data import pipeline

    split = pipeline.PreparedSplit.load(_prepared(work))
    stream = pipeline.batches(split, start_step=0, steps=None, batch_rows=BATCH_ROWS, seed=0)
    for _ in range(10):
        next(stream)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(60):
            next(stream)
        rates.append(60 * BATCH_ROWS * SEQUENCE_LENGTH / (time.perf_counter() - start))
    print(f"\n## Batches (B={BATCH_ROWS}, T={SEQUENCE_LENGTH}), median of 5 x 60\n"
          f"{statistics.median(rates):,.0f} tokens/s (required: {GATE['tokens_per_second']:,})")  # fmt: skip


def _prepared(work: Path) -> Path:
    root, out = work / "steps", work / "steps_out"
    if not out.exists():
        write_rows(root / "belle" / "rows.jsonl", ROWS.value)
        ours(root, out, sequence_length=SEQUENCE_LENGTH)
    return out / "train"


def write_rows(path: Path, count: int) -> Path:
    """Writes `count` different rows in Belle's schema; the same ones for the same sentences."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = _sentences()
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = f"{rng.choice(sentences)}（{number}）{rng.choice(sentences)}"
            length = rng.lognormvariate(4.8, 0.6)
            parts: list[str] = []
            while sum(map(len, parts)) < length:
                parts.append(rng.choice(sentences))
            row = {"instruction": question, "input": "", "output": "".join(parts)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _sentences() -> list[str]:
    texts = sorted(Path(ROOT.value or builtin.CORPUS).glob("cluecorpussmall/**/*.txt"))
    found = re.findall(r"[^。！？\n]{6,60}[。！？]", "".join(path.read_text(encoding="utf-8") for path in texts))
    return sorted(set(found))


def _tokenizer() -> Tokenizer:
    return Tokenizer(TOKENIZER.value or builtin.TOKENIZER)


def _fast_tokenizer(folder: Path) -> Any:
    """The same tokenizer as transformers reads it."""
    from transformers import AutoTokenizer

    from gemma_keras.export.tokenizer_files import write_tokenizer_files
    from gemma_keras.text.templates import TEMPLATES

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_files(_tokenizer(), TEMPLATES["gemmalm_zh"], folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.is_fast
    return tokenizer


if __name__ == "__main__":
    app.run(lambda argv: measure() if MEASURE.value else main(argv))
