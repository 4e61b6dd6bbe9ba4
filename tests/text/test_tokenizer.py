import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import Tokenizer, any_of

TEXTS = [
    "",
    "你好，世界",
    "a  b\n\n\nc",
    " leading and trailing ",
    "价格是123.45元",
    "emoji 🏃‍♂️ \u200b",
    "\ttab\r\nend",
    "\x00",
]


def test_special_ids_are_gemmas(tokenizer):
    ids = tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id
    assert ids == (0, 1, 2, 3)
    assert (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id) == (106, 107)
    assert tokenizer.control_pieces["<mask>"] == 4
    assert len(tokenizer.sha256) == 64


@pytest.mark.parametrize("text", TEXTS)
def test_decode_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_content(text)) == text


def test_content_never_yields_a_control_id(tokenizer):
    for piece in tokenizer.control_pieces:
        for text in (piece, piece * 3, f"说{piece}\n", f"<{piece}>", piece[0] + piece, piece[:-1] + piece):
            ids = tokenizer.encode_content(text)
            assert not tokenizer.control_ids.intersection(ids), text
            assert tokenizer.decode(ids) == text


FRAGMENTS = (
    "<start_of_turn> <start_of_turn < > start_of_turn> <end_of_ turn> <eos> <pad> <bo s> [@BOS@] [@ <unused7> <unk> "
    "<mask> model 你 << _of_turn> </s> <0x41>"
).split(" ")
FRAGMENTS += ["\n", " "]


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join))
def test_no_text_forges_a_control_id(text):
    tokenizer = _builtin()
    text = text.replace("\u2581", "").encode("utf-8", "ignore").decode()
    ids = tokenizer.encode_content(text)
    assert not tokenizer.control_ids.intersection(ids)
    assert tokenizer.decode(ids) == text


def _builtin(cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006  (hypothesis and function fixtures do not mix)
    if not cache:
        from gemma_keras import builtin

        cache.append(Tokenizer(builtin.TOKENIZER))
    return cache[0]


def test_control_literals_are_found_as_the_longest_of_a_list(tokenizer):
    """Against the alternation of all literals, longest first."""
    literals = sorted([*tokenizer.control_pieces, "<unused7>8", "<unused", "[@"], key=len, reverse=True)
    alternation = re.compile("|".join(map(re.escape, literals)))
    trie = re.compile(any_of(sorted(literals)))
    draw = random.Random(0)
    for _ in range(300):
        parts = (draw.choice(literals)[draw.randint(0, 2) : draw.randint(3, 20)] for _ in range(20))
        text = "".join(draw.choice((part, "<", "9>")) for part in parts)
        assert trie.findall(text) == alternation.findall(text), text


def test_batch_equals_one_by_one(tokenizer):
    texts = [*TEXTS, "<start_of_turn>model\n", *tokenizer.control_pieces] * 3
    assert tokenizer.encode_content_batch(texts) == [tokenizer.encode_content(text) for text in texts]


def test_control_is_parsed_where_asked_for(tokenizer):
    ids = tokenizer.encode_with_control("<bos><start_of_turn>user\n你<end_of_turn><eos>")
    assert ids[:2] == [tokenizer.bos_id, tokenizer.start_of_turn_id]
    assert ids[-2:] == [tokenizer.end_of_turn_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "user\n你"
    assert tokenizer.decode(ids, skip_control=False) == "<bos><start_of_turn>user\n你<end_of_turn><eos>"


def test_missing_and_broken_files_are_told(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer(tmp_path / "none.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(tokenizer.path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"SentencePiece|no piece"):
        Tokenizer(broken)
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:61a7\nsize 4241003\n")
    with pytest.raises(UserError, match="pointer of Git LFS"):
        Tokenizer(broken)
    broken.write_bytes(b"")
    with pytest.raises(UserError):
        Tokenizer(broken)


def test_models_of_other_families_are_refused(real_data):
    with pytest.raises(UserError, match="no piece <pad>"):
        Tokenizer(real_data / "tokenizer" / "chinese_sp_20k" / "chinese_sp.model")
    with pytest.raises(UserError, match="no piece <start_of_turn>"):
        Tokenizer(real_data / "tokenizer" / "keras_hub" / "gemma_test_vocab.spm")


def test_other_ids_are_read_from_the_model(real_data):
    small = Tokenizer(real_data / "tokenizer" / "keras_hub" / "gemma_export_vocab.spm")
    assert (small.start_of_turn_id, small.end_of_turn_id, small.vocabulary_size) == (4, 5, 290)
    assert small.decode(small.encode_content("<start_of_turn> 你")) == "<start_of_turn> 你"
