"""The builtin tokenizer and the training of others: Gemma's ids, lossless text, the same pieces again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece as spm

from gemma_keras import builtin
from gemma_keras.builtin import tokenizer
from gemma_keras.config.errors import UserError


@pytest.fixture(scope="module")
def processor() -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_file=str(builtin.TOKENIZER))


def pieces(processor: spm.SentencePieceProcessor) -> list[str]:
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


def test_ids_are_gemmas(processor: spm.SentencePieceProcessor) -> None:
    assert processor.vocab_size() == 2560
    assert (processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id()) == (0, 1, 2, 3)
    assert processor.piece_to_id("<mask>") == 4
    assert processor.piece_to_id("<start_of_turn>") == 106 and processor.piece_to_id("<end_of_turn>") == 107
    assert all(processor.is_control(i) for i in range(3)) and processor.is_unknown(3)
    # what follows the turn tokens in Gemma's own vocabulary, as far as the runs of spaces
    assert [processor.piece_to_id("\n" * n) for n in range(1, 32)] == list(range(108, 139))
    assert [processor.piece_to_id("\u2581" * n) for n in range(2, 32)] == list(range(139, 169))


def test_size_on_disk() -> None:
    assert builtin.TOKENIZER.stat().st_size < 150_000


def test_runs_of_newlines_and_spaces_are_one_piece(processor: spm.SentencePieceProcessor) -> None:
    assert processor.encode("\n\n\n") == [110]
    assert processor.encode("    ") == [141]
    assert processor.encode("\n")[0] == 108


def test_digits_are_split_and_no_dummy_prefix_is_added(processor: spm.SentencePieceProcessor) -> None:
    assert processor.encode("2024", out_type=str) == list("2024")
    assert processor.encode("你", out_type=str)[0][0] == "你"
    assert not any(len(p) > 1 and any(c.isdigit() for c in p) for p in pieces(processor)[tokenizer.FIRST_LEARNT_ID :])


def test_unknown_characters_fall_back_to_bytes(processor: spm.SentencePieceProcessor) -> None:
    ids = processor.encode("😀🧬")
    assert all(processor.is_byte(i) for i in ids) and processor.decode(ids) == "😀🧬"


def test_every_builtin_text_round_trips(processor: spm.SentencePieceProcessor) -> None:
    paths = sorted(builtin.CORPUS.rglob("*.*"))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for part in (text, *text.splitlines()):
            ids = processor.encode(part)
            assert processor.decode(ids) == part and processor.unk_id() not in ids


def read(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def strings(value: Any) -> Iterator[str]:
    """Every text of a JSON value, in order, but what only tells rows apart."""
    if isinstance(value, str):
        yield value
    else:
        for item in [v for k, v in value.items() if k not in ("uuid", "kind")] if isinstance(value, dict) else value:
            yield from strings(item)


def texts() -> Iterator[str]:
    """What the builtin tokenizer is trained on: hand-written text but the held-out rows, the wording that the generated
    rows are composed of, and few of these: more would spend the vocabulary on whole sentences of the templates.
    """
    for path in sorted(builtin.CORPUS.rglob("handwritten*")):
        yield from [path.read_text(encoding="utf-8")] if path.suffix == ".txt" else strings(read(path))
    yield (Path(__file__).parent / "wording.txt").read_text(encoding="utf-8")
    belle, alpaca = (read(builtin.CORPUS / name / "generated.json") for name in ("belle", "alpaca_gpt4_zh"))
    yield from strings(list(zip(belle, alpaca))[:100])
    documents = (builtin.CORPUS / "cluecorpussmall/generated.txt").read_bytes()
    yield documents[: documents.index(b"\n", 20_000)].decode()


def test_training_again_gives_the_committed_pieces(processor: spm.SentencePieceProcessor, tmp_path: Path) -> None:
    tokenizer.train_tokenizer(texts(), processor.vocab_size(), tmp_path / "again.model")
    again = spm.SentencePieceProcessor(model_file=str(tmp_path / "again.model"))
    assert pieces(again) == pieces(processor)


def test_held_out_rows_are_not_trained_on() -> None:
    trained_on = "\n".join(texts())
    assert "停水" not in trained_on and "<start_of_turn>" not in trained_on


def test_more_characters_than_pieces(tmp_path: Path) -> None:
    """Rare characters give way to words in a small vocabulary, and their text still round-trips."""
    alphabet = "".join(chr(0x4E00 + i) for i in range(3000))
    texts = [
        alphabet,
        *(["中国人民在春天里学习"] * 50),
        *(f"{a}{b}" * 3 for a in "天地人和大小" for b in alphabet[:80]),
    ]
    tokenizer.train_tokenizer(texts, 1000, tmp_path / "small.model")
    small = spm.SentencePieceProcessor(model_file=str(tmp_path / "small.model"))
    learnt = pieces(small)[tokenizer.FIRST_LEARNT_ID :]
    assert 0.3 * len(learnt) < sum(len(piece) == 1 for piece in learnt) <= 0.86 * len(learnt)
    for text in (alphabet, "a b  c 1", "x = {'y': 2}\n\tz"):
        assert small.decode(small.encode(text)) == text


@pytest.mark.parametrize(("texts", "size"), [(["很少的字"], 4096), ([], 4096), (["字"], 500)])
def test_impossible_training_is_told_in_one_sentence(texts: list[str], size: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer of"):
        tokenizer.train_tokenizer(texts, size, tmp_path / "none.model")
    assert not list(tmp_path.iterdir())
