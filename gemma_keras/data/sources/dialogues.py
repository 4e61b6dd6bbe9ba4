"""Corpora of conversations of several turns, and the generic schemas of such files."""

import re
from functools import partial
from itertools import cycle
from typing import Any

from gemma_keras.data.records import BadRow, ChatRecord, Record, SkippedRow
from gemma_keras.data.sources.base import Corpus, Row, answer, column, list_of, optional_text, text
from gemma_keras.data.sources.turns import (
    NO_ANSWER,
    ONE_SIDED,
    MarkedTurn,
    Turn,
    columns,
    conversation,
    exchange,
    is_learnt,
    marked_turns,
    read_turn,
    with_input,
)
from gemma_keras.text.templates import parse_rendered


def _dialogue(row: Row) -> list[Record]:
    """Turns {"from", "value"} or {"role", "content"}, under any of three keys; a system text may stand beside them."""
    key = next((key for key in ("conversations", "messages", "conversation") if row.get(key) is not None), "messages")
    turns = [read_turn(turn) for turn in list_of(row, key, dict)]
    system = optional_text(row, "system")
    return conversation([("system", system), *turns], optional_text(row, "type") or "dialogue")


def _rounds(row: Row) -> list[Record]:
    turns: list[Turn | MarkedTurn] = []
    for said in list_of(row, "conversation", dict):
        turns += [("human", text(said, "human")), ("assistant", text(said, "assistant"), is_learnt(said))]
    return conversation(turns, "dialogue")


_MULTILANG_TURN = re.compile(r"^<\|(user|bot)\|>:", re.MULTILINE)


def _multilang(row: Row) -> list[Record]:
    return conversation(marked_turns(text(row, "text"), _MULTILANG_TURN), "dialogue")


def _history(row: Row) -> list[Record]:
    instruction = optional_text(row, "instruction", "prompt", "question")
    given = text(row, "input", "query") if not instruction else optional_text(row, "input", "query")
    return exchange(row, "dialogue", with_input(instruction, given), "output", "response", "answer")


_BELLE_TURN = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)


def _belle_multiturn(row: Row) -> list[Record]:
    turns = marked_turns(text(row, "instruction"), _BELLE_TURN)
    if turns[-1] == ("Assistant", ""):  # the reply that output holds
        turns.pop()
    return conversation([*turns, ("Assistant", text(row, "output"))], "dialogue")


def _hc3_chinese(row: Row) -> list[Record]:
    question, answers = text(row, "question"), list_of(row, "chatgpt_answers", str)
    if not answers:
        raise SkippedRow(NO_ANSWER)
    return answer(question, answers[0], "dialogue")


_REDGPT_TURN = re.compile(
    r"^[ \t]*(Human|Assistant)(?:[(（][^)）\n]{0,10}[)）])?[ \t]*[:：]", re.MULTILINE | re.IGNORECASE
)
_REFGPT_TURN = re.compile(
    r"(?:\A|(?<=\s))<(user|human|assistant)(?: ?\d{1,3})?>[ \t]{0,3}[:：]?"
    r"(?:[ \t]{0,3}[(（](?:字数要求|word count)[^)）]{0,40}[)）])?",
    re.IGNORECASE,
)


def _about_passage(marker: re.Pattern[str], row: Row) -> list[Record]:
    """A conversation with the passage that it is about as its system turn."""
    said = text(row, "dialogue").strip().removeprefix("<start_chat>").removesuffix("<end_chat>")
    return conversation([("system", text(row, "reference")), *marked_turns(said, marker)], "reading")


def _naturalconv(row: Row) -> list[Record]:
    return conversation(zip(cycle(("user", "model")), list_of(row, "content", str), strict=False), "dialogue")


_MOSS_PLUGINS = {"Inner Thoughts": "思考", "Commands": "调用", "Tool Responses": "结果"}
_MOSS_MARKER = re.compile(r"\A<\|[\w ]{1,30}\|>:")
_MOSS_END = re.compile(r"<eo[a-z]>\Z")


def _moss_turns(row: Row) -> list[dict[str, str]]:
    """The turns, each with its fields freed from their markers; fields that say None are left out."""
    chat = row.get("chat")
    if not isinstance(chat, dict):
        raise BadRow(f"chat is {type(chat).__name__}, not an object")
    turns = []
    number = 1
    while chat.get(f"turn_{number}") is not None:
        turn = chat[f"turn_{number}"]
        if not isinstance(turn, dict):
            raise BadRow(f"turn_{number} is {type(turn).__name__}, not an object")
        fields = {key: _moss_field(text(turn, key)) for key in ("Human", "MOSS")}
        plugins = {key: _moss_field(optional_text(turn, key)) for key in _MOSS_PLUGINS}
        turns.append(fields | {key: said for key, said in plugins.items() if said not in ("", "None")})
        number += 1
    return turns


