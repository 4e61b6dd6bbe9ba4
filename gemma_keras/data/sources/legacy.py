"""The corpora that are known by name: where they lie, and how a raw row of each becomes records.

To add one, write a function `row -> records` and a line of `SOURCES`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import CorpusConfig
from gemma_keras.data.readers import SUFFIXES, read_file, read_hub
from gemma_keras.data.records import BadRow, ChatRecord, Quarantined, Record, SkippedRow, TextRecord, validate
from gemma_keras.text.templates import parse_rendered

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A corpus.

    Attributes:
        name: what configurations call it.
        read: a raw row to its records; raises BadRow or SkippedRow.
        places: globs under a data root, of which the first that matches anything is read.
        hub_id: where it is published.
        licence: as its publisher states it.
        whole_text: a `.txt` file is one document, not one a line.
    """

    name: str
    read: Callable[[Row], list[Record]]
    places: tuple[str, ...]
    hub_id: str = ""
    licence: str = ""
    whole_text: bool = False


@dataclass(slots=True, kw_only=True)
class SourceRow:
    """One raw row: its records, or the rule that skips it, or why it is quarantined."""

    file: str
    row: int
    records: list[Record]
    skipped: str = ""
    quarantined: Quarantined | None = None


def find_files(config: CorpusConfig, root: Path) -> list[Path]:
    """The files of a corpus, sorted by path.

    Raises:
        UserError: there are none; it names the places that were looked at.
    """
    source = get_source(config.name)
    places = (config.path,) if config.path else source.places
    for place in places:
        files = _matching(place, root)
        if files:
            return files
    looked = ", ".join(str(root / place) for place in places)
    raise UserError(
        f"no files of corpus {config.name!r} ({', '.join(SUFFIXES)}) in {looked}; set data.root to the folder of corpora, "
        "or the corpus's path or hub"
    )


