import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.data.cleaning.ngrams import ngrams, span_hashes, units


def slow_units(text: str) -> list[str]:
    """The rule spelt out, one character after the other."""
    result, run = [], ""
    for character in [*text, " "]:
        folded = unicodedata.normalize("NFKC", character).lower()
        folded = folded if len(folded) == 1 else character
        category = (
            unicodedata.category(folded) if ord(character) < 0x10000 else "Lo" if ord(character) >= 0x20000 else ""
        )
        if category == "Lo" or category[:1] not in ("L", "M", "N"):
            result += [run] if run else []
            result += [folded] if category == "Lo" else []
            run = ""
        else:
            run += folded
    return result


TEXT = st.text(st.one_of(st.sampled_from("天地玄黄，。aB1２Ｃ \n-é́한カ𠀀😀½\ud800"), st.characters()), max_size=40)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 4))
def test_as_the_rule_spelt_out(texts, n):
    hashes, offsets = ngrams(texts, n)
    expected = [[tuple(u[i : i + n]) for i in range(len(u) - n + 1)] for u in map(slow_units, texts)]
    assert (hashes.dtype, offsets.dtype) == (np.uint64, np.int64)
    assert list(np.diff(offsets)) == [len(grams) for grams in expected]
    flat = [gram for grams in expected for gram in grams]
    assert len(set(flat)) == len(set(hashes.tolist())) == len(set(zip(flat, hashes.tolist())))


def test_worked_examples():
    assert slow_units("《春晓》, 第1首") == ["春", "晓", "第", "1", "首"]
    assert slow_units("Don't ＳＴＯＰ!") == ["don", "t", "stop"]


@pytest.mark.parametrize(
    "first, second, equal",
    [
        ("床前明月光，疑是地上霜。", " 床前\n明月光 疑是地上霜", True),
        ("Colorless green ideas", "COLORLESS, green-ideas!", True),
        ("第12题", "第１２题", True),
        ("第12题", "第1 2题", False),
        ("ab c", "a bc", False),
        ("春眠", "眠春", False),
        ("aa", "a", False),
    ],
)
def test_what_is_the_same(first, second, equal):
    hashes = [units([text])[0].tolist() for text in (first, second)]
    assert (hashes[0] == hashes[1]) == equal


def test_hashes_do_not_depend_on_the_batch():
    texts = ["春眠不觉晓", "the quick brown fox", "", "处处闻啼鸟"]
    together, offsets = ngrams(texts, 2)
    for text, start, end in zip(texts, offsets, offsets[1:]):
        assert together[start:end].tolist() == ngrams([text], 2)[0].tolist()


def test_hashes_stay_the_same_for_ever():
    # Prepared data must not depend on the version of the package.
    assert units(["春a"])[0].tolist() == [3376407457614471107, 15171591684648530557]


def test_no_collision_among_many_spans():
    values = np.arange(2000, dtype=np.uint64) % np.uint64(7)
    starts, lengths = np.meshgrid(np.arange(900), np.arange(1, 60))
    hashes = span_hashes(values, starts.ravel(), (starts + lengths).ravel())
    assert len(np.unique(hashes)) == 7 * 59  # a span is known by where in the cycle it begins, and by its length


def test_more_units_than_kept_powers():
    text = "天地" * 600_000
    hashes, _ = ngrams([text], 3)
    assert len(np.unique(hashes)) == 2
