"""The embedded default: a Chinese corpus written for this project and a tiny tokenizer, needed when no data is at hand.

`corpus/` holds the hand-written rows in the raw schemas of the real corpora; `data_root()` adds generated volume.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gemma_keras.builtin import generator, tables
from gemma_keras.builtin.typed_rows import write as write_typed_rows

_HERE = Path(__file__).parent
CORPUS = _HERE / "corpus"
TOKENIZER = _HERE / "tokenizer.model"
HELD_OUT = Path("gemmalm_chinese/stage1/data_final/valid.json")  # under CORPUS and under a data root

_ARTICLES_SHARE = 0.15  # of the generated plain text; the rest is one document a line


def data_root(
    cache: Path | None = None,
    *,
    chat_rows: int = 1500,
    text_bytes: int = 600_000,
    typed_rows: int = 600,
    seed: int = 0,
) -> Path:
    """A folder laid out like a user's data root: the hand-written files and generated volume beside them.

    It is written once, atomically, into `cache` (default: $GEMMA_KERAS_CACHE, else ~/.cache/gemma_keras) under a name
    made of the arguments and of everything that the text depends on, and found there afterwards. `chat_rows` are
    generated, half in Belle's and half in Alpaca's files; `text_bytes` (UTF-8) of plain text; `typed_rows` in every
    corpus of one task (translation, questions, stories, poems, classical Chinese, preferences, titles), and exams with
    a twelfth as many questions a subject.
    """
    if cache is None:
        cache = Path(os.environ.get("GEMMA_KERAS_CACHE") or Path.home() / ".cache" / "gemma_keras")
    root = cache / f"builtin-{_fingerprint(chat_rows, text_bytes, typed_rows, seed)}"
    if root.is_dir():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=cache))
    try:
        partial.chmod(0o755)
        shutil.copytree(
            CORPUS, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("generated*", "ceval", "csl")
        )
        _write_generated(partial, chat_rows, text_bytes, seed)
        write_typed_rows(partial, typed_rows, seed)
        try:
            partial.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def tokenizer_texts() -> Iterator[str]:
    """What the builtin tokenizer is trained on: hand-written text but the held-out rows, and little generated text.

    More of that would spend the vocabulary on whole sentences of the templates.
    """
    for path in sorted(CORPUS.rglob("handwritten*")):
        if path.suffix in (".json", ".jsonl"):
            yield from _strings(path)
        elif path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
    yield from tables.texts()
    for row in generator.chat_rows(200, seed=0):
        yield from row.values()
    yield from generator.text_lines(20_000, seed=0)


def _strings(path: Path) -> Iterator[str]:
    """Every text of a JSON array or of JSON lines, in order."""
    text = path.read_text(encoding="utf-8")
    pending = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    pending.reverse()
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        else:
            items = [v for k, v in value.items() if k not in ("uuid", "kind")] if isinstance(value, dict) else value
            pending.extend(reversed(items))


def _write_generated(root: Path, chat_rows: int, text_bytes: int, seed: int) -> None:
    rows = generator.chat_rows(chat_rows, seed)
    belle = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[::2])
    (root / "belle" / "generated.json").write_text(belle, encoding="utf-8")
    alpaca = json.dumps(rows[1::2], ensure_ascii=False, indent=0)
    (root / "alpaca_gpt4_zh" / "generated.json").write_text(alpaca + "\n", encoding="utf-8")
    size = int(_ARTICLES_SHARE * text_bytes)
    for i, (title, body) in enumerate(generator.articles(size, seed)):
        (root / "zh_wiki" / f"generated_{i:04d}.txt").write_text(f"{title}\n\n{body}\n", encoding="utf-8")
    lines = generator.text_lines(text_bytes - size, seed)
    (root / "cluecorpussmall" / "generated.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _fingerprint(*arguments: int) -> str:
    """Twelve hexadecimal digits over the arguments, the hand-written files, the tables and the code."""
    digest = hashlib.sha256(repr(arguments).encode())
    for path in sorted([*_HERE.glob("*.py"), *_HERE.glob("*tables/*.txt"), *CORPUS.rglob("*.*")]):
        digest.update(path.relative_to(_HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
