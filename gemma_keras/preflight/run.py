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
from gemma_keras.preflight.flops import MatmulFlops, largest_shapes, matmul_flops
from gemma_keras.preflight.hardware import GIB, Hardware, hardware_of
from gemma_keras.preflight.report import PreflightReport, Roofline, advice, decoding_advice, describe
from gemma_keras.preflight.topologies import topology_devices
from gemma_keras.stages.running.workdir import write_json
from gemma_keras.training.program import total_steps, train_program

UNITS = {"": 1 / GIB, "K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
LARGEST = 40  # arrays that the report lists

# What the compiler says when a program takes too much, in the forms that libtpu has.
_ASKED = (
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"required for [^(]*\(([\d.]+)([KMGT]?)\) exceeds",
    r"Program hbm requirement ([\d.]+)([KMGT]?)",
)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program before compilation."""

    trace: Any
    tokens: int
    least_bytes: int | None = None  # that decoding has to read on each device: weights and cache


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What became of one program; `compiled` is None where it does not fit, `asked` the GiB that it wanted."""

    plan: ComputePlan
    flops: MatmulFlops
    shapes: list[tuple[int, ...]]
    tokens: int
    compiled: Any
    asked: float | None
    seconds: float
    least_bytes: int | None

    def fits(self, hardware: Hardware) -> bool:
        """Whether the compiler took it, and its sum of arguments and temporaries is within the device's memory."""
        return self.compiled is not None and self.asked is not None and self.asked <= hardware.memory_gib


def _train(config: PreflightConfig, architecture: Architecture, plan: ComputePlan) -> Traced:
    program = train_program(config, architecture, plan)
    step: Any = program.step
    trace = step.trace(program.state, program.frozen, program.batch, program.settings)
    return Traced(trace, math.prod(program.batch["tokens"].shape))


def _decode(config: PreflightConfig, architecture: Architecture, plan: ComputePlan) -> Traced:
    program = decode_program(config, architecture, plan)
    step: Any = program.step
    trace = step.trace(*program.arguments, **program.settings)
    return Traced(trace, config.inference.max_rows, program.weight_bytes + program.cache_bytes)


PROGRAMS: dict[str, Callable[[PreflightConfig, Architecture, ComputePlan], Traced]] = {
    "train": _train,
    "decode": _decode,
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
    write_json(workdir / "preflight.json", report.as_dict())
    print(describe(report))
    if not report.fits:
        asked = "" if report.gib_per_chip is None else f"{report.gib_per_chip:.2f} GiB of "
        raise UserError(
            f"the {program} program of {architecture.name} does not fit {topology}: it takes {asked}more than the "
            f"{report.gib_limit:.2f} GiB of a device: {report.advice[0]}"
        )
    return report.as_dict()


def _architecture(config: PreflightConfig, program: str) -> Architecture:
    architecture = (
        describe_weights(config.model.weights) if config.model.weights else get_architecture(config.model.architecture)
    )
    lengths = {
        "train": ("data.sequence_length", config.data.sequence_length),
        "decode": ("prompt_tokens", config.prompt_tokens),
    }
    name, tokens = lengths[program]
    require(
        tokens <= architecture.max_position,
        f"{name}={tokens} is above the {architecture.max_position} positions of {architecture.name}: lower it",
    )
    return architecture


def _versions() -> dict[str, str]:
    return runtime.versions() | {"libtpu": importlib.metadata.version("libtpu")}


def _steps(config: PreflightConfig, workdir: Path) -> int | None:
    """Optimizer steps of the run: configured, or from the data that is already prepared in its workdir."""
    if config.train.steps:
        return config.train.steps
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
) -> PreflightReport:
    """Compiles the program by the first policy that fits, and reads it."""
    hardware = hardware_of(devices[0].device_kind)
    jax.config.update("jax_enable_compilation_cache", False)  # so that `compile_seconds` is what it says
    tried: list[Compiled] = []
    plan = (
        plan_for(config, architecture, devices, "none")
        if program == "train"
        else inference_plan(config, architecture, devices)
    )
    policies = (
        policies_to_try(config, architecture, plan, hardware.memory_gib * GIB) if program == "train" else ["none"]
    )
    for policy in policies:
        tried.append(_compile(config, architecture, dataclasses.replace(plan, remat=policy), PROGRAMS[program]))
        if tried[-1].fits(hardware):
            break
    result = tried[-1]
    mesh = dict(plan.mesh.shape) if plan.mesh is not None else {DATA: 1, MODEL: 1}
    count = mesh[DATA] * mesh[MODEL]
    scale = result.tokens * architecture.parameter_count
    ideas = (
        advice(config, mesh, result.plan.remat, result.plan.shard_sequence)
        if program == "train"
        else decoding_advice(config)
    )
    return PreflightReport(
        program=program, architecture=architecture.name, parameters=architecture.parameter_count, topology=topology,
        device=hardware.name, devices=count, mesh=mesh, shard_sequence=result.plan.shard_sequence,
        attention=result.plan.attention if program == "train" else "reference", remat=result.plan.remat,
        tried=[{"remat": t.plan.remat, "fits": t.fits(hardware), "gib": t.asked} for t in tried],
        gib_limit=hardware.memory_gib, tokens_per_step=result.tokens, matmul_flops_per_step=result.flops.total,
        matmul_flops_per_token_over_n=result.flops.without_attention / scale,
        attention_flops_per_token_over_n=result.flops.attention / scale, matmul_flops_by_part=result.flops.parts,
        loops_of_unknown_length=result.flops.unknown_loops, largest_shapes=result.shapes, utilisation=utilisation,
        compile_seconds=result.seconds, versions=_versions(), steps=steps,
        **_compiled_figures(result, hardware, count, utilisation, steps),
        advice=[] if result.fits(hardware) else ideas,
    )  # fmt: skip


def _compile(
    config: PreflightConfig, architecture: Architecture, plan: ComputePlan, build: Callable[..., Traced]
) -> Compiled:
    traced = build(config, architecture, plan)
    flops, shapes = matmul_flops(traced.trace.jaxpr), largest_shapes(traced.trace.jaxpr, LARGEST)
    lowered = traced.trace.lower()
    started = time.perf_counter()
    compiled, asked = None, None
    try:
        compiled = lowered.compile()
        asked = device_bytes(compiled.memory_analysis()) / GIB
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = asked_gib(str(error))
    seconds = time.perf_counter() - started
    return Compiled(plan, flops, shapes, traced.tokens, compiled, asked, seconds, traced.least_bytes)


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
    result: Compiled, hardware: Hardware, devices: int, utilisation: float, steps: int | None
) -> dict[str, Any]:
    """The fields of the report that only a compiled program has."""
    if result.compiled is None:
        return {"fits": False, "gib_per_chip": result.asked}
    memory = result.compiled.memory_analysis()
    module = hlo.parse(result.compiled.as_text())
    found = collectives.find_collectives(module, devices)
    moved = kernels.hbm_bytes(module)
    roofline = Roofline.of(result.flops.total / devices, moved, sum(item.sent for item in found), hardware)
    seconds = roofline.step_seconds(utilisation)
    arrays = collectives.largest_arrays(module, LARGEST)
    return {
        "fits": result.fits(hardware),
        "gib_per_chip": result.asked,
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "outputs_gib": memory.output_size_in_bytes / GIB,
        "aliased_gib": memory.alias_size_in_bytes / GIB,
        "kernels": kernels.summed_kernels(kernels.find_kernels(module)),
        "collectives": collectives.summed(found),
        "collectives_by_kind": collectives.by_kind(found),
        "largest_arrays": [{"dtype": a.dtype, "shape": a.dims, "from": name} for a, name in arrays],
        "hbm_bytes_per_step": moved,
        "hbm_bytes_over_least": moved / result.least_bytes if result.least_bytes else None,
        "roofline": dataclasses.asdict(roofline),
        "step_seconds": seconds,
        "tokens_per_second": result.tokens / seconds,
        "hours_per_million_tokens": seconds / result.tokens * 1e6 / 3600,
        "hours": steps * seconds / 3600 if steps else None,
    }
