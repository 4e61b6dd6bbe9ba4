"""Corpora of prompts with a better and a worse answer."""

from typing import Any

from gemma_keras.data.letter_pairs import letter_pair
from gemma_keras.data.records import BadRow, ChoiceRecord, PreferenceRecord, Record, SkippedRow
from gemma_keras.data.sources.base import Corpus, Row, list_of, optional_text, parsed, text, user
from gemma_keras.data.sources.turns import pairs, read_turn, role_of, with_input
from gemma_keras.text.templates import Message


def _turn(value: Any) -> Message:
    if not isinstance(value, dict):
        raise BadRow("a turn is no object")
    name, said, _ = read_turn(value)
    return {"role": role_of(name), "content": said}


def _turns(value: Any) -> list[Message] | None:
    """The turns of a list of them, of a single one, or of their JSON; None where it is something else, such as a text."""
    value = parsed(value)
    turns = value if isinstance(value, list) else [value]
    named = [isinstance(turn, dict) and not turn.keys().isdisjoint(("from", "role")) for turn in turns]
    return [_turn(turn) for turn in turns] if any(named) else None


def _prompt(row: Row) -> list[Message]:
    """A list of turns under `conversations` or `prompt`; or `history`, pairs of question and answer, and a question."""
    prompt = _turns(row.get("prompt") if row.get("conversations") is None else row["conversations"])
    if prompt is None:
        question = with_input(text(row, "prompt", "question", "instruction"), optional_text(row, "input"))
        history = [{"role": role_of(name), "content": said} for name, said, *_ in pairs(row, "history")]
        prompt = [*history, user(question)]
    system = optional_text(row, "system")
    return [{"role": "system", "content": system}, *prompt] if system.strip() else prompt


def _reply(row: Row, *keys: str) -> tuple[list[Message], str]:
    """An answer, and the turns before it if it is a whole conversation."""
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    turns = _turns(value)
    if turns is None:
        return [], text(row, *keys)
    if turns[-1]["role"] != "model":
        raise BadRow(f"{keys[0]} does not end with the model's turn")
    return turns[:-1], turns[-1]["content"]


def _preference(row: Row) -> list[Record]:
    """Every published schema: answers are strings, turns or conversations under `chosen` and `rejected`."""
    before, chosen = _reply(row, "chosen", "response_chosen")
    also_before, rejected = _reply(row, "rejected", "response_rejected")
    if before != also_before:
        raise BadRow("chosen and rejected answer different conversations")
    return _pair(before or _prompt(row), chosen, rejected)


def _ranked(row: Row) -> list[Record]:
    """The best answer against the worst: neighbours in a ranking differ by little, and one pair keeps prompts alike."""
    replies = list_of(row, "output", str)
    if len(replies) < 2:
        raise SkippedRow("one_answer")
    return _pair(_prompt(row), replies[0], replies[-1])


def _pair(prompt: list[Message], chosen: str, rejected: str) -> list[Record]:
    if chosen.strip() == rejected.strip():
        raise SkippedRow("equal_answers")
    return [PreferenceRecord(prompt=prompt, chosen=chosen, rejected=rejected)]


def _unpaired(row: Row) -> list[Record]:
    if not isinstance(row.get("label"), bool):
        raise BadRow("label is neither true nor false")
    raise SkippedRow("unpaired_preference")


def _own_answers(row: Row) -> list[Record]:
    question = ChoiceRecord(
        question=text(row, "question"),
        choices=[text(row, letter) for letter in "ABCD"],
        answer="",
        subject=optional_text(row, "category"),
    )
    return [letter_pair(question, text(row, "model_response"))]


def _source(name: str, schema: str, **more: Any) -> Corpus:
    return Corpus(**{"name": name, "read": _preference, "type": "preference", "schema": schema, **more})


SOURCES: tuple[Corpus, ...] = (
    _source(
        "dpo_en_zh_20k", "conversations: [{from, value}], chosen: {from, value}, rejected: {from, value}",
        hub_id="hiyouga/DPO-En-Zh-20k:zh", licence="Apache-2.0",
    ),
    _source(
        "dpo_zh_medicalgpt",
        "conversations: [{from, value}], chosen, rejected; or system, history, question, response_chosen, response_rejected",
        hub_id="shibing624/DPO-En-Zh-20k-Preference", licence="Apache-2.0",
    ),
    _source("orca_dpo_pairs", "system, question, chosen, rejected", hub_id="Intel/orca_dpo_pairs", licence="Apache-2.0"),
    _source(
        "chinese_dpo_pairs", "system, prompt, chosen, rejected", hub_id="wenbopan/Chinese-dpo-pairs", licence="MIT",
    ),
    _source(
        "ultrafeedback", "prompt, chosen: [{role, content}], rejected: [{role, content}]",
        places=("ultrafeedback", "dpo_ultrafeedback_firefly"), hub_id="HuggingFaceH4/ultrafeedback_binarized",
        licence="MIT",
    ),
    _source(
        "oasst_zh_ranked", "instruction, input, history: [[question, answer]], output: [best, ..., worst]",
        read=_ranked, places=("oasst_zh_ranked", "oasst_zh/oaast_rm_zh.json"), licence="Apache-2.0",
    ),
    _source("kto_mix", "messages: [{role, content}], label: bool", read=_unpaired, hub_id="argilla/kto-mix-15k"),
    _source(
        "ceval_abcd_preference", "category, question, A, B, C, D, model_response", read=_own_answers,
        licence="CC BY-NC-SA 4.0 (questions)",
    ),
    _source("preference", "prompt | question | instruction | conversations [, system, history], chosen, rejected"),
)  # fmt: skip
