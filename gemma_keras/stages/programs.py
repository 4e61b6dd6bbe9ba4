"""The compiled program of a training run: built from a configuration, before any weight or row is at hand.

A program depends on the shape of the model, the batch and the plan, not on the length of the run, the data or the learning
rate: so it can be compiled while data is prepared, is found again in the compile cache by a run of another length, and is
what `preflight` examines.

Axes: B batch, T time, D model dim, N query heads, K KV heads, H head dim, F ffn dim, L layers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from keras_hub.models import GemmaBackbone

from gemma_keras.adapters.inject import (
    AdaptedMatrix,
    adapter_stacks,
    add_adapters,
    initial_adapter_params,
)
from gemma_keras.adapters.rank_allocator import Phase, RankAllocator, RankSchedule
from gemma_keras.batch_arrays import DTYPES, Batch, batch_shape
from gemma_keras.config.errors import UserError
from gemma_keras.config.stages import AnsweringConfig, EvaluateConfig, StepConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.attention import choose_kernel
from gemma_keras.models.compute_plan import DATA, MODEL, REMAT_POLICIES, ComputePlan
from gemma_keras.models.forward import build_backbone, variable_shapes
from gemma_keras.models.sharding import (
    batch_sharding,
    make_mesh,
    param_sharding,
    place_batch,
    replicated,
)
from gemma_keras.models.splash_attention import LANES
from gemma_keras.models.stacking import stacked_shapes
from gemma_keras.training.objectives.base import Objective
from gemma_keras.training.objectives.registry import OBJECTIVES
from gemma_keras.training.optimizers import learning_rate_schedule, make_optimizer
from gemma_keras.training.state import TrainState, initial_state
from gemma_keras.training.step import StepSettings, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
    """One jitted train step, and what it takes: trees of `jax.ShapeDtypeStruct` that say where each array lies.

    Weights are stacks over the blocks (`models.stacking`).
    """

    backbone: GemmaBackbone
    matrices: list[AdaptedMatrix]
    allocator: RankAllocator | None
    objective: Objective
    plan: ComputePlan
    step: Any
    state: TrainState
    frozen: dict[str, jax.ShapeDtypeStruct]
    batch: dict[str, jax.ShapeDtypeStruct]
    settings: StepSettings
    initial_state: Callable[[dict[str, jax.Array]], TrainState]

    def lower(self) -> jax.stages.Lowered:
        """The program as XLA gets it."""
        return self.step.lower(self.state, self.frozen, self.batch, self.settings)

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """This process's rows of a batch as arrays over all devices."""
        return place_batch(self.plan.mesh, batch, list(self.batch))


def build_model(config: StepConfig, architecture: Architecture) -> tuple[GemmaBackbone, list[AdaptedMatrix]]:
    """The backbone with the adapters of the configuration, without weights."""
    mixed = config.adapter.method == "none" and config.model.dtype != "float32"
    backbone = build_backbone(architecture, f"mixed_{config.model.dtype}" if mixed else config.model.dtype)
    return backbone, [] if config.adapter.method == "none" else add_adapters(backbone, config.adapter)


def train_program(config: StepConfig, architecture: Architecture, plan: ComputePlan) -> TrainProgram:
    """The step of this configuration by this plan; nothing is computed or allocated."""
    backbone, matrices = build_model(config, architecture)
    stacks = adapter_stacks(matrices)
    allocator = RankAllocator(stacks, config.adapter) if config.adapter.method == "adalora" else None
    optimizer = make_optimizer(config.optim)
    stored = dict(_placed_shapes(stacked_shapes(variable_shapes(backbone)), plan.mesh))
    trained = stored
    if matrices:
        adapters = stacked_shapes(jax.eval_shape(lambda: initial_adapter_params(matrices, 0)))
        trained = {path: stored[path] for path in adapters}
    begin = _placed_initial_state(optimizer, allocator, trained, plan.mesh)
    state = jax.eval_shape(begin, trained)
    shardings = None
    if plan.mesh is not None:
        shardings = _state_shardings(state, plan.mesh)
        state = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), state, shardings)

    objective = OBJECTIVES[config.train.loss](config, backbone, stacks, plan)
    step = make_train_step(
        objective.sums, optimizer, allocator=allocator, accumulation=config.train.accumulation, clip_norm=config.optim.clip_norm,
        seed=config.train.seed, shardings=shardings,
    )  # fmt: skip
    return TrainProgram(
        backbone=backbone, matrices=matrices, allocator=allocator, objective=objective, plan=plan, step=step, state=state,
        frozen={path: spec for path, spec in stored.items() if path not in trained},
        batch=_batch_specs(config, objective, plan.mesh), settings=_settings_specs(allocator), initial_state=begin,
    )  # fmt: skip