def get_source(name: str) -> Source:
    """The entry of `SOURCES`.

    Raises:
        UserError: there is none of this name.
    """
    if name not in SOURCES:
        raise UserError(f"no corpus is called {name!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def read_corpus(config: CorpusConfig, root: Path) -> Iterator[SourceRow]:
    """Every row of a corpus, in the order of its files, each with its validated records or what is wrong with it."""
    source = get_source(config.name)
    if config.hub:
        yield from (_source_row(source, f"hub:{config.hub}", *read) for read in read_hub(config.hub))
        return
    for path in find_files(config, root):
        file = shown_path(path, root)
        yield from (_source_row(source, file, *read) for read in read_file(path, source.whole_text))


def shown_path(path: Path, root: Path) -> str:
    """A source file as reports and row ids name it: relative to the data root where it lies within."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _source_row(source: Source, file: str, number: int, row: Row | None, reason: str) -> SourceRow:
    try:
        if row is None:
            raise BadRow(reason)
        records = source.read(row)
        for part, record in enumerate(records):
            record.source = source.name
            record.id = f"{source.name}/{file}:{number}" + (f"#{part}" if len(records) > 1 else "")
            validate(record)
    except BadRow as error:
        return SourceRow(
            file=file, row=number, records=[], quarantined=Quarantined(file=file, row=number, reason=str(error))
        )
    except SkippedRow as rule:
        return SourceRow(file=file, row=number, records=[], skipped=str(rule))
    return SourceRow(file=file, row=number, records=records)


def _matching(place: str, root: Path) -> list[Path]:
    base = root / place
    if base.is_file():
        return [base]
    if base.is_dir():
        candidates = base.rglob("*")
    else:
        # The root itself may hold characters that a pattern would give a meaning.
        start = Path(Path(place).anchor) if Path(place).is_absolute() else root
        candidates = start.glob(str(Path(place).relative_to(Path(place).anchor)))
    return sorted(
        path
        for path in candidates
        if path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _text(row: Row, *keys: str) -> str:
    """The string under the first of `keys` that the row has."""
    for key in keys:
        if row.get(key) is not None:
            if not isinstance(row[key], str):
                raise BadRow(f"{key} is {type(row[key]).__name__}, not a string")
            return row[key]
    raise BadRow(f"no {' or '.join(keys)}")


def _optional_text(row: Row, *keys: str) -> str:
    return _text(row, *keys) if any(row.get(key) is not None for key in keys) else ""


def _answer(question: str, answer: str, kind: str) -> list[Record]:
    return [
        ChatRecord(messages=[{"role": "user", "content": question}, {"role": "model", "content": answer}], type=kind)
    ]


# Translated Alpaca rows say "no input" in words, and some repeat the label that goes before the input.
_NO_INPUT = re.compile(
    r"\W*(&lt;|<)?\s*(无|无输入|无需输入|没有输入|不需要输入|noinput|no input)\s*(&gt;|>)?\W*", re.IGNORECASE
)
_INPUT_LABEL = re.compile(r"\s*#*\s*输入\s*[:：]\s*")


def _instruction(row: Row) -> list[Record]:
    question = _text(row, "instruction", "instruction_zh")
    given = _optional_text(row, "input", "input_zh")
    if given.strip() and not _NO_INPUT.fullmatch(given):
        given = _INPUT_LABEL.sub("", given, count=1) if _INPUT_LABEL.match(given) else given
        question = f"{question.rstrip()}\n\n所给内容：\n{given}"
    return _answer(question, _text(row, "output", "output_zh"), "instruction")


def _belle_chat(row: Row) -> list[Record]:
    questions, answers = row.get("input"), row.get("output")
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        raise BadRow("input and output are not lists of equal length")
    messages = []
    for question, answer in zip(questions, answers, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "model", "content": answer}]
    return [ChatRecord(messages=messages, type="dialogue")]


_BELLE_TURN = re.compile(r"<s>(Human|Assistant): (.*?)\n?</s>", re.DOTALL)


def _belle_csv(row: Row) -> list[Record]:
    text = _text(row, "text").strip()
    turns = list(_BELLE_TURN.finditer(text))
    if not turns or "".join(turn[0] for turn in turns) != text:
        raise BadRow("text is not made of <s>Human: ...</s><s>Assistant: ...</s>")
    roles = {"Human": "user", "Assistant": "model"}
    return [ChatRecord(messages=[{"role": roles[turn[1]], "content": turn[2]} for turn in turns], type="instruction")]


def _news_commentary(row: Row) -> list[Record]:
    pair = row.get("translation") or row
    if not isinstance(pair, dict):
        raise BadRow(f"translation is {type(pair).__name__}, not an object")
    english, chinese = _text(pair, "en"), _text(pair, "zh")
    if not english.strip() or not chinese.strip():
        raise SkippedRow("empty")
    return _answer(f"把下面这段中文译成英文：\n{chinese}", english, "translation") + _answer(
        f"把下面这段英文译成中文：\n{english}", chinese, "translation"
    )


def _hc3_chinese(row: Row) -> list[Record]:
    question, answers = _text(row, "question"), row.get("chatgpt_answers")
    if not isinstance(answers, list):
        raise BadRow("chatgpt_answers is not a list")
    if not answers:
        raise SkippedRow("no_answer")
    return _answer(question, answers[0], "dialogue")


def _firefly(row: Row) -> list[Record]:
    if _text(row, "kind") != "StoryGeneration":
        raise SkippedRow("other_kind")
    return _answer(f"按照下面的要求讲一个故事：\n{_text(row, 'input')}", _text(row, "target"), "story_generation")


def _chinese_modern_poetry(row: Row) -> list[Record]:
    return _answer(_text(row, "prompt"), _text(row, "response"), "modern_poetry_creation")


def _chinese_poetry(row: Row) -> list[Record]:
    title, form = _text(row, "context").strip(), _text(row, "instruction").strip()
    return _answer(f"请以“{title}”为题，作{form}一首。", _text(row, "response"), "ancient_poetry_creation")


def _classical_modern(row: Row) -> list[Record]:
    return _answer(
        f"用现代汉语解释下面这段古文：\n{_text(row, 'inputs')}", _text(row, "truth"), "classical_translation"
    )


def _gemmalm_chinese(row: Row) -> list[Record]:
    try:
        messages = parse_rendered(_text(row, "text"))
    except ValueError as error:
        raise BadRow(str(error)) from None
    return [ChatRecord(messages=messages, type=_text(row, "type"))]


def _plain_text(row: Row) -> list[Record]:
    return [TextRecord(text=_text(row, "text").strip())]


def _zh_wiki(row: Row) -> list[Record]:
    if row.get("paragraphs") is None:
        return _plain_text(row)
    paragraphs = row["paragraphs"]
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, dict) for paragraph in paragraphs):
        raise BadRow("paragraphs is not a list of objects")
    return [TextRecord(text=_text(paragraph, "context").strip()) for paragraph in paragraphs]


def _messages(row: Row) -> list[Record]:
    if not isinstance(row.get("messages"), list):
        raise BadRow("messages is not a list")
    roles = {"assistant": "model"}
    messages = []
    for message in row["messages"]:
        if not isinstance(message, dict):
            raise BadRow("a message is no object")
        role = _text(message, "role")
        messages.append({"role": roles.get(role, role), "content": _text(message, "content")})
    return [ChatRecord(messages=messages, type=_optional_text(row, "type") or "dialogue")]


def _source(name: str, read: Callable[[Row], list[Record]], *places: str, **more: Any) -> Source:
    return Source(name=name, read=read, places=places or (name,), **more)


RESEARCH = "research use; see the publisher"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _source("belle", _instruction, "belle", "belle_school_math", hub_id="BelleGroup/train_1M_CN", licence=RESEARCH),
        _source("belle_chat", _belle_chat, "belle_chat", "belle_sample_chinese_vicuna/chat", licence=RESEARCH),
        _source("belle_csv", _belle_csv, "belle_csv", "belle_llama_chinese_csv", licence=RESEARCH),
        _source("alpaca_gpt4_zh", _instruction, hub_id="silk-road/alpaca-data-gpt4-chinese", licence="CC BY-NC 4.0"),
        _source("alpaca_chinese", _instruction, "alpaca_chinese", "alpaca_chinese_carbonz0", licence="CC BY-NC 4.0"),
        _source(
            "news_commentary", _news_commentary, "news_commentary", "news_commentary_zh_en/train*.jsonl",
            hub_id="Helsinki-NLP/news_commentary", licence=RESEARCH,
        ),
        _source("hc3_chinese", _hc3_chinese, hub_id="Hello-SimpleAI/HC3-Chinese", licence="CC BY-SA 4.0"),
        _source("firefly", _firefly, hub_id="YeungNLP/firefly-train-1.1M", licence=RESEARCH),
        _source("chinese_modern_poetry", _chinese_modern_poetry, hub_id="Iess/chinese_modern_poetry", licence=RESEARCH),
        _source("chinese_poetry", _chinese_poetry, hub_id="ddnoodle/chinese_poetry", licence=RESEARCH),
        _source("classical_modern", _classical_modern, hub_id="HistoryTrans/Dataset", licence=RESEARCH),
        _source("gemmalm_chinese", _gemmalm_chinese, "gemmalm_chinese/stage1/data_final/valid.json", licence="none stated"),
        _source("zh_wiki", _zh_wiki, licence="CC BY-SA", whole_text=True),
        _source("cluecorpussmall", _plain_text, licence=RESEARCH),
        _source("plain_text", _plain_text, "plain_text", "pretrain_jsonl", whole_text=True),
        _source("messages", _messages),
    )
}  # fmt: skip
