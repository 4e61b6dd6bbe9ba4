"""Preflight: compiles a configuration's train step, the very one, or a step of decoding, for a TPU slice that need not be
there, and reports on it.

Axes: B batch, T time.
"""

import dataclasses
import importlib.metadata
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gemma_keras import runtime
from gemma_keras.config.errors import UserError, require
from gemma_keras.config.stages import PreflightConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.loading import describe_weights
from gemma_keras.parallel.mesh import DATA, MODEL
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.planning.memory import device_bytes, policies_to_try
from gemma_keras.planning.plans import inference_plan, plan_for
from gemma_keras.preflight import collectives, hlo, kernels
from gemma_keras.preflight.decoding import decode_program
from gemma_keras.preflight.flops import largest_shapes, matmul_flops
from gemma_keras.preflight.hardware import GIB, Hardware, hardware_of
from gemma_keras.preflight.report import Roofline, advice, decoding_advice, describe
from gemma_keras.preflight.topologies import topology_devices
from gemma_keras.stages.running.workdir import write_json
from gemma_keras.training.program import adapter_reach, build_model, total_steps, train_program

UNITS = {"": 1 / GIB, "K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
LARGEST = 40  # arrays that the report lists

# What the compiler says when a program takes too much, in the forms that libtpu has.
_ASKED = (
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"required for [^(]*\(([\d.]+)([KMGT]?)\) exceeds",
    r"Program hbm requirement ([\d.]+)([KMGT]?)",
)


# What the report says of a program that the compiler refuses.
NOT_COMPILED: dict[str, Any] = {
    "arguments_gib": None, "temporaries_gib": None, "outputs_gib": None, "aliased_gib": None, "kernels": [],
    "collectives": [], "collectives_by_kind": {}, "largest_arrays": [], "hbm_bytes_per_step": None,
    "hbm_bytes_over_least": None, "bytes_sent_per_step": None, "synchronous_bytes_sent_per_step": None, "roofline": None,
    "step_seconds": None, "tokens_per_second": None, "hours_per_million_tokens": None, "hours": None,
}  # fmt: skip


def _train(config: PreflightConfig, architecture: Architecture, plan: ComputePlan) -> tuple[Any, int, None]:
    program = train_program(config, architecture, plan)
    trace = program.step.trace(program.state, program.frozen, program.batch, program.settings)
    return trace, math.prod(program.batch["tokens"].shape), None


# Each gives the traced program, the tokens of a step, and the bytes that decoding has to read on each device.
PROGRAMS: dict[str, Callable[[PreflightConfig, Architecture, ComputePlan], tuple[Any, int, int | None]]] = {
    "train": _train,
    "decode": decode_program,
}


def run(
    config: PreflightConfig, topology: str, workdir: Path, utilisation: float = 0.5, program: str = "auto"
) -> dict[str, Any]:
    """Compiles, prints the account and writes `<workdir>/preflight.json`, whose content is returned.

    Args:
        topology: a slice, such as `v5e:2x4`.
        utilisation: share of the matmul peak that hours are estimated with.
        program: train, decode, or auto: train where the configuration has corpora.

    Raises:
        UserError: no such slice or program, or the program does not fit; then the file is written, too.
    """
    require(
        0 < utilisation <= 1, f"--utilisation={utilisation:g} is no share: give one above 0 and up to 1, such as 0.5"
    )
    names = ("auto", *PROGRAMS)
    require(program in names, f"--program={program} is none of {', '.join(names)}: choose one of them")
    if program == "auto":
        program = "train" if config.data.corpora else "decode"
    architecture = _architecture(config, program)
    devices = topology_devices(topology)
    report = examine(config, architecture, devices, topology, utilisation, program, _steps(config, workdir))
    write_json(workdir / "preflight.json", report)
    print(describe(report))
    if not report["fits"]:
        asked = "" if report["gib_per_chip"] is None else f"{report['gib_per_chip']:.2f} GiB of "
        raise UserError(
            f"the {program} program of {architecture.name} does not fit {topology}: it takes {asked}more than the "
            f"{report['gib_limit']:.2f} GiB of a device: {report['advice'][0]}"
        )
    return report


def _architecture(config: PreflightConfig, program: str) -> Architecture:
    architecture = (
        describe_weights(config.model.weights) if config.model.weights else get_architecture(config.model.architecture)
    )
    name, tokens = "prompt_tokens", config.prompt_tokens
    if program == "train":
        name, tokens = "data.sequence_length", config.data.sequence_length
    require(
        tokens <= architecture.max_position,
        f"{name}={tokens} is above the {architecture.max_position} positions of {architecture.name}: lower it",
    )
    return architecture


def _steps(config: PreflightConfig, workdir: Path) -> int | None:
    """Optimizer steps of the run: configured, or from the data that is already prepared in its workdir."""
    if given := config.given_steps():
        return given
    train = workdir / "data" / "train"
    if not train.is_dir():
        return None
    from gemma_keras.data.pipeline import PreparedSplit

    return total_steps(config, PreparedSplit.load(train).packed_count)


def examine(
    config: PreflightConfig,
    architecture: Architecture,
    devices: list[Any],
    topology: str,
    utilisation: float,
    program: str = "train",
    steps: int | None = None,
) -> dict[str, Any]:
    """Compiles the program by the first policy that fits, and reads it: all that `preflight.json` holds.

    Among its fields, None where the program did not compile:
        gib_per_chip: GiB on one device (as jax counts devices: a core of v3); what was asked for, where it does not fit.
        matmul_flops_per_step: of all devices, attention included.
        matmul_flops_per_token_over_n: without attention, divided by tokens and by the model's number of weights.
        tried: the policies that were compiled, with their GiB.
        kernel_visits: executions of attention kernels on one device in a step, by the (query, key) blocks of a head that each
            of them visits: few in layers with a window.
        kernels, collectives: a line each by name and by reason; counts and bytes are of one device and one step.
        adapter_reach: of training with a known number of steps, how far its adapters can move (`training.program.adapter_reach`).
        bytes_sent_per_step: by one device, all collectives together; of these, those that nothing hides are synchronous.
        hbm_bytes_over_least: of decoding, bytes moved against those of weights and cache.
        largest_arrays, largest_shapes: of the largest arrays on one device; in the traced program, all devices together.
    """
    hardware = hardware_of(devices[0].device_kind)
    jax.config.update("jax_enable_compilation_cache", False)  # so that `compile_seconds` is what it says
    training = program == "train"
    plan, policies = _to_try(config, architecture, devices, training, hardware)
    mesh = dict(plan.mesh.shape) if plan.mesh is not None else {DATA: 1, MODEL: 1}
    count, fits, tried = mesh[DATA] * mesh[MODEL], False, []
    for policy in policies:
        trace, tokens, least = PROGRAMS[program](config, architecture, dataclasses.replace(plan, remat=policy))
        compiled, asked, seconds = _compile(trace.lower())
        fits = compiled is not None and asked is not None and asked <= hardware.memory_gib
        tried.append({"remat": policy, "fits": fits, "gib": asked})
        if fits:
            break
    ideas = advice(config, mesh, policy, plan.shard_sequence) if training else decoding_advice(config)
    flops = matmul_flops(trace.jaxpr)
    scale = tokens * architecture.parameter_count
    versions = runtime.versions() | {"libtpu": importlib.metadata.version("libtpu")}
    report = {
        "program": program, "architecture": architecture.name, "parameters": architecture.parameter_count,
        "topology": topology, "device": hardware.name, "devices": count, "mesh": mesh,
        "shard_sequence": plan.shard_sequence, "attention": plan.attention if training else "reference",
        "remat": policy, "tried": tried, "fits": fits, "gib_per_chip": asked, "gib_limit": hardware.memory_gib,
        "tokens_per_step": tokens, "matmul_flops_per_step": flops.total,
        "matmul_flops_per_token_over_n": (flops.total - flops.attention) / scale,
        "attention_flops_per_token_over_n": flops.attention / scale, "matmul_flops_by_part": flops.parts,
        "kernel_visits": [{"blocks": n, "count": round(runs / count)} for n, runs in sorted(flops.visits.items())],
        "loops_of_unknown_length": flops.unknown_loops, "largest_shapes": largest_shapes(trace.jaxpr, LARGEST),
        "utilisation": utilisation, "steps": steps, "compile_seconds": seconds, "versions": versions, **NOT_COMPILED,
        "advice": [] if fits else ideas,
        "adapter_reach": adapter_reach(build_model(config, architecture)[1], config.optim, steps) if training and steps else None,
    }  # fmt: skip
    if compiled is not None:
        report |= _compiled_figures(compiled, hardware, least, report)
    return report


def _to_try(
    config: PreflightConfig, architecture: Architecture, devices: list[Any], training: bool, hardware: Hardware
) -> tuple[ComputePlan, list[str]]:
    """The plan, and the recompute policies that may fit."""
    if not training:
        return inference_plan(config, architecture, devices), ["none"]
    plan = plan_for(config, architecture, devices, "none")
    return plan, policies_to_try(config, architecture, plan, hardware.memory_gib * GIB)


def _compile(lowered: Any) -> tuple[Any, float | None, float]:
    """The compiled program, None where it does not fit; the GiB that it wanted, and the seconds that compilation took."""
    started = time.perf_counter()
    compiled, asked = None, None
    try:
        compiled = lowered.compile()
        asked = device_bytes(compiled.memory_analysis()) / GIB
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = asked_gib(str(error))
    return compiled, asked, time.perf_counter() - started


def asked_gib(message: str) -> float | None:
    """The GiB that a program wanted, by the compiler's refusal; None where it does not say.

    >>> asked_gib("RESOURCE_EXHAUSTED: ... Used 18.50G of 15.75G hbm. Exceeded hbm capacity by 2.75G.")
    18.5
    """
    for pattern in _ASKED:
        found = re.search(pattern, message)
        if found:
            return float(found[1]) * UNITS[found[2]]
    return None


def _compiled_figures(
    compiled: Any, hardware: Hardware, least_bytes: int | None, report: dict[str, Any]
) -> dict[str, Any]:
    """The fields of the report that only a compiled program has."""
    memory, module = compiled.memory_analysis(), hlo.Module(hlo.message_of(compiled))
    found = collectives.find_collectives(module, report["devices"])
    moved = kernels.hbm_bytes(module)
    tokens, steps = report["tokens_per_step"], report["steps"]
    flops = report["matmul_flops_per_step"] / report["devices"]
    sent = sum(item.sent for item in found)
    roofline = Roofline.of(flops, moved, sent, hardware)
    seconds = roofline.step_seconds(report["utilisation"])
    arrays = collectives.largest_arrays(module, LARGEST)
    return {
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "outputs_gib": memory.output_size_in_bytes / GIB,
        "aliased_gib": memory.alias_size_in_bytes / GIB,
        "kernels": kernels.summed_kernels(kernels.find_kernels(module)),
        "collectives": collectives.summed(found),
        "collectives_by_kind": collectives.by_kind(found),
        "largest_arrays": [{"dtype": a.dtype, "shape": a.dims, "from": name} for a, name in arrays],
        "hbm_bytes_per_step": moved,
        "bytes_sent_per_step": sent,
        "synchronous_bytes_sent_per_step": sum(item.sent for item in found if item.synchronous),
        "hbm_bytes_over_least": moved / least_bytes if least_bytes else None,
        "roofline": roofline._asdict(),
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "hours_per_million_tokens": seconds / tokens * 1e6 / 3600,
        "hours": steps * seconds / 3600 if steps else None,
    }
