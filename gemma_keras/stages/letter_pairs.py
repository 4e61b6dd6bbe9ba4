"""Preference pairs from a model's own answers to multiple-choice questions: its letter alone, rather than its sentence."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_keras.config.errors import require
from gemma_keras.config.sections import DataConfig
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import LetterPairsConfig
from gemma_keras.data.letter_pairs import extract_letter, letter_pair, letter_prompt, stratified_split
from gemma_keras.data.progress import Pace, print_progress
from gemma_keras.data.records import ChoiceRecord, SkippedRow
from gemma_keras.data.sources import locate, read_corpus
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import load_chat_model, resolve_data

VALIDATION_SHARE = 0.2


def run(config: LetterPairsConfig, workdir: Path) -> dict:
    """Asks `model.weights` every question of `data.corpora`; writes train.json, valid.json and replies.jsonl.

    The pairs have the schema of the source `preference`, and are split by subject, a fifth for validation. Replies are
    kept as they come: the same command again asks only what is not answered yet.
    """
    files.begin(workdir, to_dict(config))
    questions = list(_questions(resolve_data(config.data)))
    require(bool(questions), "data.corpora hold no multiple-choice question; name ceval or cmmlu.")
    replies = _replies(config, workdir, questions)
    pairs: list[dict[str, Any]] = []
    dropped = Counter[str]()
    for question in questions:
        try:
            pair = letter_pair(question, replies[question.id])
        except SkippedRow as rule:
            dropped[str(rule)] += 1
            continue
        texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        pairs.append(texts | {"subject": question.subject, "id": question.id})
    held_out = stratified_split([pair["subject"] for pair in pairs], VALIDATION_SHARE, config.data.seed).tolist()
    files.write_json(workdir / "train.json", [pair for pair, out in zip(pairs, held_out) if not out])
    files.write_json(workdir / "valid.json", [pair for pair, out in zip(pairs, held_out) if out])
    letters = [extract_letter(replies[question.id]) for question in questions]
    known = [(letter, question.answer) for letter, question in zip(letters, questions) if question.answer]
    result = {
        "questions": len(questions),
        "right": sum(letter == answer for letter, answer in known) / max(1, len(known)),
        "exactly_a_letter": sum(replies[q.id].strip() == letter != "" for q, letter in zip(questions, letters)),
        "pairs": len(pairs),
        "train": len(pairs) - sum(held_out),
        "valid": sum(held_out),
        "dropped": dict(sorted(dropped.items())),
    }
    files.write_json(workdir / "result.json", result)
    print(json.dumps(result))
    return result


def _questions(data: DataConfig) -> Iterator[ChoiceRecord]:
    for corpus in data.corpora:
        for row in read_corpus(locate(corpus, Path(data.root), data.missing)):
            yield from (record for record in row.records if isinstance(record, ChoiceRecord))


def _replies(config: LetterPairsConfig, workdir: Path, questions: list[ChoiceRecord]) -> dict[str, str]:
    """The model's reply to each question, by the question's id."""
    file = files.JsonLines(workdir / "replies.jsonl")
    kept = file.read()
    file.write(kept)  # without a line that an interruption cut off
    replies: dict[str, str] = {row["id"]: row["reply"] for row in kept}
    left = [question for question in questions if question.id not in replies]
    if not left:
        return replies
    model = load_chat_model(config, workdir)
    pace = Pace("answered", print_progress, len(questions))
    for start in range(0, len(left), config.inference.max_rows):
        batch = left[start : start + config.inference.max_rows]
        for question, reply in zip(batch, model.reply_batch([letter_prompt(q) for q in batch], config.sampling)):
            replies[question.id] = reply
            file.append({"id": question.id, "reply": reply})
        pace.done(len(replies))
    pace.finish(len(replies))
    return replies
