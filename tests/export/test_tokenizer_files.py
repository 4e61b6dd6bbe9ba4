"""The exported tokenizer in transformers against ours."""

import json
import os
import random
import struct
from pathlib import Path

import pytest
import tokenizers
import transformers

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.export.tokenizer_files import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    USER_DEFINED,
    Piece,
    bpe_merges,
    read_pieces,
    require_expressible,
    vocabulary,
    write_tokenizer_files,
)
from gemma_keras.text.templates import TEMPLATES
from gemma_keras.text.tokenizer import IMAGE_ENTRY, Tokenizer

GEMMA_VARIABLE = (
    "GEMMA_KERAS_TOKENIZER"  # Gemma's tokenizer.model; tokenizer.json beside it is Google's, where there is one
)
WHITE = [
    "\t",
    "\n",
    " ",
    "\r",
    "\x0b",
    "\x0c",
    "\x00",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\u200b",
    SPACE,
]

TEXTS = [
    "", " ", "\n", "\t", "你好，世界！", "  两个空格\n\n\n三个换行 123", " 前后空格 ", "😀 ｆｕｌｌ\t１２", "龘龘龘", "\r\n\x00",
    " " * 70 + "x" + "\n" * 40, "<0x0A> ▁▁ a ▁b", "2024年12月31日", "Hello  World   \u3000全角　空格", "a" * 99, "哈" * 50,
    "<start_of_turn>user\n你好\n<end_of_turn><eos>\n<start_of_turn>model\n", "<mask><unused3>[@BOS@]</s><pad>x<bos>", "<eos",
]  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "你是助手。"},
    {"role": "user", "content": "写诗\n\n谢谢"},
    {"role": "model", "content": "春风 又绿  江南岸"},
    {"role": "user", "content": "\r\n再来一首\n"},
]


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """The tokenizer that transformers makes of our files."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(tokenizer, TEMPLATES["gemmalm_zh"], folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_ids(exported, tokenizer, text):
    expected = tokenizer.encode_with_control(text)
    assert exported(text, add_special_tokens=False)["input_ids"] == expected, text
    assert exported(text)["input_ids"] == [tokenizer.bos_id, *expected]
    content = tokenizer.encode_content(text)
    assert exported.decode(content) == tokenizer.decode(content)


def test_size_and_special_tokens(exported, tokenizer):
    assert len(exported) == exported.vocab_size == tokenizer.vocabulary_size
    assert type(exported).__name__ == "GemmaTokenizer"
    names = ("pad", "eos", "bos", "unk")
    assert [getattr(exported, f"{name}_token_id") for name in names] == [
        getattr(tokenizer, f"{name}_id") for name in names
    ]
    assert exported.mask_token_id == 4
    ids = [tokenizer.start_of_turn_id, *tokenizer.encode_content("你好 "), tokenizer.end_of_turn_id, tokenizer.eos_id]
    assert exported.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == "你好 "


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids(exported, tokenizer, text):
    assert_same_ids(exported, tokenizer, text)


def test_same_ids_on_the_builtin_corpus(exported, tokenizer):
    files = list(builtin.TOKENIZER.parent.glob("corpus/**/handwritten*"))
    assert files
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            assert_same_ids(exported, tokenizer, line)


def test_same_ids_on_random_texts(exported, tokenizer):
    """Pieces, their beginnings and repetitions side by side, which asks for every order of merging."""
    draw = random.Random(0)
    pieces = read_pieces(tokenizer.path.read_bytes())
    texts = [piece.text.replace(SPACE, " ") for piece in pieces if piece.kind in (NORMAL, USER_DEFINED)]
    for _ in range(300):
        assert_same_ids(exported, tokenizer, "".join(draw.choice(texts) for _ in range(12)))
        assert_same_ids(exported, tokenizer, "".join(draw.choice(texts)[: draw.randint(1, 3)] for _ in range(15)))
        assert_same_ids(exported, tokenizer, "".join(draw.choice(texts) * draw.randint(1, 7) for _ in range(4)))


def test_chat_template(exported, tokenizer):
    template = TEMPLATES["gemmalm_zh"]
    for prompt in (False, True):
        rendered = exported.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert rendered == "<bos>" + template.render(MESSAGES, add_generation_prompt=prompt)
        ids = exported.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=False)
        assert ids == template.encode(tokenizer, MESSAGES, add_generation_prompt=prompt)[0]


def test_pieces_are_those_of_sentencepiece(tokenizer):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(str(tokenizer.path))
    pieces = read_pieces(tokenizer.path.read_bytes())
    assert [piece.text for piece in pieces] == [model.id_to_piece(place) for place in range(len(pieces))]
    assert [piece.score for piece in pieces] == [model.get_score(place) for place in range(len(pieces))]
    assert {piece.text for piece in pieces if piece.kind == USER_DEFINED} >= {"<start_of_turn>", "\n\n", SPACE * 2}


def test_merges():
    scores = {"a": -9.0, "b": -9.0, "ab": -2.0, "aba": -1.0, "ba": -3.0, "a b": -0.5, "ba b": -0.5}
    pieces = [Piece(text, score, NORMAL) for text, score in scores.items()] + [Piece("bb", 0.0, USER_DEFINED)]
    assert bpe_merges(pieces) == [("a", "ba"), ("ab", "a"), ("a", "b"), ("b", "a")]


def test_characters_that_only_longer_pieces_hold():
    bytes_ = [Piece(f"<0x{number:02X}>", 0.0, BYTE) for number in (9, 10, 97, 0xE9)]
    rest = [
        Piece("\n", 0.0, USER_DEFINED),
        Piece("a", -1.0, NORMAL),
        Piece("\t\t", -2.0, NORMAL),
        Piece("\ta", -3.0, NORMAL),
    ]
    pieces = [*bytes_, *rest, Piece("éa", -4.0, NORMAL)]  # é is two bytes in UTF-8, not the byte 0xE9
    names = ["\t", "<0x0A>", "<0x61>", "<0xE9>", "\n", "a", "\t\t", "\ta", "éa"]
    assert vocabulary(pieces) == {name: place for place, name in enumerate(names)}
    assert bpe_merges(pieces) == [("\t", "\t"), ("\t", "a")]


def _field(number: int, value: bytes) -> bytes:
    """A protobuf field of a length below 128."""
    return bytes([number << 3 | 2, len(value)]) + value


def with_pieces(model: bytes, pieces: list[Piece]) -> bytes:
    """A serialised SentencePiece model with more pieces at its end: messages that are written one after the other merge."""
    for text, score, kind in pieces:
        model += _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind]))
    return model


@pytest.mark.parametrize("kind", [USER_DEFINED, CONTROL])
def test_the_entry_for_images_is_text(kind, tokenizer, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(with_pieces(tokenizer.serialized, [Piece(IMAGE_ENTRY, 0.0, kind)]))
    listed, text = Tokenizer(path), f"看{IMAGE_ENTRY}。<end_of_turn>"
    assert listed.control_pieces == tokenizer.control_pieces and listed.vocabulary_size == tokenizer.vocabulary_size
    assert listed.encode_content(text) == tokenizer.encode_content(text)
    write_tokenizer_files(listed, TEMPLATES["gemma"], tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocabulary_size
    assert_same_ids(theirs, tokenizer, text)


@pytest.fixture(scope="module")
def with_tabs(tmp_path_factory):
    """A model with what Gemma's has and ours lacks: learnt runs of a character that is no piece, mixed with others."""
    texts = ["\t" * n for n in range(2, 32)] + ["}\r", "\r\r", "\x0c\x0c", "\t}", f"{SPACE}\t", "~\x1f", "\x1f\x1f"]
    pieces = [Piece(text, -3000.0 - n, NORMAL) for n, text in enumerate(texts)]
    pieces.append(Piece(f"a{SPACE}{SPACE}b", 0.0, USER_DEFINED))
    pieces.insert(0, Piece("  }", 0.0, USER_DEFINED))  # which SentencePiece never finds
    path = tmp_path_factory.mktemp("with_tabs") / "tokenizer.model"
    path.write_bytes(with_pieces(builtin.TOKENIZER.read_bytes(), pieces))
    assert {"\t", "\r", "\x0c", "\x1f"}.isdisjoint(piece.text for piece in read_pieces(path.read_bytes()))
    return Tokenizer(path)