def _placed_shapes(
    shapes: dict[str, jax.ShapeDtypeStruct], mesh: Mesh | None
) -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    for path, spec in shapes.items():
        to = param_sharding(mesh, path, spec.shape) if mesh is not None else None
        yield path, jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=to)


def _placed_initial_state(optimizer, allocator, trained, mesh: Mesh | None) -> Callable[[Any], TrainState]:
    """A function from weights to the state before the first step, every part of which is made where it belongs."""

    def begin(trainable):
        return initial_state(trainable, optimizer, allocator)

    if mesh is None:
        return begin
    return jax.jit(begin, donate_argnums=0, out_shardings=_state_shardings(jax.eval_shape(begin, trained), mesh))


def _state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Moments and averages lie where the weight lies whose path ends theirs; counters and masks are everywhere."""
    paths = set(state.trainable)

    def place(keys: tuple[Any, ...], spec: jax.ShapeDtypeStruct):
        name = getattr(keys[-1], "key", None)
        return param_sharding(mesh, name, spec.shape) if name in paths else replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def _batch_specs(config: StepConfig, objective: Objective, mesh: Mesh | None) -> dict[str, jax.ShapeDtypeStruct]:
    shape = batch_shape(config.train.batch_rows, config.data.sequence_length, pairs=objective.pairs)
    to = batch_sharding(mesh, pairs=objective.pairs) if mesh is not None else None
    return {name: jax.ShapeDtypeStruct(shape, DTYPES[name], sharding=to) for name in objective.arrays}


def _settings_specs(allocator: RankAllocator | None) -> StepSettings:
    flag, number = jax.ShapeDtypeStruct((), jnp.bool_), jax.ShapeDtypeStruct((), jnp.int32)
    phase = Phase(flag, flag, flag, flag, number) if allocator else None
    return StepSettings(jax.ShapeDtypeStruct((), jnp.float32), phase)


def step_settings(config: StepConfig, total_steps: int, ranks: RankSchedule | None) -> Callable[[int], StepSettings]:
    """From the number of a step, counted from 1, to its settings, computed on the host."""
    rates = np.asarray(jax.vmap(learning_rate_schedule(config.optim, total_steps))(jnp.arange(total_steps)), np.float32)
    return lambda step: StepSettings(rates[step - 1], ranks.phase(step) if ranks else None)


def plan_for(
    config: StepConfig | EvaluateConfig, architecture: Architecture, devices: list[Any], remat: str
) -> ComputePlan:
    """The plan that the configuration asks for on these devices, with what it leaves open chosen.

    Raises:
        UserError: the mesh does not fit the devices, the heads or the rows.
    """
    kernel = _kernel_for(config, devices[0].device_kind)
    mesh = _mesh_for(config, architecture, devices)
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
    model = config.parallel.model or (len(devices) // config.parallel.data if config.parallel.data else heads)
    data = config.parallel.data or max(1, len(devices) // model)
    _check_mesh(architecture, data, data, model, len(devices))
    return ComputePlan(mesh=make_mesh(devices, data, model) if data * model > 1 else None, attention="blockwise")


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

    That exchanged the fewest bytes for all sizes of Gemma 2 (docs/experiments.md, "Plans for v5e-8"). Of meshes that
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


def _mesh_for(config: StepConfig | EvaluateConfig, architecture: Architecture, devices: list[Any]) -> Mesh | None:
    rows = config.train.batch_rows // config.train.accumulation
    data, model = config.parallel.data, config.parallel.model
    if not data and not model:
        data, model = default_mesh_shape(architecture, len(devices), rows)
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


def saved_bytes(config: StepConfig, architecture: Architecture, plan: ComputePlan) -> int:
    """About what the forward pass leaves on each device for the backward pass, in bytes, for all layers."""
    a = architecture
    heads, width = a.num_query_heads * a.head_dim, 2 if config.model.dtype == "bfloat16" else 4
    keys = 2 * a.num_key_value_heads * a.head_dim
    data, model = (plan.mesh.shape[DATA], plan.mesh.shape[MODEL]) if plan.mesh is not None else (1, 1)
    stream = a.hidden_dim / (model if plan.shard_sequence else 1)
    attention = heads / model + stream
    matmul = attention + 2 * a.intermediate_dim / model + stream
    saved = {
        "full": 0.0,
        "attention": attention,
        "matmul": matmul,
        "none": matmul + 2 * (heads + keys + a.intermediate_dim) / model + 12 * stream,  # norms in float32
    }[plan.remat]
    tokens = config.train.batch_rows // config.train.accumulation * config.data.sequence_length
    return math.ceil(tokens / data * a.num_layers * (stream + saved) * width)


def policies_to_try(
    config: StepConfig, architecture: Architecture, plan: ComputePlan, limit: float | None
) -> list[str]:
    """Rematerialisation policies worth compiling: the one that is asked for, else all that may fit in `limit` bytes.

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
    """The program by the first rematerialisation policy that fits these devices, ready to run.

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
