import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import CorpusConfig, DataConfig
from gemma_keras.data.pipeline import PreparedSplit, batch_at, batches, evaluation_batches, packed_rows_at, permuted
from gemma_keras.data.prepare import prepare

T = 96
SHAPES = {"tokens": np.int32, "targets": np.int32, "segment_ids": np.int32, "positions": np.int32, "row_index": np.int32,
          "loss_weights": np.float32, "target_kinds": np.uint8}  # fmt: skip


@pytest.fixture(scope="module")
def split(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("corpora")
    (root / "belle").mkdir()
    rows = [
        {"instruction": f"问题{i}" * (i % 5 + 1), "input": "", "output": f"答{i}" * (i % 7 + 1)} for i in range(150)
    ]
    (root / "belle" / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    config = DataConfig(root=str(root), corpora=(CorpusConfig(name="belle"),), sequence_length=T, validation_rows=10)
    prepare(config, tokenizer, root / "out", progress=lambda line: None)
    return PreparedSplit.load(root / "out" / "train")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 1000))
def test_permutation(size, seed, epoch):
    assert sorted(permuted(np.arange(size), size, seed, epoch)) == list(range(size))


def test_permutation_looks_random_and_reaches_far():
    order = permuted(np.arange(1000), 1000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert (order != permuted(np.arange(1000), 1000, 0, 1)).mean() > 0.9
    assert (order != permuted(np.arange(1000), 1000, 1, 0)).mean() > 0.9
    assert permuted(np.array([10**12 - 1]), 10**12, 0, 10**6).shape == (1,)


def test_every_packed_row_once_an_epoch(split):
    P = split.packed_count
    for batch_rows in (1, 3, 8, P + 5):
        steps = 2 * P
        seen = np.concatenate([packed_rows_at(P, step, batch_rows, seed=4) for step in range(steps)])
        for epoch in range(len(seen) // P):
            assert sorted(seen[epoch * P : (epoch + 1) * P]) == list(range(P))


def slow_batch(split, packed_rows, loss_kinds):
    """The batch of `packed_rows`, token by token."""
    batch = {name: np.zeros((len(packed_rows), T), dtype) for name, dtype in SHAPES.items()}
    batch["row_index"][:] = -1
    for b, packed in enumerate(packed_rows):
        t = 0
        for segment, row in enumerate(split.packed_row(packed)):
            tokens, kinds = list(split.tokens[row]), list(split.kinds[row])
            for position, token in enumerate(tokens):
                batch["tokens"][b, t] = token
                batch["segment_ids"][b, t] = segment + 1
                batch["positions"][b, t] = position
                batch["row_index"][b, t] = row
                if position + 1 < len(tokens):
                    batch["targets"][b, t] = tokens[position + 1]
                    batch["target_kinds"][b, t] = kinds[position + 1]
                    batch["loss_weights"][b, t] = kinds[position + 1] in loss_kinds
                t += 1
    return batch


@pytest.mark.parametrize(("loss_on", "kinds"), [("response", {2, 3}), ("all", {1, 2, 3})])
def test_batch_equals_the_slow_one(split, loss_on, kinds):
    for step in (0, 5, 60):
        batch = batch_at(split, step, batch_rows=4, seed=7, loss_on=loss_on)
        expected = slow_batch(split, packed_rows_at(split.packed_count, step, 4, seed=7), kinds)
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert values.dtype == SHAPES[name] and values.shape == (4, T)
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_resuming_gives_the_same_batches(split):
    settings = {"batch_rows": 4, "seed": 1}
    whole = list(batches(split, start_step=0, steps=30, **settings))
    rest = list(batches(split, start_step=17, steps=13, **settings))
    assert len(whole) == 30 and len(rest) == 13
    for one, other, step in zip(whole[17:], rest, range(17, 30), strict=True):
        direct = batch_at(split, step, **settings)
        for name in SHAPES:
            assert one[name].dtype == other[name].dtype == SHAPES[name]
            np.testing.assert_array_equal(one[name], other[name])
            np.testing.assert_array_equal(one[name], direct[name])


def test_without_end_and_from_far(split):
    stream = batches(split, start_step=10**9, steps=None, batch_rows=2, seed=1)
    np.testing.assert_array_equal(next(stream)["tokens"], batch_at(split, 10**9, batch_rows=2, seed=1)["tokens"])
    assert next(stream)["tokens"].shape == (2, T)


def test_processes_share_the_global_batch(split):
    whole = batch_at(split, 3, batch_rows=6, seed=2)
    parts = [batch_at(split, 3, batch_rows=6, seed=2, process_index=i, process_count=3) for i in range(3)]
    for name in SHAPES:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    parts = zip(
        *(evaluation_batches(split, batch_rows=6, process_index=i, process_count=3) for i in range(3)), strict=True
    )
    for whole, shards in zip(evaluation_batches(split, batch_rows=6), parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([s["row_index"] for s in shards]), whole["row_index"])


def test_evaluation_covers_every_row_once(split):
    seen = []
    for batch in evaluation_batches(split, batch_rows=7):
        assert batch["tokens"].shape == (7, T)
        starts = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        seen += list(batch["row_index"][starts])
        assert not batch["loss_weights"][batch["row_index"] < 0].any()
    assert sorted(seen) == list(range(len(split))) and len(split) == 140


def test_row_ids(split):
    (first,) = split.row_ids([0])
    assert first.startswith("belle/belle/a.json:")


def test_user_mistakes(split, tmp_path):
    with pytest.raises(UserError, match="give a multiple"):
        batch_at(split, 0, batch_rows=5, seed=0, process_count=2)
    with pytest.raises(UserError, match="choose one of response, all"):
        next(batches(split, start_step=0, steps=1, batch_rows=5, seed=0, loss_on="nothing"))
    with pytest.raises(UserError, match="prepare it again"):
        PreparedSplit.load(tmp_path / "train")


def test_data_imports_neither_jax_nor_keras_nor_tensorflow():
    code = """
import sys
import gemma_keras.data.pipeline, gemma_keras.data.prepare
sys.exit(", ".join({"jax", "keras", "tensorflow"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
