"""What a training run carries from step to step, and all that a checkpoint has to hold."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gemma_keras.adapters.rank_allocator import AllocatorState, RankAllocator
from gemma_keras.models.forward import Params
from gemma_keras.training.objectives.base import LossSums


class TrainState(NamedTuple):
    """`step` counts completed optimizer steps; `allocator` is None without AdaLoRA. Random keys derive from the step.

    `unlogged` holds the sums of the steps since the last logged line, so that a resumed run logs what an uninterrupted one does.
    """

    step: jax.Array
    trainable: Params
    optimizer: optax.OptState
    allocator: AllocatorState | None
    unlogged: LossSums


def initial_state(
    trainable: Params,
    optimizer: optax.GradientTransformation,
    allocator: RankAllocator | None,
    metrics: Sequence[str] = (),
) -> TrainState:
    """The state before the first step; `metrics` are the objective's."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        optimizer=optimizer.init(trainable),
        allocator=allocator.init() if allocator else None,
        unlogged=LossSums(jnp.zeros(()), jnp.zeros(()), {name: jnp.zeros(()) for name in metrics}),
    )
