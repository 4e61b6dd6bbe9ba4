"""Corpora of one task each: translation, poetry, understanding, titles and summaries.

Where a corpus that the recipes name is hard to come by, its entry also reads the public one that stands in for it.
"""

import re

from gemma_keras.data.cleaning.rules import contents
from gemma_keras.data.records import BadRow, ChatRecord, Record, SkippedRow
from gemma_keras.data.sources.base import (
    Corpus,
    Row,
    after_request,
    answer,
    column,
    list_of,
    model,
    optional_text,
    text,
    user,
)


def _news_commentary(row: Row) -> list[Record]:
    pair = row if row.get("translation") is None else row["translation"]
    if not isinstance(pair, dict):
        raise BadRow(f"translation is {type(pair).__name__}, not an object")
    english, chinese = text(pair, "en"), text(pair, "zh")
    if not english.strip() or not chinese.strip():
        raise SkippedRow("empty")
    return answer(f"把下面这段中文译成英文：\n{chinese}", english, "translation") + answer(
        f"把下面这段英文译成中文：\n{english}", chinese, "translation"
    )


def _modern_poetry(row: Row) -> list[Record]:
    """A prompt and its response, or the text of a file: lines `title:`, `date:`, an empty one and the poem."""
    if row.get("text") is None:
        return answer(text(row, "prompt"), text(row, "response"), "modern_poetry_creation")
    lines = text(row, "text").split("\n")
    if len(lines) < 2 or not lines[0].startswith("title:") or not lines[1].startswith("date:"):
        raise BadRow("a poem without the lines title: and date:")
    title, poem = lines[0].removeprefix("title:").strip(), "\n".join(lines[2:]).strip()
    if not title or not poem:
        raise SkippedRow("empty")
    return answer(f"请以“{title}”为题，写一首现代诗。", poem, "modern_poetry_creation")


def _classical_verse(title: str, form: str, poem: str) -> list[Record]:
    return answer(f"请以“{' '.join(title.split())}”为题，作{form.strip()}一首。", poem, "ancient_poetry_creation")


def _chinese_poetry(row: Row) -> list[Record]:
    """Title, form and poem; or a row of the collections, whose form is told by its keys and its lines."""
    if row.get("context") is not None:
        return _classical_verse(text(row, "context"), text(row, "instruction"), text(row, "response"))
    if isinstance(row.get("content"), list) and any(isinstance(part, dict) for part in row["content"]):
        return [
            record
            for part in list_of(row, "content", dict)
            for poem in list_of(part, "content", dict)
            for record in _poem(poem, text(part, "type"))
        ]
    return _poem(row)


def _poem(row: Row, form: str = "") -> list[Record]:
    key = next((key for key in ("paragraphs", "content", "para") if row.get(key) is not None), "paragraphs")
    lines = [line.strip() for line in list_of(row, key, str) if line.strip()]
    tune = optional_text(row, "rhythmic")
    if not tune and row.get("title") is None and row.get("author") is None:
        raise SkippedRow("not_a_poem")  # the Analects and the Great Learning: chapters of prose
    if not lines:
        raise SkippedRow("empty")
    if tune:
        return answer(f"请用词牌“{tune}”填词一首。", "\n".join(lines), "ancient_poetry_creation")
    title = optional_text(row, "title") or optional_text(row, "chapter")
    if not title.strip():
        raise BadRow("no title, tune or chapter")
    if key == "para" and "·" in title:
        form = "词"  # Nalan Xingde's: tune and subject
    elif row.get("dynasty") == "yuan":
        form = "元曲"
    return _classical_verse(title, form or verse_form(lines), "\n".join(lines))


_NOTE = re.compile(r"[（(][^（()）]*[)）]|[\[\]]")
_CLAUSE = re.compile(r"[\w□]+")
_METRES = {4: "四言", 5: "五言", 6: "六言", 7: "七言"}


def verse_form(lines: list[str]) -> str:
    """The form of a poem by its clauses: regular ones of 4 or 8 lines of 5 or 7 characters have names of their own.

    >>> verse_form(["白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。"])
    '五言绝句'
    """
    clauses = _CLAUSE.findall(_NOTE.sub("", "\n".join(lines)))
    lengths = {len(clause) for clause in clauses}
    metre = _METRES.get(lengths.pop(), "") if len(lengths) == 1 else ""
    named = {4: "绝句", 8: "律诗"} if metre in ("五言", "七言") else {}
    return metre + named.get(len(clauses), "诗")


_CLASSICAL, _MODERN = "古文：", "现代文："


