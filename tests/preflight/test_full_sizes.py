"""The sizes that users train, by the real TPU compiler: memory, FLOPs, kernels, exchanges. Minutes each."""

import pytest

from gemma_keras.models.families.registry import get_architecture
from tests.preflight.checks import check_collectives, check_sizes, check_splash, check_visits

pytestmark = pytest.mark.long
FIVE_MINUTES = 300
FIFTEEN_MINUTES = 900  # for Gemma 3, whose loop has 6 blocks in place of 2, and up to 4 are left over


def compiled(
    preflight,
    architecture: str,
    *arguments: str,
    rows: int,
    length: int,
    topology: str = "v5e:2x4",
    seconds: float = FIVE_MINUTES,
) -> dict:
    report = preflight.report(architecture, *arguments, rows=rows, length=length, topology=topology, timeout=1800)
    assert report["fits"]
    assert report["compile_seconds"] < seconds
    assert report["loops_of_unknown_length"] == 0
    check_sizes(report, get_architecture(architecture), rows, length)
    check_collectives(report)
    return report


def test_9b_on_v5e_8_at_16384_tokens(preflight):
    """By default, which keeps the outputs of all projections."""
    report = compiled(preflight, "gemma2_9b", rows=16, length=1024)
    assert report["remat"] == "projections" and report["tokens_per_step"] >= 16_384
    assert report["gib_per_chip"] <= 12.5
    assert report["matmul_flops_per_token_over_n"] <= 4.1
    assert report["bytes_sent_per_step"] <= 30e9 and report["synchronous_bytes_sent_per_step"] <= 3e9
    assert report["hbm_bytes_per_step"] <= 235e9
    check_splash(report, 42, recomputed=False)


def test_9b_on_v5e_8_with_rows_of_8192_tokens(preflight):
    compiled(preflight, "gemma2_9b", rows=2, length=8192)


def test_9b_on_v3_8(preflight):
    report = compiled(preflight, "gemma2_9b", rows=8, length=1024, topology="v3:2x2")
    assert report["attention"] == "blockwise" and report["kernels"] == []


def test_27b_on_v5e_8(preflight):
    compiled(preflight, "gemma2_27b", rows=8, length=1024)


def test_2b_on_v5e_8(preflight):
    compiled(preflight, "gemma2_2b", rows=16, length=1024)


@pytest.mark.parametrize(("architecture", "layers"), [("gemma3_4b", 34), ("gemma3_12b", 48)])
def test_gemma3_on_v5e_8_at_16384_tokens(preflight, architecture, layers):
    report = compiled(
        preflight, architecture, "--config.train.remat=matmul", rows=16, length=1024, seconds=FIFTEEN_MINUTES
    )
    assert report["matmul_flops_per_token_over_n"] <= 4.5
    check_splash(report, layers, recomputed=False, soft_cap=False)


def test_gemma3_4b_with_rows_of_8192_tokens(preflight):
    """Layers with a window of 1,024 visit 45 blocks of 512 x 512, the others 136."""
    report = compiled(
        preflight, "gemma3_4b", "--config.train.remat=matmul", rows=2, length=8192, seconds=FIFTEEN_MINUTES
    )
    check_visits(report, get_architecture("gemma3_4b"), 8192)
    assert [visit["blocks"] for visit in report["kernel_visits"]] == [45, 136]


def test_gemma3_27b_on_v5e_8(preflight):
    compiled(preflight, "gemma3_27b", rows=8, length=1024, seconds=FIFTEEN_MINUTES)


def test_decoding_of_9b_moves_little_more_than_weights_and_cache(preflight):
    """Eight rows, 2,048 slots each."""
    report = preflight.report(
        "gemma2_9b", "--program=decode", "--config.sampling.max_new_tokens=1024", rows=8, length=1024, timeout=1800
    )
    assert report["fits"] and report["mesh"] == {"data": 1, "model": 8}
    assert report["hbm_bytes_over_least"] <= 1.15


@pytest.mark.parametrize(("data", "model"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_meshes_of_9b(preflight, data, model):
    mesh = (f"--config.parallel.data={data}", f"--config.parallel.model={model}")
    report = preflight.report("gemma2_9b", *mesh, "--config.train.remat=matmul", rows=16, length=1024, timeout=1800)
    assert report["mesh"] == {"data": data, "model": model}
    if report["fits"]:
        check_collectives(report)
