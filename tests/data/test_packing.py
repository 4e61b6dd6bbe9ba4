import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.encoding.packing import pack
from gemma_keras.data.sources import locate, read_corpus
from gemma_keras.text.templates import TEMPLATES


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=300), st.integers(1, 50))
def test_every_row_once_and_none_too_full(lengths, block):
    offsets, rows = pack(lengths, 64, block)
    assert (offsets.dtype, rows.dtype) == (np.int64, np.int32)
    assert offsets[0] == 0 and offsets[-1] == len(rows)
    assert sorted(rows) == list(range(len(lengths)))
    for start, end in itertools.pairwise(offsets):
        packed = rows[start:end]
        assert len(packed) and list(packed) == sorted(packed)
        assert sum(lengths[row] for row in packed) <= 64
        assert packed[-1] // block - packed[0] // block <= 1


def test_best_fit():
    offsets, rows = pack([6, 5, 4, 3, 2], 10)
    assert [sorted(rows[a:b]) for a, b in itertools.pairwise(offsets)] == [[0, 2], [1, 3, 4]]


def test_rows_that_cannot_be_packed():
    with pytest.raises(ValueError, match="cannot be packed"):
        pack([3, 11], 10)
    with pytest.raises(ValueError, match="cannot be packed"):
        pack([0], 10)


def test_a_million_rows():
    lengths = np.random.default_rng(0).integers(16, 512, 1_000_000)
    offsets, rows = pack(lengths, 512)
    assert len(rows) == 1_000_000
    assert lengths.sum() / (512 * (len(offsets) - 1)) > 0.97


def test_useful_share_of_real_rows(real_data, tokenizer):
    records = [
        record
        for name in ("belle", "alpaca_chinese", "alpaca_gpt4_zh")
        for row in read_corpus(locate(CorpusConfig(name=name), real_data))
        for record in row.records
    ]
    encoded = TEMPLATES["gemmalm_zh"].encode_batch(tokenizer, [record.messages for record in records])
    lengths = np.minimum([len(row.ids) for row in encoded], 512)
    offsets, _ = pack(np.random.default_rng(0).permutation(lengths), 512)
    assert lengths.sum() / (512 * (len(offsets) - 1)) >= 0.97
