"""What a training run carries from step to step, and all that a checkpoint has to hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gemma_keras.adapters.rank_allocator import AllocatorState, RankAllocator
from gemma_keras.models.forward import Params


class TrainState(NamedTuple):
    """`step` counts completed optimizer steps; `allocator` is None without AdaLoRA. Random keys derive from the step."""

    step: jax.Array
    trainable: Params
    optimizer: optax.OptState
    allocator: AllocatorState | None


def initial_state(
    trainable: Params, optimizer: optax.GradientTransformation, allocator: RankAllocator | None
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), allocator.init() if allocator else None
    )