def _classical_modern(row: Row) -> list[Record]:
    """A passage and its translation; or a text of two lines, one of each."""
    if row.get("text") is None:
        return _into_modern(text(row, "inputs"), text(row, "truth"))
    lines = [line.strip() for line in text(row, "text").split("\n") if line.strip()]
    if len(lines) != 2 or not (lines[0].startswith(_CLASSICAL) and lines[1].startswith(_MODERN)):
        raise BadRow(f"not a line {_CLASSICAL} and a line {_MODERN}")
    return _into_modern(lines[0].removeprefix(_CLASSICAL), lines[1].removeprefix(_MODERN))


def _into_modern(classical: str, modern: str) -> list[Record]:
    return answer(f"用现代汉语解释下面这段古文：\n{classical}", modern, "classical_translation")


_PCLUE_TYPES = {
    "classify": "classification",
    "nli": "classification",
    "anaphora_resolution": "classification",
    "mrc": "reading",
    "generate": "instruction",
}


def _pclue(row: Row) -> list[Record]:
    kind = text(row, "type")
    if kind not in _PCLUE_TYPES:
        raise BadRow(f"type is {kind!r}, none of {', '.join(_PCLUE_TYPES)}")
    return answer(text(row, "input"), text(row, "target"), _PCLUE_TYPES[kind])


_CSL_TASKS = {
    "to title": ("summarization", "title"),
    "to keywords": ("keyword_extraction", "keywords"),
    "to category": ("classification", "category"),
    "to discipline": ("classification", "discipline"),
}


def _csl(row: Row) -> list[Record]:
    task = text(row, "task")
    if task not in _CSL_TASKS:
        raise BadRow(f"task is {task!r}, none of {', '.join(_CSL_TASKS)}")
    type, wording = _CSL_TASKS[task]
    target = text(row, "target")
    return _worded(text(row, "source"), target.replace("_", "、") if wording == "keywords" else target, type, wording)


def _lcsts(row: Row) -> list[Record]:
    return _worded(text(row, "text", "short_text"), text(row, "summary"), "summarization", "summary")


def _worded(body: str, target: str, type: str, wording: str) -> list[Record]:
    return [ChatRecord(messages=[user(body), model(target)], type=type, wording=wording)]


_MODERN_POEMS = "or a text file of lines title:, date:, empty, poem"
_COLLECTIONS = "paragraphs | content | para: [str], title | rhythmic | chapter, author"


def _poem_alone(record: Record) -> list[str]:
    return contents(record)[-1:]


_BITEXT = f"in a text file, lines {_CLASSICAL}… and {_MODERN}…, and a blank one after each pair"

SOURCES: tuple[Corpus, ...] = (
    Corpus(
        name="news_commentary", read=_news_commentary, type="translation",
        places=("news_commentary", "news_commentary_zh_en/train*.jsonl"),
        hub_id="Helsinki-NLP/news_commentary:en-zh", schema="translation: {en, zh}; or en, zh",
        bodies=after_request,
    ),
    Corpus(
        name="chinese_modern_poetry", read=_modern_poetry, type="modern_poetry_creation",
        places=("chinese_modern_poetry", "modern_poetry"), hub_id="Iess/chinese_modern_poetry",
        schema=f"uuid, prompt, response; {_MODERN_POEMS}", text_unit="file", suffixes=(".pt",),
    ),
    Corpus(
        name="chinese_poetry", read=_chinese_poetry, type="ancient_poetry_creation",
        hub_id="ddnoodle/chinese_poetry", schema=f"context, instruction, response; or {_COLLECTIONS}",
        bodies=_poem_alone,
    ),
    Corpus(
        name="chinese_poetry_collections", read=_chinese_poetry, type="ancient_poetry_creation",
        places=("chinese_poetry_collections", "chinese_poetry"), licence="MIT", schema=_COLLECTIONS,
        bodies=_poem_alone,
    ),
    Corpus(
        name="classical_modern", read=_classical_modern, type="classical_translation",
        places=("classical_modern/**/bitext.txt", "classical_modern"), hub_id="HistoryTrans/Dataset",
        schema=f"inputs, truth; or {_BITEXT}", text_unit="paragraph",
        bodies=after_request,
    ),
    Corpus(
        name="niutrans_classical", read=_classical_modern, type="classical_translation",
        places=("niutrans_classical/**/bitext.txt", "classical_modern/**/bitext.txt"), licence="MIT",
        schema=_BITEXT, text_unit="paragraph",
        bodies=after_request,
    ),
    Corpus(
        name="pclue", read=_pclue, hub_id="wbbbbb/pclue", kind=column("type"),
        schema="input, target, answer_choices, type: classify | nli | anaphora_resolution | mrc | generate",
    ),
    Corpus(
        name="csl", read=_csl, kind=column("task"), columns=("task", "source", "target"),
        schema="without header: to title | to keywords | to category | to discipline, source, target",
    ),
    Corpus(
        name="lcsts", read=_lcsts, type="summarization", hub_id="hugcyp/LCSTS",
        licence="research use; apply to the publisher", schema="text | short_text, summary",
    ),
)  # fmt: skip
