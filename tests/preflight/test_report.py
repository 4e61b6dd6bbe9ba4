"""The account: arithmetic of the roofline, wording, advice, and mistakes on the command line."""

import re
from typing import Any

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import AdapterConfig, ModelConfig, TrainConfig
from gemma_keras.config.stages import PreflightConfig
from gemma_keras.preflight.hardware import HARDWARE
from gemma_keras.preflight.report import Roofline, advice, describe
from gemma_keras.preflight.run import NOT_COMPILED, asked_gib, run
from scripts.preflight import take_options

V5E = HARDWARE["TPU v5 lite"]


def report(**changes) -> dict[str, Any]:
    fields = dict(
        program="train", architecture="gemma2_9b", parameters=9_240_000_000, topology="v5e:2x4", device="v5e", devices=8,
        mesh={"data": 1, "model": 8}, shard_sequence=True, attention="splash", remat="matmul",
        tried=[{"remat": "none", "fits": False, "gib": 17.0}, {"remat": "matmul", "fits": True, "gib": 13.6}], fits=True,
        gib_per_chip=13.6, gib_limit=15.75, arguments_gib=2.9, temporaries_gib=10.5, outputs_gib=0.6, aliased_gib=0.6,
        tokens_per_step=16384, matmul_flops_per_step=6.9e14, matmul_flops_per_token_over_n=4.3,
        attention_flops_per_token_over_n=0.2, matmul_flops_by_part={}, loops_of_unknown_length=0,
        kernel_visits=[{"blocks": 45, "count": 2}, {"blocks": 136, "count": 1}],
        kernels=[{"name": "splash_mha_fwd", "phase": "forward", "count": 42, "soft_cap": True}],
        collectives=[
            {"kind": "all-gather", "why": "forward: query", "group": 8, "count": 42, "bytes": 2**30, "bytes_sent": 9e8}
        ],
        collectives_by_kind={"all-gather": {"count": 42, "bytes": 2**30, "bytes_sent": 900_000_000}},
        bytes_sent_per_step=29.9e9, synchronous_bytes_sent_per_step=6.04e9, hbm_bytes_per_step=231.4e9,
        roofline={"compute_seconds": 0.44, "memory_seconds": 0.1, "collective_seconds": 0.2, "bound": "compute"},
        utilisation=0.5, step_seconds=0.88, tokens_per_second=18618.0, hours_per_million_tokens=0.0149, steps=1000, hours=0.24,
        compile_seconds=99.0, versions={}, advice=[], adapter_reach=0.05,
    )  # fmt: skip
    return NOT_COMPILED | fields | changes


def test_roofline_is_time_at_the_peaks():
    roofline = Roofline.of(197e12, 409.5e9, 50e9, V5E)
    assert (roofline.compute_seconds, roofline.memory_seconds, roofline.collective_seconds) == (1.0, 0.5, 0.5)
    assert roofline.bound == "compute"
    assert roofline.step_seconds(0.5) == 2.0
    assert Roofline.of(197e10, 409.5e9, 0, V5E).step_seconds(0.5) == 0.5  # of no use to multiply faster


def test_the_account_names_the_figures():
    text = describe(report())
    for part in (
        "13.60 GiB of 15.75 GiB",
        "fits",
        "4.30 N",
        "42 x splash_mha_fwd",
        "soft cap",
        "forward: query",
        "45 in 2 of them, 136 in 1 of them",
        "1.00 GiB",
        "sends 29.9 GB, 6.0 of it synchronously",
        "by about 0.05 each",
        "too little",
        "(231 GB)",
    ):
        assert part in text
    assert "none does not fit, matmul fits" in text
    assert "To make it fit" not in text


def test_what_does_not_fit_gets_advice():
    text = describe(report(fits=False, gib_per_chip=None, roofline=None, step_seconds=None, advice=["first", "second"]))
    assert "DOES NOT FIT" in text and "1. first" in text and "2. second" in text


def test_advice_begins_with_what_costs_least():
    config = PreflightConfig(train=TrainConfig(batch_rows=16), adapter=AdapterConfig(method="lora"))
    ideas = advice(config, {"data": 2, "model": 4}, "matmul", shard_sequence=False)
    fields = [re.findall(r"--config\.([\w.]+)", idea) for idea in ideas]
    assert fields[0] == ["train.remat"]
    assert ["parallel.shard_sequence"] in fields and ["train.accumulation"] in fields
    assert not any("adapter" in idea for idea in ideas)
    exhausted = advice(
        PreflightConfig(train=TrainConfig(batch_rows=1)), {"data": 1, "model": 8}, "full", shard_sequence=True
    )
    assert len(exhausted) == 1 and "--topology" in exhausted[0]
    all_weights = PreflightConfig(model=ModelConfig(weights="model"), train=TrainConfig(batch_rows=8))
    assert "--config.adapter.method" in advice(all_weights, {"data": 8, "model": 1}, "full", shard_sequence=False)[0]


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 18.50G of 15.75G hbm. Exceeded hbm capacity by 2.75G.", 18.5),
        ("RESOURCE_EXHAUSTED: ... required for HLO temporaries (4.50T) exceeds available HBM (15.75G).", 4608.0),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_what_the_compiler_asked_for(message, gib):
    assert asked_gib(message) == gib


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("v5e",), "--topology=v5e is no topology"),
        (("moon:2x2",), "--topology=moon:2x2 is no topology"),
        (("v5e:2x4", 2.0), "--utilisation=2 is no share"),
        (("v5e:2x4", 0.5, "fly"), "--program=fly is none of auto, train, decode"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(tmp_path, arguments, sentence):
    topology, *rest = arguments
    with pytest.raises(UserError, match=re.escape(sentence)):
        run(PreflightConfig(), topology, tmp_path, *rest)
    assert not list(tmp_path.iterdir())


def test_its_own_flags_are_taken_from_the_command_line():
    options, rest = take_options(["preflight", "--topology", "v3:2x2", "--workdir=x", "--config.train.remat=full"])
    assert options == {"topology": "v3:2x2", "utilisation": "0.5", "program": "auto"}
    assert rest == ["preflight", "--workdir=x", "--config.train.remat=full"]


def test_a_mistake_on_the_command_line_ends_in_one_sentence(preflight):
    result = preflight.run("--utilisation=much")
    assert result.returncode == 1
    assert re.fullmatch(r"error: --utilisation=much is no number.*\n", result.stderr), result.stderr


def test_help_lists_its_own_flags(preflight):
    result = preflight.run("--help")
    assert result.returncode == 0
    for name in ("--topology", "--utilisation", "--program", "--config.train.remat"):
        assert name in result.stdout
