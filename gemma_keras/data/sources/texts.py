"""Corpora of documents to pretrain on."""

import json

from gemma_keras.data.records import BadRow, Record, SkippedRow, TextRecord
from gemma_keras.data.sources.base import Corpus, Row, list_of, optional_text, text


def _document(row: Row) -> list[Record]:
    return [TextRecord(text=text(row, "text", "content").strip())]


def _zh_wiki(row: Row) -> list[Record]:
    """An article; or an article's paragraphs, as question-answering sets have them, each of which is a document."""
    if row.get("paragraphs") is None:
        return _document(row)
    return [TextRecord(text=text(paragraph, "context").strip()) for paragraph in list_of(row, "paragraphs", dict)]


def _mnbvc(row: Row) -> list[Record]:
    """A file's paragraphs less the repeated ones; a question and its answer; or a text.

    Schema: https://huggingface.co/datasets/liwu/MNBVC. Where the hub has a file as a column `text`, that is the JSON of
    its paragraphs.
    """
    if row.get("问") is not None:
        return _joined([text(row, "问"), text(row, "答")])
    if row.get("段落") is None:
        body = text(row, "text")
        if not body.lstrip().startswith('[{"行号"'):
            return _document(row)
        try:
            row = {"段落": json.loads(body)}
        except (ValueError, RecursionError):
            raise BadRow("text is neither prose nor the JSON of paragraphs") from None
    return _joined([text(part, "内容") for part in list_of(row, "段落", dict) if part.get("是否重复") is not True])


def _zhihu(row: Row) -> list[Record]:
    """A question and its answer, as one document: Zhihu-KOL's columns, or MNBVC's."""
    if row.get("INSTRUCTION") is None:
        return _mnbvc(row)
    return _joined([text(row, "INSTRUCTION"), optional_text(row, "RESPONSE")])


def _joined(parts: list[str]) -> list[Record]:
    document = "\n".join(part.strip() for part in parts if part.strip())
    if not document:
        raise SkippedRow("empty")
    return [TextRecord(text=document)]


_DOCUMENT = "text | content; or a line each"

SOURCES: tuple[Corpus, ...] = (
    Corpus(
        name="zh_wiki", read=_zh_wiki, type="text", hub_id="wikimedia/wikipedia:20231101.zh", licence="CC BY-SA",
        schema="text; or paragraphs: [{context}]; or a text file an article", text_unit="file",
    ),
    Corpus(name="cluecorpussmall", read=_document, type="text", schema=_DOCUMENT),
    Corpus(
        name="mnbvc", read=_mnbvc, type="text", hub_id="liwu/MNBVC:gov_report", licence="MIT",
        schema="文件名, 段落: [{内容, 是否重复}]; or 问, 答; or text",
    ),
    Corpus(
        name="zhihu", read=_zhihu, type="text", hub_id="wangrui6/Zhihu-KOL",
        schema="INSTRUCTION, RESPONSE; or 问, 答; or text",
    ),
    Corpus(
        name="classical_raw_text", read=_document, type="text", licence="MIT", schema="a text file a chapter",
        text_unit="file",
    ),
    Corpus(
        name="plain_text", read=_document, type="text", places=("plain_text", "pretrain_jsonl"),
        schema="text | content; or a text file a document", text_unit="file",
    ),
    Corpus(name="text", read=_document, type="text", schema=_DOCUMENT),
)  # fmt: skip
