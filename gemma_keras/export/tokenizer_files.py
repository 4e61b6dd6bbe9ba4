"""A SentencePiece BPE model as the tokenizer files that transformers reads, written without transformers.

transformers 5 wants `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` beside `tokenizer.model`: from the
model alone it raises, or decodes Chinese into replacement characters.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

from gemma_keras.config.errors import UserError
from gemma_keras.text.foreign_template import ChatTemplate
from gemma_keras.text.jinja_templates import write_jinja
from gemma_keras.text.templates import Template
from gemma_keras.text.tokenizer import Tokenizer

SPACE = "\u2581"  # SentencePiece's sign for a blank
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # SentencePiece.Type in sentencepiece_model.proto


class Piece(NamedTuple):
    """An entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


def write_tokenizer_files(tokenizer: Tokenizer, template: ChatTemplate, out: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and `tokenizer.model` into folder `out`.

    `chat_template.jinja` is the text that the template was found with, or else ours. Beside it, for a template of ours,
    `chat_template_training.jinja` says with `{% generation %}` what carries loss, which trainers of other packages ask for.
    """
    pieces = read_pieces(tokenizer.serialized)
    added = _added_tokens(pieces, tokenizer)
    _write_json(out / "tokenizer.json", tokenizer_json(pieces, added, tokenizer.bos_id))
    chat_template = template.source or (write_jinja(template) if isinstance(template, Template) else "")
    _write_json(out / "tokenizer_config.json", _tokenizer_config(added, chat_template))
    (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8", newline="")
    if isinstance(template, Template):
        marked = write_jinja(template, marked=True)
        (out / "chat_template_training.jinja").write_text(marked, encoding="utf-8")
    (out / "tokenizer.model").write_bytes(tokenizer.serialized)


def require_expressible(tokenizer: Tokenizer) -> None:
    """`UserError` where `tokenizer.json` cannot say what the model does: all but BPE over texts that are taken as they are."""
    model = ModelProto.FromString(tokenizer.serialized)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != TrainerSpec.BPE:
        raise UserError(
            f"{tokenizer.path} is a SentencePiece model of type {TrainerSpec.ModelType.Name(trainer.model_type).lower()}, "
            "but other programs can be given BPE only, which Gemma's is: give a tokenizer that was trained with "
            "model_type=bpe"
        )
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise UserError(
            f"{tokenizer.path} changes texts before it cuts them (normalisation or dropped blanks), which other programs "
            "would not do: give a tokenizer trained with normalization_rule_name=identity, remove_extra_whitespaces=false"
        )


def read_pieces(model: bytes) -> list[Piece]:
    """The vocabulary of a serialised SentencePiece model.

    Its processor does not tell user-defined pieces from learnt ones, the message itself does.
    """
    return [Piece(piece.piece, piece.score, piece.type) for piece in ModelProto.FromString(model).pieces]


def vocabulary(pieces: list[Piece]) -> dict[str, int]:
    """Ids by what Hugging Face's BPE calls the pieces: their texts, but of some bytes the character.

    SentencePiece merges characters whether or not they are pieces, and falls back on bytes afterwards; Hugging Face's BPE
    does it the other way round. So a character that only longer pieces hold, as Gemma's tabs, has to be an entry. Of ASCII
    the byte's id is at hand; any other such character stays bytes there.
    """
    texts = {piece.text for piece in pieces}
    inside = {character for piece in pieces if piece.kind == NORMAL for character in piece.text} - texts

    def name(piece: Piece) -> str:
        character = chr(int(piece.text[1:-1], 16)) if piece.kind == BYTE else ""
        return character if character.isascii() and character in inside else piece.text

    return {name(piece): place for place, piece in enumerate(pieces)}


def bpe_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Pairs to merge, best first, that make the BPE of Hugging Face's tokenizers equal to SentencePiece's.

    SentencePiece keeps scores of results only: it joins the neighbours whose union is the best learnt piece. So every
    way to cut a learnt piece into two entries of the vocabulary is a merge, ranked by the score of the whole. A piece with
    a blank is none, since no text has one by then (and `tokenizer.json` parts a pair by it).
    """
    known = vocabulary(pieces).keys() - {piece.text for piece in pieces if piece.kind != NORMAL}
    learnt = (piece for piece in pieces if piece.kind == NORMAL and " " not in piece.text)
    merges = []
    for text, _, _ in sorted(learnt, key=lambda piece: -piece.score):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in known and right in known:
                merges.append((left, right))
    return merges


def tokenizer_json(pieces: list[Piece], added: list[dict[str, Any]], bos_id: int) -> dict[str, Any]:
    """`tokenizer.json`: byte-fallback BPE over text whose blanks became U+2581, with bos in front.

    The parts are those of transformers/models/gemma/tokenization_gemma.py.
    """
    bos = pieces[bos_id].text
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    single, pair = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    first, second = ({"SpecialToken": {"id": bos, "type_id": place}} for place in range(2))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, single],
            "pair": [first, single, second, pair],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary(pieces),
            # As strings, since tokenizers before 0.20 (transformers 4.44) cannot read pairs.
            "merges": [" ".join(merge) for merge in bpe_merges(pieces)],
        },
    }


def _added_tokens(pieces: list[Piece], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Pieces that are matched before BPE: all but the learnt ones and the bytes. Those that steer the model are special.

    Those with U+2581 are matched in normalised text, where a blank is one already, all others in the text as given. One with
    a blank itself, as a GGUF file calls runs of blanks, is none: SentencePiece never finds it.
    """
    return [
        {
            "id": place,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": SPACE in piece.text,
            "special": place in tokenizer.control_ids,
        }
        for place, piece in enumerate(pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED) and " " not in piece.text
    ]


def _tokenizer_config(added: list[dict[str, Any]], chat_template: str) -> dict[str, Any]:
    """`tokenizer_config.json` for GemmaTokenizer; `chat_template` is there for transformers before 4.43 too."""
    return {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        "padding_side": "left",
        "spaces_between_special_tokens": False,
        "use_default_system_prompt": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # No indentation: it would make Gemma's 256,000 pieces several times slower to write.
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
