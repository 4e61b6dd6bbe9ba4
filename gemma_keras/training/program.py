"""The compiled program of a training run: built from a configuration, before any weight or row is at hand.

A program depends on the shape of the model, the batch and the plan, not on the length of the run, the data or the learning
rate: so it can be compiled while data is prepared, is found again in the compile cache by a run of another length, and is
what `preflight` examines.

Axes: B batch, T time, D model dim, N query heads, K KV heads, H head dim, F ffn dim, L layers.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from keras_hub.models import Backbone

from gemma_keras.adapters.inject import (
    AdaptedMatrix,
    adapter_stacks,
    add_adapters,
    initial_adapter_params,
)
from gemma_keras.adapters.rank_allocator import Phase, RankAllocator, RankSchedule
from gemma_keras.batch_arrays import DTYPES, Batch, batch_shape
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import OptimConfig
from gemma_keras.config.stages import StepConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.forward import build_backbone, variable_shapes
from gemma_keras.models.stacking import stacked_shapes
from gemma_keras.models.weight_sharding import param_sharding
from gemma_keras.parallel.mesh import batch_sharding, place_batch, replicated
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.training.objectives.base import Objective
from gemma_keras.training.objectives.registry import OBJECTIVES
from gemma_keras.training.optimizers import learning_rates, make_optimizer
from gemma_keras.training.state import TrainState, initial_state
from gemma_keras.training.step import StepSettings, make_train_step

LEAST_REACH = 0.3  # half of what the recipe's stage 1 reaches as published, with rows that are not packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
    """One jitted train step, and what it takes: trees of `jax.ShapeDtypeStruct` that say where each array lies.

    Weights are stacks over the blocks (`models.stacking`).
    """

    backbone: Backbone
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


def adapter_reach(matrices: list[AdaptedMatrix], optim: OptimConfig, total_steps: int) -> float | None:
    """How far a run can move an adapter (`Adapter.reach`), of the matrix where that is least.

    None without adapters, and where the optimizer is not Adam, whose steps alone do not depend on the gradient's size.
    """
    if not matrices or optim.name != "adamw":
        return None
    rates = float(learning_rates(optim, total_steps).sum())
    return min(matrix.adapter.reach(rates) for matrix in matrices)


def describe_reach(reach: float) -> str:
    """What to tell of an `adapter_reach`, with what to change where it is too little."""
    told = f"an adapter's triplets can move their matrix by about {reach:.2g} each in this run (spectral norm)"
    if reach >= LEAST_REACH:
        return told
    return (
        f"{told}, which is too little (the published recipe has 0.6): raise adapter.alpha or optim.learning_rate, or train for "
        "more steps"
    )


def build_model(config: StepConfig, architecture: Architecture) -> tuple[Backbone, list[AdaptedMatrix]]:
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
    objective = OBJECTIVES[config.train.loss](config, backbone, stacks, plan)
    begin = _placed_initial_state(optimizer, allocator, objective.metrics, trained, plan.mesh)
    state = jax.eval_shape(begin, trained)
    shardings = None
    if plan.mesh is not None:
        shardings = _state_shardings(state, plan.mesh)
        state = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), state, shardings)

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


def _placed_initial_state(optimizer, allocator, metrics, trained, mesh: Mesh | None) -> Callable[[Any], TrainState]:
    """A function from weights to the state before the first step, every part of which is made where it belongs."""

    def begin(trainable):
        return initial_state(trainable, optimizer, allocator, metrics)

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
    return StepSettings(jax.ShapeDtypeStruct((), jnp.float32), phase, flag)


def total_steps(config: StepConfig, packed_rows: int) -> int:
    """Optimizer steps of the run: those given, or what `train.epochs` makes of the packed rows."""
    if given := config.given_steps():
        return given  # against which `validate` has checked the warm-up
    steps = round(config.train.epochs * packed_rows / config.train.batch_rows)
    if steps < 1:
        raise UserError(
            f"{packed_rows} packed rows make no step of train.batch_rows={config.train.batch_rows}; give more rows, "
            "more train.epochs, or fewer rows a batch."
        )
    if config.optim.warmup >= steps:
        raise UserError(f"optim.warmup is {config.optim.warmup:g}, but the run has only {steps} steps; lower it.")
    return steps


def step_settings(
    config: StepConfig,
    total_steps: int,
    ranks: RankSchedule | None,
    logged: Callable[[int], bool] = lambda step: True,
) -> Callable[[int], StepSettings]:
    """From the number of a step, counted from 1, to its settings, computed on the host.

    Args:
        config: has the learning rate.
        total_steps: of the run.
        ranks: the schedule of AdaLoRA's ranks, None without it.
        logged: whether a line is logged after a step.
    """
    rates = learning_rates(config.optim, total_steps)
    return lambda step: StepSettings(rates[step - 1], ranks.phase(step) if ranks else None, np.bool_(logged(step)))
