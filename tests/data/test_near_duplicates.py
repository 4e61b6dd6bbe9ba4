import itertools
import json
import random

import numpy as np
import pytest

from gemma_keras.data.cleaning.near_duplicates import NearDuplicates, band_width
from gemma_keras.data.cleaning.ngrams import ngrams


def copies(texts, threshold, batch=1000):
    finder = NearDuplicates(threshold)
    for start in range(0, len(texts), batch):
        finder.add(texts[start : start + batch])
    return finder.later_copies().tolist()


def brute_force(texts, threshold):
    """Greedy in order by exact similarities, and the pairs' similarities."""
    sets = [set(ngrams([text], 5)[0].tolist()) for text in texts]
    similarity = {
        (j, i): len(sets[j] & sets[i]) / len(sets[j] | sets[i])
        for j, i in itertools.combinations(range(len(texts)), 2)
        if sets[j] and sets[i]
    }
    gone = [False] * len(texts)
    for i in range(len(texts)):
        gone[i] = any(not gone[j] and similarity.get((j, i), 0) >= threshold for j in range(i))
    return gone, similarity


def chinese(rng, length):
    return "".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(length))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8])
def test_as_brute_force_away_from_the_threshold(threshold):
    rng = random.Random(0)
    texts = []
    for _ in range(40):
        text = chinese(rng, 300)
        for changes in (0, 1, 2, 60):  # similarities: 1, about 0.97 and 0.93, below 0.3
            cut = sorted(rng.sample(range(300), changes))
            texts.append("".join("，" + chinese(rng, 1) if i in cut else c for i, c in enumerate(text)))
    rng.shuffle(texts)
    expected, similarity = brute_force(texts, threshold)
    assert not any(abs(value - threshold) < 0.06 for value in similarity.values())
    assert copies(texts, threshold) == expected
    assert 0 < sum(expected) < len(texts)


def test_a_row_that_goes_takes_no_others_with_it():
    rng = random.Random(1)
    left, core, right = (chinese(rng, length) for length in (250, 400, 250))
    chain = [left + core, core, core + right]  # the middle is like both; the ends are less like each other
    expected, similarity = brute_force(chain, 0.52)
    assert expected == [False, True, False] and similarity[0, 2] < 0.46
    assert copies(chain, 0.52) == expected
    assert copies(["别的句子，与其他行毫无关系。", *chain], 0.52) == [False, *expected]


def test_blanks_punctuation_and_case_do_not_count():
    first = "请解释 Transformer 模型的基本原理，并举例说明。"
    assert copies([first, "请解释transformer模型的基本原理 并举例说明", "请解释卷积网络"], 0.9) == [False, True, False]


def test_texts_of_fewer_than_5_units_stay():
    assert copies(["你好吗", "你好吗", "", "", "one two three four", "one two three four"], 0.5) == [False] * 6


def test_batches_do_not_matter():
    rng = random.Random(2)
    texts = [chinese(rng, 30) for _ in range(50)] * 2 + ["", "短"]
    expected = [False] * 50 + [True] * 50 + [False] * 2
    assert copies(texts, 0.8, batch=7) == copies(texts, 0.8, batch=1000) == expected
    assert NearDuplicates(0.8).later_copies().tolist() == copies([], 0.8) == []


def test_many_equal_rows_and_many_with_one_template():
    equal = ["感谢您的来信，我们会在三个工作日之内给您答复。"] * 5000
    assert copies(equal, 0.8) == [False] + [True] * 4999
    rng = random.Random(3)
    template = chinese(rng, 60)
    assert sum(copies([template + chinese(rng, 40) for _ in range(3000)], 0.8)) == 0


def test_documents_longer_than_a_block():
    text = chinese(random.Random(4), 10_000)
    assert copies([text, text[:9_900], text[5_000:]], 0.9) == [False, True, False]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_band_width(threshold):
    def recall(width):
        return 1 - (1 - threshold**width) ** (128 // width)

    width = band_width(threshold)
    assert recall(width) >= 0.99 and (width == 128 or recall(width + 1) < 0.99)


def test_real_rows(real_data):
    """Rows of a corpus of instructions in their own order, each also with a small change: only the changed ones go."""
    rows = json.loads((real_data / "alpaca_chinese_carbonz0" / "zh-data-part-00.json").read_text())
    texts = [row["instruction"] + row["input"] + row["output"] for row in rows]
    texts = [text for text in texts if len(text) > 120][:500]
    result = np.array(copies([*texts, *("请注意：" + text for text in texts)], 0.8))
    assert result[: len(texts)].mean() < 0.01 and result[len(texts) :].all()


def test_rows_of_different_kinds_are_never_alike():
    text = "春天来了，公园里的花都开了，孩子们在草地上奔跑。"
    rows = NearDuplicates(0.7)
    rows.add([text, text, text, text], ["title", "keywords", "title", "keywords"])
    assert rows.later_copies().tolist() == [False, False, True, True]
