"""The plan of a program on the devices that there are: mesh and attention kernel, chosen where the configuration does not."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import ParallelConfig
from gemma_keras.config.stages import AnsweringConfig, EvaluateConfig, StepConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.attention_kernels.grouped_query import choose_kernel
from gemma_keras.models.attention_kernels.splash import LANES
from gemma_keras.parallel.mesh import MODEL, make_mesh
from gemma_keras.parallel.plan import ComputePlan


def plan_for(
    config: StepConfig | EvaluateConfig, architecture: Architecture, devices: list[Any], remat: str
) -> ComputePlan:
    """The plan that the configuration asks for on these devices, with what it leaves open chosen.

    Raises:
        UserError: the mesh does not fit the devices, the heads or the rows.
    """
    kernel = _kernel_for(config, devices[0].device_kind)
    rows = config.train.batch_rows // config.train.accumulation
    usual = default_mesh_shape(architecture, len(devices), rows)
    mesh = _mesh_for(config.parallel, architecture, devices, rows, usual)
    if mesh is None:
        return ComputePlan(attention=kernel, remat=remat)
    divided = mesh.shape[MODEL] > 1 and config.data.sequence_length % mesh.shape[MODEL] == 0
    choice = {"auto": divided, "yes": True, "no": False}[config.parallel.shard_sequence]
    return ComputePlan(mesh=mesh, shard_sequence=choice, attention=kernel, remat=remat)


def inference_plan(config: AnsweringConfig | StepConfig, architecture: Architecture, devices: list[Any]) -> ComputePlan:
    """The plan for generation: by default as many devices along "model" as the KV heads allow, so that each step reads the
    least, of weights and of the cache.

    Raises:
        UserError: the mesh does not fit the devices or the heads.
    """
    heads = math.gcd(architecture.num_key_value_heads, len(devices))
    usual = len(devices) // heads, heads
    mesh = _mesh_for(config.parallel, architecture, devices, 0, usual)  # as many rows as there are requests
    return ComputePlan(mesh=mesh, attention="blockwise")


def _kernel_for(config: StepConfig | EvaluateConfig, device_kind: str) -> str:
    asked, suited = config.model.attention, choose_kernel(device_kind)
    if asked == "splash" and suited != "splash":
        raise UserError(
            f"config.model.attention is splash, which {device_kind!r} cannot run, only TPU v4 and later; give blockwise or auto."
        )
    if asked != "auto":
        return asked
    return "blockwise" if config.data.sequence_length % LANES else suited


def default_mesh_shape(architecture: Architecture, devices: int, rows: int) -> tuple[int, int]:
    """(data, model) for these devices and rows of a microbatch: as many ways along "data" as the rows allow.

    That moved the fewest bytes between devices for all sizes of Gemma 2 (docs/experiments.md, "Plans for v5e-8"). Of meshes that
    divide rows, heads and vocabulary, it is among those of the most devices.
    """
    fitting = [
        (data, model)
        for data in range(1, devices + 1)
        for model in range(1, devices // data + 1)
        if rows % data == 0
        and architecture.num_query_heads % model == 0
        and architecture.vocabulary_size % (data * model) == 0
    ]
    return max(fitting, key=lambda shape: (shape[0] * shape[1], shape[0]))


def _mesh_for(
    asked: ParallelConfig, architecture: Architecture, devices: list[Any], rows: int, usual: tuple[int, int]
) -> Mesh | None:
    """The mesh that is asked for, or the `usual` one; None: a single device."""
    data, model = (asked.data, asked.model) if asked.data or asked.model else usual
    data = data or max(1, len(devices) // model)
    model = model or max(1, len(devices) // data)
    _check_mesh(architecture, rows, data, model, len(devices))
    return make_mesh(devices, data, model) if data * model > 1 else None


def _check_mesh(architecture: Architecture, rows: int, data: int, model: int, devices: int) -> None:
    mesh, heads, vocabulary = data * model, architecture.num_query_heads, architecture.vocabulary_size
    if heads % model:
        raise UserError(
            f"config.parallel.model is {model}, which does not divide the {heads} heads of {architecture.name}; give a "
            "divisor of that."
        )
    if rows % data:
        raise UserError(
            f"config.parallel.data is {data}, which does not divide the {rows} rows of a microbatch (train.batch_rows / "
            "train.accumulation); change either."
        )
    if vocabulary % mesh:
        raise UserError(
            f"config.parallel makes a mesh of {data}x{model} devices, which cannot share the {vocabulary} tokens of the "
            "vocabulary equally; give a smaller mesh."
        )
    if jax.process_count() > 1 and mesh != devices:
        raise UserError(
            f"config.parallel makes a mesh of {data}x{model} devices, but the {jax.process_count()} processes have {devices}, "
            "all of which have to take part; change parallel.data and parallel.model, or the rows."
        )
