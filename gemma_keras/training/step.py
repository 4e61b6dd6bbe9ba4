"""One optimizer step, as one jitted function: gradients, penalty, clipping, update, rank allocation.

Axes: M microbatches, B packed rows of a microbatch, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gemma_keras.adapters.rank_allocator import Phase, RankAllocator
from gemma_keras.models.forward import Params
from gemma_keras.training.objectives.base import DeviceBatch, LossSums
from gemma_keras.training.optimizers import clip_by_global_norm
from gemma_keras.training.state import TrainState

# `Objective.sums`: (trainable, frozen, microbatch, random key) -> sums
LossFunction = Callable[[Params, Params, DeviceBatch, jax.Array], LossSums]

_DROPOUT_STREAM = 0x5EED


class StepSettings(NamedTuple):
    """What changes from step to step, as scalars from the host.

    `phase` is None without a rank allocator; `logged` says whether a line is logged after the step.
    """

    learning_rate: Any
    phase: Phase | None
    logged: Any = True


def make_train_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    allocator: RankAllocator | None = None,
    accumulation: int = 1,
    clip_norm: float = 0.0,
    seed: int = 0,
    shardings: Any = None,
) -> Callable[[TrainState, Params, DeviceBatch, StepSettings], tuple[TrainState, dict[str, Any]]]:
    """Builds `step(state, frozen, batch, settings) -> (state, metrics)`; `state` is donated.

    The loss is one mean over the global batch however many microbatches it comes in. A step whose loss or gradient is
    not finite changes nothing but the count of steps; the caller sees it in `metrics["loss"]` or `metrics["grad_norm"]`.
    `metrics["means"]` has the loss and the objective's metrics once more, as means over all steps since the last logged line.
    `shardings`, of the structure of a state, says where the new state and so the gradients lie; None: JAX decides.
    """

    def step(state: TrainState, frozen: Params, batch: DeviceBatch, settings: StepSettings):
        # A stream of its own: the initial weights are drawn from the seed's key, too.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _DROPOUT_STREAM), state.step)
        sums, grads = _accumulate(loss, state.trainable, frozen, batch, key, accumulation)
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings.trainable)
        weight = jnp.maximum(sums.weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        unlogged = jax.tree.map(jnp.add, state.unlogged, sums)
        metrics: dict[str, Any] = {**sums.means(), "means": unlogged.means()}
        active = None
        if allocator and state.allocator and settings.phase:
            active = allocator.active(state.allocator, settings.phase)
            masks = allocator.weight_masks(active)
            if allocator.config.orth_reg_weight > 0:
                with jax.named_scope("penalty"):
                    grads, metrics["penalty"] = _add_penalty(allocator, state.trainable, grads, active)
            grads = {path: g * masks[path] for path, g in grads.items()}  # inactive triplets get no gradient at all
        with jax.named_scope("optimizer"):
            grads, metrics["grad_norm"] = clip_by_global_norm(grads, clip_norm)
            updated = _update(state, grads, optimizer, allocator, active, settings)
        updated = updated._replace(unlogged=jax.tree.map(lambda s: jnp.where(settings.logged, 0.0, s), unlogged))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        kept = state._replace(step=state.step + 1)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, kept)
        if allocator and state.allocator:
            metrics["ranks"] = allocator.ranks(state.allocator)
        return state, metrics

    # Metrics are wanted on every process, as the count of steps is.
    placed = None if shardings is None else (shardings, shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=placed)


def _accumulate(loss, trainable, frozen, batch, key, accumulation) -> tuple[LossSums, Params]:
    """Sums and gradient of the summed loss over all microbatches."""

    def value(trainable, microbatch, key):
        sums = loss(trainable, frozen, microbatch, key)
        return sums.loss, sums

    gradient = jax.grad(value, has_aux=True)
    if accumulation == 1:
        grads, sums = gradient(trainable, batch, key)
        return sums, grads

    def add(totals, inputs):
        microbatch, index = inputs
        grads, sums = gradient(trainable, microbatch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, totals, (sums, grads)), None

    microbatches = {name: _microbatches(array, accumulation) for name, array in batch.items()}
    first = {name: array[0] for name, array in microbatches.items()}
    shapes = jax.eval_shape(loss, trainable, frozen, first, key)  # which metrics there are, the objective alone knows
    zeros = jax.tree.map(lambda sums: jnp.zeros(sums.shape, sums.dtype), shapes)
    totals = (zeros, jax.tree.map(jnp.zeros_like, trainable))
    (sums, grads), _ = jax.lax.scan(add, totals, (microbatches, jnp.arange(accumulation)))
    return sums, grads


def _microbatches(array: jax.Array, count: int) -> jax.Array:
    """[..., B, T] -> [M, ..., B / M, T]; what comes before the rows is the sides of pairs."""
    split = array.reshape(*array.shape[:-2], count, array.shape[-2] // count, array.shape[-1])
    return jnp.moveaxis(split, -3, 0)


def _add_penalty(allocator: RankAllocator, trainable: Params, grads: Params, active):
    """Adds the gradient of the weighted orthogonality penalty, whose value comes with the sum."""
    weight = allocator.config.orth_reg_weight
    penalty, penalty_grads = jax.value_and_grad(lambda p: weight * allocator.penalty(p, active))(trainable)
    return jax.tree.map(jnp.add, grads, penalty_grads), penalty


def _update(
    state: TrainState, grads: Params, optimizer, allocator: RankAllocator | None, active, settings: StepSettings
) -> TrainState:
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
    updates = jax.tree.map(lambda u: -settings.learning_rate * u, updates)
    completed = state.step + 1
    if allocator is None or state.allocator is None or settings.phase is None:
        trainable = optax.apply_updates(state.trainable, updates)
        return state._replace(step=completed, trainable=trainable, optimizer=optimizer_state)
    masks = allocator.weight_masks(active)
    updates = {path: u * masks[path] for path, u in updates.items()}
    optimizer_state = optax.tree_utils.tree_map_params(
        optimizer, lambda moment, mask: moment * mask, optimizer_state, masks
    )
    trainable = optax.apply_updates(state.trainable, updates)
    with jax.named_scope("allocator"):
        allocation, trainable = allocator.update(state.allocator, trainable, grads, settings.phase)
    return state._replace(step=completed, trainable=trainable, optimizer=optimizer_state, allocator=allocation)
