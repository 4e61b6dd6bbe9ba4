"""Training of SentencePiece BPE models whose control pieces have Gemma's ids.

Layout of the vocabulary (as in the tokenizer of Gemma 1 and 2, but for the HTML tags that follow the runs of spaces):

    0-3      <pad> <eos> <bos> <unk>
    4-6      <mask> <2mass> [@BOS@]
    7-105    <unused0> ... <unused98>
    106-107  <start_of_turn> <end_of_turn>
    108-138  runs of 1 to 31 newlines
    139-168  runs of 2 to 31 spaces
    169-424  the 256 bytes
    425-     learnt pieces

tests/builtin/test_tokenizer.py trains the builtin model again.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from gemma_keras.config.errors import UserError
from gemma_keras.config.writing import write_whole

LONGEST_RUN = 31  # of newlines or of spaces that is one piece
FIRST_LEARNT_ID = 425
_COVERAGE = 0.9995  # of the characters of a text; the rest falls back to bytes (SentencePiece's advice for Chinese)
_CHARACTER_SHARE = 0.85  # of the learnt pieces at most are single characters, so that a small vocabulary gets words too
# A space without a piece of its own would fall back to the bytes of "\u2581" and come back as that.
_REQUIRED = "\u2581" + "".join(map(chr, range(ord("!"), ord("~") + 1)))
_LONGEST_SENTENCE = 1000  # characters; the trainer silently drops lines beyond its limit, so ours are cut before


def user_defined_symbols() -> list[str]:
    """The pieces 4 to 168, in the order of their ids."""
    control = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99)), "<start_of_turn>", "<end_of_turn>"]
    newlines = ["\n" * n for n in range(1, LONGEST_RUN + 1)]
    spaces = ["\u2581" * n for n in range(2, LONGEST_RUN + 1)]
    return control + newlines + spaces


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, out: Path) -> None:
    """Train a BPE model on `texts` and write it to the file `out`, atomically.

    The same texts in the same order give the same bytes: one thread, no sampling, and no path in the model.
    Raises UserError when the texts cannot fill `vocabulary_size` pieces, or the fixed pieces alone fill it.
    """
    import sentencepiece as spm

    if vocabulary_size < 2 * FIRST_LEARNT_ID:
        raise UserError(
            f"A tokenizer of {vocabulary_size} pieces was asked for, but {FIRST_LEARNT_ID} are fixed (control pieces, "
            f"newlines, spaces, bytes): give a vocabulary size of at least {2 * FIRST_LEARNT_ID}."
        )
    room = int(_CHARACTER_SHARE * (vocabulary_size - FIRST_LEARNT_ID)) - len(_REQUIRED)
    sentences = _without_rare_characters(list(_sentences(texts)), room)
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary_size,
            character_coverage=_COVERAGE,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            required_chars=_REQUIRED,
            user_defined_symbols=user_defined_symbols(),
            max_sentence_length=8 * _LONGEST_SENTENCE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("]", 1)[-1].strip() or "no text was given"
        raise UserError(
            f"A tokenizer of {vocabulary_size} pieces cannot be trained on these texts ({reason}): "
            "give a smaller --config.tokenizer.vocabulary_size, more text, or a tokenizer with --config.tokenizer.path."
        ) from error
    write_whole(out, model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines of the texts, cut to at most `_LONGEST_SENTENCE` characters; newlines are pieces of their own anyway."""
    for text in texts:
        for line in re.split(r"[\n\r]+", text):
            for start in range(0, len(line), _LONGEST_SENTENCE):
                yield line[start : start + _LONGEST_SENTENCE]


def _without_rare_characters(sentences: list[str], room: int) -> list[str]:
    """Cut sentences at all but the `room` most common characters (the trainer takes no coverage below 0.98)."""
    counts = Counter[str]()
    for sentence in sentences:
        counts.update(sentence)
    for character in (" ", *_REQUIRED):
        counts.pop(character, None)
    if len(counts) <= room:
        return sentences
    rare = re.compile("[" + "".join(re.escape(c) for c, _ in counts.most_common()[room:]) + "]+")
    return [part for sentence in sentences for part in rare.split(sentence) if part]
