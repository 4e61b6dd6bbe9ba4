import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig, DataConfig
from gemma_keras.data.pipeline import PreparedSplit, batch_at, batches, evaluation_batches, packed_rows_at, permuted
from gemma_keras.data.prepare import prepare
from gemma_keras.text.templates import CONTENT

T = 96
SHAPES = {"tokens": np.int32, "targets": np.int32, "segment_ids": np.int32, "positions": np.int32, "row_index": np.int32,
          "loss_weights": np.float32, "target_kinds": np.uint8}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer):
    """Prepares rows of one corpus."""

    def make(name, rows, **settings):
        root = tmp_path_factory.mktemp(name)
        (root / name).mkdir()
        (root / name / "a.json").write_text(json.dumps(rows), encoding="utf-8")
        config = DataConfig(
            root=str(root), corpora=(CorpusConfig(name=name, path=name),), sequence_length=T, **settings
        )
        prepare(config, tokenizer, root / "out", progress=lambda line: None)
        return PreparedSplit.load(root / "out" / "train")

    return make


@pytest.fixture(scope="module")
def split(prepared):
    rows = [
        {"instruction": f"问题{i}" * (i % 5 + 1), "input": "", "output": f"答{i}" * (i % 7 + 1)} for i in range(150)
    ]
    return prepared("belle", rows, validation_rows=10)


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
        seen = np.concatenate([packed_rows_at(split, step, batch_rows, seed=4) for step in range(2 * P)])
        epochs = [seen[epoch * P : (epoch + 1) * P, 1].tolist() for epoch in range(len(seen) // P)]
        assert all(sorted(epoch) == list(range(P)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def slow_batch(split, packed_rows, loss_kinds):
    """The batch of `packed_rows`, token by token."""
    batch = {name: np.zeros((len(packed_rows), T), dtype) for name, dtype in SHAPES.items()}
    batch["row_index"][:] = -1
    for b, (edition, packed) in enumerate(packed_rows):
        t = 0
        for segment, row in enumerate(split.packed_row(packed, edition)):
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
        expected = slow_batch(split, packed_rows_at(split, step, 4, seed=7), kinds)
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


def test_evaluation_of_a_part_takes_these_rows_alone(split):
    chosen = np.array([0, 3, 5])
    first, last = evaluation_batches(split, batch_rows=2, rows=chosen)
    for index, row in zip(chosen, [*first["row_index"], last["row_index"][0]], strict=True):
        assert set(row[row >= 0]) == set(split.packed_row(index))
    assert (last["row_index"][1] < 0).all()


def test_rows_that_are_not_packed_are_alone_and_the_same(prepared):
    rows = [{"instruction": f"问题{i}", "input": "", "output": f"答{i}" * (i % 7 + 1)} for i in range(20)]
    packed, alone = prepared("belle", rows), prepared("belle", rows, packing=False)
    assert packed.packed_count < 20 == alone.packed_count
    assert [alone.packed_row(i).tolist() for i in range(20)] == [[i] for i in range(20)]
    assert [alone.tokens[i].tolist() for i in range(20)] == [packed.tokens[i].tolist() for i in range(20)]
    assert (batch_at(alone, 0, batch_rows=8, seed=0)["segment_ids"] <= 1).all()


def test_four_processes_share_a_whole_run(split):
    steps = 3 * split.packed_count // 8

    def visited(**process):
        parts = [batch_at(split, step, batch_rows=8, seed=5, **process)["row_index"] for step in range(steps)]
        return np.stack(parts)

    shards = [visited(process_index=i, process_count=4) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), visited())
    within_an_epoch = [
        step for step in range(steps) if step * 8 // split.packed_count == (step * 8 + 7) // split.packed_count
    ]
    for step in within_an_epoch:
        rows = [set(shard[step].ravel().tolist()) - {-1} for shard in shards]
        assert sum(map(len, rows)) == len(set.union(*rows))
    assert len(within_an_epoch) > 2


def test_editions_draw_the_wording_anew(tmp_path, tokenizer):
    (tmp_path / "csl").mkdir()
    lines = [f"to title\t第{i}篇论文的摘要{'研究' * (i % 5)}。\t题目{i}\n" for i in range(90)]
    (tmp_path / "csl" / "a.tsv").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "belle").mkdir()
    rows = [{"instruction": f"问题{i}", "input": "", "output": f"答{i}"} for i in range(40)]
    (tmp_path / "belle" / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    corpora = tuple(CorpusConfig(name=name) for name in ("csl", "belle"))
    config = DataConfig(root=str(tmp_path), corpora=corpora, sequence_length=T, editions=3)
    report = prepare(config, tokenizer, tmp_path / "out", progress=lambda line: None)
    split = PreparedSplit.load(tmp_path / "out" / "train")
    assert report["rows"] == 130 and len(split) == 3 * 90 + 40
    texts: dict[str, list[str]] = {}
    place = 0
    for epoch in range(6):
        edition, size = epoch % 3, int(np.diff(split.starts)[epoch % 3])
        visited = np.concatenate([packed_rows_at(split, step, 1, seed=0) for step in range(place, place + size)])
        assert set(visited[:, 0]) == {edition} and sorted(visited[:, 1]) == list(range(size))
        place += size
        rows = np.concatenate([split.packed_row(packed, edition) for packed in range(size)])
        ids = [row_id.partition("~")[0] for row_id in split.row_ids(rows)]
        assert len(ids) == len(set(ids)) == 130
        for row, row_id in zip(rows, ids, strict=True):
            texts.setdefault(row_id, []).append(tokenizer.decode(split.tokens[row]))
    assert all(drawn[:3] == drawn[3:] for drawn in texts.values())
    assert {len(set(drawn)) for row_id, drawn in texts.items() if row_id.startswith("belle")} == {1}
    assert np.mean([len(set(drawn)) for row_id, drawn in texts.items() if row_id.startswith("csl")]) > 2.5


def test_pairs_lie_alike(prepared, tokenizer):
    rows = [{"prompt": f"问{i}", "chosen": "好" * (i % 7 + 1), "rejected": "坏" * (i % 11 + 1)} for i in range(60)]
    split = prepared("preference", rows)
    assert split.pairs and len(split) == 120
    seen = []
    for batch in evaluation_batches(split, batch_rows=3):
        chosen, rejected = batch["row_index"]
        assert batch["tokens"].shape == (2, 3, T)
        starts = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        np.testing.assert_array_equal(starts[0], starts[1])
        np.testing.assert_array_equal(chosen[starts[0]] + 1, rejected[starts[0]])
        seen += chosen[starts[0]].tolist()
        for side, word in enumerate("好坏"):
            answers = tokenizer.decode(batch["targets"][side][batch["target_kinds"][side] == CONTENT])
            assert set(answers) == {word}
    assert sorted(seen) == list(range(0, 120, 2))


def test_row_ids(split):
    (first,) = split.row_ids([0])
    assert first.startswith("belle/belle/a.json:")


def test_user_mistakes(split, tmp_path):
    with pytest.raises(UserError, match="give a multiple"):
        batch_at(split, 0, batch_rows=5, seed=0, process_count=2)
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
