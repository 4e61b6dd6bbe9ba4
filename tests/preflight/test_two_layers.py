"""The checks of the full sizes on two layers, by the real TPU compiler."""

import pytest

from gemma_keras.models.architecture import LayerSpec
from gemma_keras.models.families.gemma3 import GLOBAL_ROPE_BASE
from gemma_keras.models.families.registry import get_architecture
from tests.preflight.checks import check_collectives, check_sizes, check_splash, check_visits

ROWS, LENGTH, LAYERS = 16, 1024, 2
# Gemma 2 9b, narrower: compilation takes a tenth of the time.
NARROW = dict(num_layers=LAYERS, hidden_dim=1024, intermediate_dim=4096, head_dim=128, vocabulary_size=32_000)


@pytest.mark.parametrize(
    ("policy", "data", "model"),
    [("matmul", 1, 8), *(pytest.param(policy, 8, 1, marks=pytest.mark.long) for policy in ("projections", "matmul"))],
)
def test_policies_that_keep_what_attention_gives_run_no_kernel_twice(preflight, policy, data, model):
    mesh = (f"--config.parallel.data={data}", f"--config.parallel.model={model}")
    report = preflight.report("gemma2_9b", *mesh, f"--config.train.remat={policy}", rows=ROWS, length=LENGTH, **NARROW)
    assert report["fits"] and report["mesh"] == {"data": data, "model": model}
    assert report["tokens_per_step"] == ROWS * LENGTH
    check_splash(report, LAYERS, recomputed=False)
    check_sizes(report, get_architecture("gemma2_9b").replace(**NARROW), ROWS, LENGTH)
    check_collectives(report)
    assert report["loops_of_unknown_length"] == 0
    assert report["gib_per_chip"] == pytest.approx(
        report["arguments_gib"] + report["outputs_gib"] - report["aliased_gib"] + report["temporaries_gib"], abs=0.2
    )


@pytest.mark.long
@pytest.mark.parametrize(("layers", "data", "model"), [(2, 1, 8), (2, 8, 1), (7, 2, 4)])
def test_layers_with_a_window_visit_fewer_blocks(preflight, layers, data, model):
    """Gemma 3 4b, narrower: a layer with a window and one without, or five and one and the one that is left over."""
    mesh = (f"--config.parallel.data={data}", f"--config.parallel.model={model}")
    local, everything = LayerSpec(window=512), LayerSpec(rope_base=GLOBAL_ROPE_BASE, rope_scaling=8.0)
    changes = NARROW | {"num_layers": layers, "pattern": (*[local] * min(5, layers - 1), everything)}
    report = preflight.report("gemma3_4b", *mesh, "--config.train.remat=matmul", rows=8, length=2048, **changes)
    narrow = get_architecture("gemma3_4b").replace(**changes)
    check_splash(report, layers, recomputed=False, soft_cap=False)
    check_visits(report, narrow, 2048)
    check_sizes(report, narrow, 8, 2048)
    check_collectives(report)


@pytest.mark.long
def test_layers_in_a_loop_and_one_that_is_left_over_all_count(preflight):
    report = preflight.report(
        "gemma2_9b", "--config.train.remat=matmul", rows=ROWS, length=LENGTH, **NARROW | {"num_layers": 5}
    )
    check_splash(report, 5, recomputed=False)
    check_collectives(report)
    weights = {line["why"]: line["count"] for line in report["collectives"] if line["why"].endswith("weights")}
    assert weights and all(count >= 5 * 7 for count in weights.values())  # seven matrices a layer, without adapters


@pytest.mark.long
def test_full_rematerialisation_runs_forward_kernels_twice(preflight):
    report = preflight.report("gemma2_9b", "--config.train.remat=full", rows=ROWS, length=LENGTH, **NARROW)
    check_splash(report, LAYERS, recomputed=True)


@pytest.mark.long
def test_what_cannot_fit_is_told_with_advice(preflight):
    report = preflight.report(
        "gemma2_9b", "--config.train.remat=none", rows=2048, length=LENGTH, **NARROW | {"num_layers": 1}
    )
    assert not report["fits"] and report["gib_limit"] == 15.75
    assert report["gib_per_chip"] is None or report["gib_per_chip"] > report["gib_limit"]
    assert any("--config.train.remat=full" in idea for idea in report["advice"])
    assert any("accumulation" in idea for idea in report["advice"])


@pytest.mark.long
def test_a_decoding_step_is_compiled_too(preflight):
    report = preflight.report("gemma2_9b", "--program=decode", rows=8, length=512, **NARROW)
    assert report["fits"] and report["tokens_per_step"] == 8
    assert report["roofline"]["bound"] in ("memory", "collective")


@pytest.mark.long
def test_where_rows_are_divided_no_step_brings_the_table_together(preflight):
    """Gemma 3 4b has 4 KV heads, so that 8 devices are a mesh of 2x4; its 262,208 tokens make no whole blocks on each."""
    report = preflight.report(
        "gemma3_4b", "--program=decode", rows=8, length=512, **NARROW | {"vocabulary_size": 262_208}
    )
    assert report["fits"] and report["mesh"] == {"data": 2, "model": 4}
    logits = 8 * 262_208 * 4  # bytes; the table has 64 times as many
    assert max(line["bytes"] / line["count"] for line in report["collectives"]) < 1.1 * logits