def _moss_field(said: str) -> str:
    return _MOSS_END.sub("", _MOSS_MARKER.sub("", said.strip())).strip()


def _moss_kind(row: Row) -> str:
    return "plugins" if any(key in turn for turn in _moss_turns(row) for key in _MOSS_PLUGINS) else "plain"


def _moss(row: Row) -> list[Record]:
    turns: list[Turn] = []
    for turn in _moss_turns(row):
        steps = [f"【{label}】{turn[key]}" for key, label in _MOSS_PLUGINS.items() if key in turn]
        turns += [("user", turn["Human"]), ("model", "\n".join([*steps, turn["MOSS"]]))]
    return conversation(turns, "dialogue")


_oasst_tree = column("message_tree_id")


def _oasst_kind(row: Row) -> str:
    prompt = row.get("prompt")
    return text(prompt if isinstance(prompt, dict) else row, "lang")


def _oasst(rows: list[Row]) -> list[Record]:
    """Of a tree of messages the one path that goes on with the best reply, and with a question that has a reply."""
    _oasst_tree(rows[0])
    replies = _oasst_replies(rows)
    turns: list[Turn] = []
    seen: set[str] = set()
    message = _best(replies[""], replies, seen)
    while message is not None:
        turns.append((text(message, "role"), text(message, "text")))
        seen.add(text(message, "message_id"))
        message = _best(replies.get(text(message, "message_id"), []), replies, seen)
    if not turns:
        raise SkippedRow(ONE_SIDED)
    return conversation(turns, "dialogue")


def _oasst_replies(rows: list[Row]) -> dict[str, list[Row]]:
    """The messages by the id of the one that they reply to; under "" the root."""
    replies: dict[str, list[Row]] = {}
    prompt = rows[0].get("prompt")
    if isinstance(prompt, dict):
        replies[""] = [prompt]
        unread = [prompt]
        while unread:
            message = unread.pop()
            below = list_of(message, "replies", dict) if message.get("replies") is not None else []
            replies[text(message, "message_id")] = below
            unread += below
    else:
        for row in rows:
            replies.setdefault(optional_text(row, "parent_id"), []).append(row)
    if "" not in replies:
        raise BadRow("no message of the tree is its root")
    return replies


def _best(messages: list[Row], replies: dict[str, list[Row]], seen: set[str]) -> Row | None:
    """The message of the best rank that was neither deleted nor rejected; a question without replies only if need be.

    `seen` are the ids on the path so far: damaged trees may lead back to them.
    """

    def order(message: Row) -> tuple[bool, float]:
        unanswered = message.get("role") == "prompter" and not replies.get(text(message, "message_id"))
        rank: Any = message.get("rank")
        return unanswered, rank if isinstance(rank, int | float) else float("inf")

    sound = [
        message
        for message in messages
        if not message.get("deleted") and message.get("review_result") is not False
        if text(message, "message_id") not in seen
    ]
    return min(sound, key=order, default=None)


def _smile(rows: list[Row]) -> list[Record]:
    return conversation(map(read_turn, rows), "counselling")


def _gemmalm_chinese(row: Row) -> list[Record]:
    try:
        messages = parse_rendered(text(row, "text"))
    except ValueError as error:
        raise BadRow(str(error)) from None
    return [ChatRecord(messages=messages, type=text(row, "type"))]


_SHAREGPT = "conversations: [{from, value}]"
_SHAREAI = "conversation: [{human, assistant}]"
_PASSAGE = "reference, dialogue"
_SAMPLES = "sharegpt_format_samples/"
_MNBVC_SHAREGPT = "github:pany8125/ShareGPTQAExtractor-mnbvc"
_THE_FILES = "the file's"
_MARKS = "; weight, loss or train of a turn, 0 or false where it is not to be learnt"

