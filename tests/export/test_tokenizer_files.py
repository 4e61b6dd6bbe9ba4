"""The exported tokenizer in transformers against ours."""

import random

import pytest
import transformers

from gemma_keras import builtin
from gemma_keras.export.tokenizer_files import (
    NORMAL,
    SPACE,
    USER_DEFINED,
    Piece,
    bpe_merges,
    read_pieces,
    write_tokenizer_files,
)
from gemma_keras.text.templates import TEMPLATES

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
    files = [file for file in builtin.TOKENIZER.parent.glob("corpus/**/*") if file.is_file()]
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
    scores = {"a": -9.0, "b": -9.0, "ab": -2.0, "aba": -1.0, "ba": -3.0}
    pieces = [Piece(text, score, NORMAL) for text, score in scores.items()] + [Piece("bb", 0.0, USER_DEFINED)]
    assert bpe_merges(pieces) == [("a", "ba"), ("ab", "a"), ("a", "b"), ("b", "a")]