def runs(draw: random.Random, count: int) -> list[str]:
    """Runs of every length of white and control characters, and mixtures of them with letters."""
    around = [*WHITE, "a", "}", "中", "a  b"]
    alone = [character * length for character in around for length in range(1, 70)]
    mixed = [
        "".join(draw.choice(around) * draw.randint(1, 40) for _ in range(draw.randint(1, 8))) for _ in range(count)
    ]
    return alone + mixed + ["".join(draw.choice(around) for _ in range(draw.randint(1, 60))) for _ in range(count)]


def test_runs_of_characters_that_are_no_pieces(with_tabs, tmp_path):
    write_tokenizer_files(with_tabs, TEMPLATES["gemmalm_zh"], tmp_path)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    run = with_tabs.encode_content("\t" * 31)
    assert run == [with_tabs.vocabulary_size - 9] and with_tabs.decode(run) == "\t" * 31
    for text in runs(random.Random(0), 400):
        assert_same_ids(exported, with_tabs, text)
        assert plain.encode(text, add_special_tokens=False).ids == with_tabs.encode_with_control(text), text


def test_merges_are_strings_of_one_blank(with_tabs, tmp_path):
    """tokenizers before 0.20 read no pairs; all part a string at its blank."""
    write_tokenizer_files(with_tabs, TEMPLATES["gemma"], tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert all(merge.count(" ") == 1 for merge in model["merges"])
    parts = [merge.split(" ") for merge in model["merges"]]
    assert [tuple(pair) for pair in parts] == bpe_merges(read_pieces(with_tabs.path.read_bytes()))
    assert {left for left, _ in parts} | {right for _, right in parts} <= model["vocab"].keys()


@pytest.mark.skipif(GEMMA_VARIABLE not in os.environ, reason=f"{GEMMA_VARIABLE} does not point at Gemma's tokenizer")
def test_gemmas_own_tokenizer(tmp_path):
    tokenizer = Tokenizer(os.environ[GEMMA_VARIABLE])
    write_tokenizer_files(tokenizer, TEMPLATES["gemma"], tmp_path)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = runs(random.Random(0), 3000)
    for text in [*texts, *TEXTS]:
        assert_same_ids(exported, tokenizer, text)
    official = Path(os.environ[GEMMA_VARIABLE]).with_name("tokenizer.json")
    if official.exists():
        theirs = tokenizers.Tokenizer.from_file(str(official))
        # Google's file has runs of blanks as merges, which part those of more than 31 otherwise than SentencePiece.
        for text in (text for text in texts if "  " not in text and SPACE not in text):
            assert exported(text)["input_ids"] == theirs.encode(text).ids, text


def test_models_that_tokenizer_json_cannot_express(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.model"
    # The last field of a kind counts; a field that is a message merges.
    for change, reason in ((_field(2, b"\x18\x01"), "unigram"), (_field(3, b"\x20\x01"), "changes texts")):
        path.write_bytes(builtin.TOKENIZER.read_bytes() + change)
        with pytest.raises(UserError, match=reason):
            require_expressible(Tokenizer(path))
    require_expressible(tokenizer)