SOURCES: tuple[Corpus, ...] = (
    Corpus(name="sharegpt", read=_dialogue, licence=_THE_FILES,
           schema=f"{_SHAREGPT}, system and type where there are any{_MARKS}"),
    Corpus(name="messages", read=_dialogue, licence=_THE_FILES,
           schema=f"messages: [{{role, content}}], system and type where there are any{_MARKS}"),
    Corpus(name="history", read=_history, type="dialogue", licence=_THE_FILES,
           schema="instruction, prompt or question; input or query; output, response or answer; "
           "history: [[question, answer]] or [{role, content}]; system"),
    Corpus(name="sharegpt_zh", read=_dialogue, licence="Apache-2.0", hub_id="github:shibing624/MedicalGPT", schema=_SHAREGPT),
    Corpus(name="sharegpt_cn", read=_rounds, type="dialogue", places=("sharegpt_cn", "sharegpt_cn_firefly_format"),
           hub_id="shareAI/shareGPT_cn", licence="Apache-2.0", schema=_SHAREAI),
    Corpus(name="sharegpt_90k", read=_rounds, type="dialogue", licence="Apache-2.0",
           places=("sharegpt_90k", f"{_SAMPLES}common_*_sample_230805.json"),
           hub_id="shareAI/ShareGPT-Chinese-English-90k", schema=f"conversation_id, category, {_SHAREAI}"),
    Corpus(name="sharegpt_vicuna", read=_dialogue, places=("sharegpt_vicuna", f"{_SAMPLES}*_sample_230629.json"),
           licence="MIT", hub_id=_MNBVC_SHAREGPT, schema=f"id, {_SHAREGPT}"),
    Corpus(name="sharegpt_multilang", read=_multilang, type="dialogue", licence="MIT", hub_id=_MNBVC_SHAREGPT,
           places=("sharegpt_multilang", f"{_SAMPLES}multilang_*.json"), schema="id, lang, text: <|user|>: ... <|bot|>: ..."),
    Corpus(name="baiduzhidao", read=columns("dialogue", ("input",), ("output",)), type="dialogue", licence="MIT",
           places=("baiduzhidao", f"{_SAMPLES}baiduzhidao*.jsonl"), hub_id=_MNBVC_SHAREGPT, schema="input, output"),
    Corpus(name="firefly_dialogues", read=_rounds, type="dialogue", hub_id="YeungNLP/moss-003-sft-data",
           places=("firefly_dialogues", "sharegpt_cn_firefly_format"), schema=f"conversation_id, category, {_SHAREAI}, dataset"),
    Corpus(name="llama3_chinese_sharegpt", read=_dialogue, places=("llama3_chinese_sharegpt", "sharegpt_zh"),
           hub_id="zhichen/Llama3-Chinese-Dataset", schema=_SHAREGPT),
    Corpus(name="belle_multiturn", read=_belle_multiturn, type="dialogue", hub_id="BelleGroup/multiturn_chat_0.8M",
           licence="GPL-3.0, research use", schema="instruction: Human:...\\nAssistant:...\\n..., output"),
    Corpus(name="hc3_chinese", read=_hc3_chinese, type="dialogue", hub_id="Hello-SimpleAI/HC3-Chinese:all",
           licence="CC BY-SA 4.0", schema="question, human_answers, chatgpt_answers: [str]"),
    Corpus(name="refgpt_fact", read=partial(_about_passage, _REFGPT_TURN), type="reading", licence="Apache-2.0",
           hub_id="Mutonix/RefGPT-Fact", schema=f"{_PASSAGE}: <user> ... <assistant> ..."),
    Corpus(name="redgpt", read=partial(_about_passage, _REDGPT_TURN), type="reading", licence="Apache-2.0",
           hub_id="github:DA-southampton/RedGPT", schema=f"{_PASSAGE}: Human: ...\\n\\nAssistant: ..."),
    Corpus(name="naturalconv", read=_naturalconv, type="dialogue", licence="research only; see its own licence",
           schema="dialog_id, document_id, content: [str], by turns"),
    Corpus(name="moss", read=_moss, type="dialogue", places=("moss", "moss_sft"), hub_id="fnlp/moss-003-sft-data",
           licence="CC BY-NC 4.0", kind=_moss_kind, kinds=("plain",),
           schema="chat: {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}, ...}; kinds plain and plugins, "
           "where a reply is 【思考】...\\n【调用】...\\n【结果】...\\nreply"),
    Corpus(name="oasst", read=_oasst, group=_oasst_tree, type="dialogue",
           places=("oasst", "oasst1"), hub_id="OpenAssistant/oasst1", licence="Apache-2.0", kind=_oasst_kind, kinds=("zh",),
           schema="message_id, parent_id, message_tree_id, role, text, lang, rank, deleted, review_result, a tree's rows "
           "together; or message_tree_id, prompt: a message with replies: [message]"),
    Corpus(name="oasst_zh", read=_history, type="dialogue", places=("oasst_zh/*sft*", "oasst_zh"), licence="Apache-2.0",
           hub_id="github:hiyouga/ChatGLM-Efficient-Tuning", schema="instruction, input, output, history: [[question, answer]]"),
    Corpus(name="smile", read=_smile, group=lambda row: "", type="counselling",
           hub_id="github:qiuhuachuan/smile", licence="CC0-1.0", schema="[{role: client or counselor, content}]: one file"),
    Corpus(name="gemmalm_chinese", read=_gemmalm_chinese, kind=column("type"), licence="none stated",
           places=("gemmalm_chinese/stage1/data_final/valid.json",), hub_id="github:Cui-Peng-624/GemmaLM-Chinese",
           schema="text (rendered with gemmalm_zh), type"),
)  # fmt: skip
