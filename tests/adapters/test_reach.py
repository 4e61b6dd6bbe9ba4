"""How far adapters can move, by the sum of learning rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.registry import ADAPTERS
from gemma_keras.config.sections import AdapterConfig, OptimConfig
from gemma_keras.training.optimizers import learning_rates, make_optimizer
from gemma_keras.training.program import LEAST_REACH, describe_reach

D_IN, D_OUT, STEPS = 48, 96, 40


@pytest.mark.parametrize(
    ("method", "start", "moved"),
    [("lora", "noise", "lora_B"), ("adalora", "noise", "lora_E"), ("adalora", "zero_B", "lora_B")],
)
def test_a_gradient_that_never_turns_moves_a_triplet_as_far_as_it_can(method, start, moved):
    """One triplet, whose other weights stay as they start (from noise: as the penalty holds them, at norm 1)."""
    config, optim = AdapterConfig(method=method, start=start, init_r=1, alpha=3.0, dropout=0.0), OptimConfig(warmup=0.1)
    adapter = ADAPTERS[method](EinsumAxes.of("btd,do->bto", (D_IN, D_OUT)), config, "float32")
    adapter.build((None, None, D_IN))
    weights = adapter.initial_values(jax.random.key(0))
    if method == "adalora" and start == "noise":
        weights |= {name: weights[name] / jnp.linalg.norm(weights[name]) for name in ("lora_A", "lora_B")}
    target = jax.random.normal(jax.random.key(1), (D_IN, D_OUT))
    optimizer, rates = make_optimizer(optim), learning_rates(optim, STEPS)

    def loss(value):
        return -jnp.sum(target * adapter.merge(jnp.zeros((D_IN, D_OUT)), weights | {moved: value}))

    value = {"token_embedding/embeddings": weights[moved]}  # any path that the table of weights has
    state = optimizer.init(value)
    for rate in rates:
        updates, state = optimizer.update(jax.grad(lambda v: loss(*v.values()))(value), state, value)
        value = optax.apply_updates(value, jax.tree.map(lambda u, rate=rate: -rate * u, updates))
    change = adapter.merge(jnp.zeros((D_IN, D_OUT)), weights | {moved: next(iter(value.values()))})
    reach = adapter.reach(float(rates.sum()))
    assert np.linalg.norm(change, 2) == pytest.approx(reach, rel=0.2)  # rows of lora_A are drawn, 1/sqrt(3) on average


def test_too_little_is_told_with_what_to_change():
    assert "too little" not in describe_reach(LEAST_REACH)
    assert "raise adapter.alpha" in describe_reach(0.9 * LEAST_REACH)
