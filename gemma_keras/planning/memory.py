"""How much a train step computes again: the first policy by which it fits in the devices' memory."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gemma_keras.config.errors import UserError
from gemma_keras.config.stages import StepConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.parallel.mesh import DATA, MODEL
from gemma_keras.parallel.plan import REMAT_POLICIES, ComputePlan
from gemma_keras.planning.plans import plan_for
from gemma_keras.training.program import TrainProgram, train_program


def saved_bytes(config: StepConfig, architecture: Architecture, plan: ComputePlan) -> int:
    """About what the forward pass leaves on each device for the backward pass, in bytes, for all layers."""
    a = architecture
    heads, width = a.num_query_heads * a.head_dim, 2 if config.model.dtype == "bfloat16" else 4
    keys = 2 * a.num_key_value_heads * a.head_dim
    data, model = (plan.mesh.shape[DATA], plan.mesh.shape[MODEL]) if plan.mesh is not None else (1, 1)
    stream = a.hidden_dim / (model if plan.shard_sequence else 1)
    attention = heads / model + stream
    matmul = attention + 2 * a.intermediate_dim / model + stream
    projections = matmul + (heads + keys) / model
    saved = {
        "full": 0.0,
        "attention": attention,
        "matmul": matmul,
        "projections": projections,
        "none": projections + (heads + keys + 2 * a.intermediate_dim) / model + 12 * stream,  # norms in float32
    }[plan.remat]
    tokens = config.train.batch_rows // config.train.accumulation * config.data.sequence_length
    return math.ceil(tokens / data * a.num_layers * (stream + saved) * width)


def policies_to_try(
    config: StepConfig, architecture: Architecture, plan: ComputePlan, limit: float | None
) -> list[str]:
    """Recompute policies worth compiling: the one that is asked for, else all that may fit in `limit` bytes.

    Where no limit is known, as on a CPU, that is "matmul" alone, which there is as fast as "none" with a third less memory.
    """
    if config.train.remat != "auto":
        return [config.train.remat]
    if limit is None:
        return ["matmul"]
    fits = [
        policy
        for policy in REMAT_POLICIES
        if saved_bytes(config, architecture, dataclasses.replace(plan, remat=policy)) < limit
    ]
    return fits or [REMAT_POLICIES[-1]]


def compile_first_that_fits(
    config: StepConfig, architecture: Architecture, devices: list[Any]
) -> tuple[TrainProgram, jax.stages.Compiled]:
    """The program by the first recompute policy that fits these devices, ready to run.

    Raises:
        UserError: none fits.
    """
    limit = _memory_limit()
    plan = plan_for(config, architecture, devices, remat="none")
    for policy in policies_to_try(config, architecture, plan, limit):
        program = train_program(config, architecture, dataclasses.replace(plan, remat=policy))
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        memory = compiled.memory_analysis()
        if limit is None or memory is None or device_bytes(memory) <= limit:
            return program, compiled
    raise UserError(
        f"the train step of {architecture.name} on {len(devices)} devices does not fit in their memory: give "
        "train.remat=full, fewer train.batch_rows or more train.accumulation, and look at scripts.preflight."
    )


def _memory_limit() -> int | None:
    """Bytes that a program may take on each device, the least of all processes; None on a CPU, and where nobody knows."""
    local = jax.local_devices()[0]
    limit = (local.memory_stats() or {}).get("bytes_limit", 0) if local.platform != "cpu" else 0
    if jax.process_count() > 1:
        limit = int(multihost_utils.process_allgather(np.int64(limit)).min())
    return limit or None


def device_bytes(memory: Any) -> int:
    """What a compiled program takes on each device, its arguments included, by its `memory_analysis()`."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
