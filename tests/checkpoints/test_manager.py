"""What a checkpoint gives back, and what it says when it does not fit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma_keras.checkpoints.manager import Checkpoints
from gemma_keras.config.errors import UserError
from gemma_keras.training.state import initial_state


class Former(NamedTuple):
    """The state as it was before it held sums."""

    step: jax.Array
    trainable: dict
    optimizer: optax.OptState
    allocator: None


def test_sums_since_the_last_line_come_back(tmp_path):
    state = initial_state({"weight": jnp.arange(3.0)}, optax.identity(), None, ("token_accuracy",))
    sums = jax.tree.map(
        lambda s, value: s + value, state.unlogged, type(state.unlogged)(2.5, 7.0, {"token_accuracy": 3.0})
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, state._replace(unlogged=sums))
    found = checkpoints.restore(checkpoints.latest_step(), state)
    jax.tree.map(np.testing.assert_array_equal, found.unlogged, sums)


def test_a_checkpoint_of_an_earlier_version_is_told(tmp_path):
    state = initial_state({"weight": jnp.arange(3.0)}, optax.identity(), None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, Former(*state[:4]))
    with pytest.raises(UserError, match="does not fit this configuration or this version of the package"):
        checkpoints.restore(1, state)
