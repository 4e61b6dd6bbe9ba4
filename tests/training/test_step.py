"""One optimizer step: accumulation, clipping, schedules, random keys, and what a bad step leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from gemma_keras.adapters.inject import adapter_stacks, add_adapters, dropout_seeds, initial_adapter_params
from gemma_keras.adapters.rank_allocator import RankAllocator, resolve_schedule
from gemma_keras.config.sections import AdapterConfig, OptimConfig
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.stacking import stack_params
from gemma_keras.training.objectives.base import LossSums
from gemma_keras.training.objectives.supervised import Supervised, supervised_sums
from gemma_keras.training.optimizers import clip_by_global_norm, learning_rate_schedule, make_optimizer
from gemma_keras.training.state import initial_state
from gemma_keras.training.step import StepSettings, make_train_step
from tests.models.conftest import lively_params, small

MODEL = small(num_layers=2)
ADAPTER = AdapterConfig(method="adalora", init_r=4, target_r=2, alpha=8.0, dropout=0.1, delta_t=2, tinit=2, tfinal=4)


def make_batch(rng, rows=4, length=16):
    tokens = rng.integers(0, 97, (rows, length)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_weights": (rng.random(tokens.shape) < 0.3).astype(np.float32),  # rows of unequal weight
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
        "row_index": np.zeros_like(tokens),
    }


WEIGHT = "token_embedding/embeddings"  # any path that the table of weights has, and that decays


def quadratic(trainable, frozen, batch, key):
    """A loss whose gradient is known: Σ w (x·p)² / 2."""
    error = batch["x"] @ trainable[WEIGHT]
    return LossSums(0.5 * jnp.sum(batch["w"] * error**2), jnp.sum(batch["w"]), {})


def adapter_step(seed=0, accumulation=1, dropout=0.0):
    config = AdapterConfig(**{name: getattr(ADAPTER, name) for name in ADAPTER.__slots__} | {"dropout": dropout})
    backbone = build_backbone(MODEL, "float32")
    matrices = add_adapters(backbone, config)
    stacks = adapter_stacks(matrices)
    allocator = RankAllocator(stacks, config)
    optimizer = make_optimizer(OptimConfig())

    def loss(trainable, frozen, batch, key):
        params = {**frozen, **trainable, **dropout_seeds(stacks, key)}
        return supervised_sums(backbone, params, batch, training=True)

    jitted = make_train_step(loss, optimizer, allocator=allocator, accumulation=accumulation, clip_norm=1.0, seed=seed)
    schedule, rate = resolve_schedule(config, 10, len(matrices)), cosine(1e-2, 10)

    def step(state, frozen, batch):
        t = int(state.step) + 1
        return jitted(state, frozen, batch, StepSettings(np.float32(rate(t - 1)), schedule.phase(t)))

    params = stack_params(initial_adapter_params(matrices, 0))
    return step, initial_state(params, optimizer, allocator, Supervised.metrics)


def cosine(learning_rate, steps):
    return learning_rate_schedule(OptimConfig(learning_rate=learning_rate, warmup=0), steps)


def plain_step(optimizer, rate):
    """A step on `quadratic` at one learning rate."""
    jitted = make_train_step(quadratic, optimizer)
    return lambda state, frozen, batch: jitted(state, frozen, batch, StepSettings(np.float32(rate), None))


def test_microbatches_give_the_global_mean():
    batch, frozen = make_batch(np.random.default_rng(0)), stack_params(lively_params(MODEL))
    whole, split = (adapter_step(accumulation=n) for n in (1, 4))
    for _ in range(3):
        state_1, metrics_1 = whole[0](whole[1], frozen, batch)
        state_4, metrics_4 = split[0](split[1], frozen, batch)
        whole, split = (whole[0], state_1), (split[0], state_4)
        assert metrics_4["loss"] == pytest.approx(float(metrics_1["loss"]), rel=1e-5)
        assert metrics_4["grad_norm"] == pytest.approx(float(metrics_1["grad_norm"]), rel=1e-3)


def test_loss_is_a_mean_over_weights():
    optimizer = make_optimizer(OptimConfig(name="sgd"))
    step = plain_step(optimizer, 0.1)
    batch = {"x": np.array([[1.0, 0.0], [0.0, 2.0]], np.float32), "w": np.array([1.0, 3.0], np.float32)}
    state, metrics = step(initial_state({WEIGHT: jnp.ones(2)}, optimizer, None), {}, batch)
    assert metrics["loss"] == pytest.approx(0.5 * (1 + 3 * 4) / 4)
    np.testing.assert_allclose(state.trainable[WEIGHT], [1 - 0.1 * 1 / 4, 1 - 0.1 * 3 * 4 / 4], rtol=1e-6)


def test_means_are_over_the_steps_since_the_last_line():
    optimizer = make_optimizer(OptimConfig(name="sgd"))
    jitted = make_train_step(quadratic, optimizer)
    state, losses, means = initial_state({WEIGHT: jnp.ones(2)}, optimizer, None), [], []
    weights = [1.0, 3.0, 2.0, 5.0, 4.0]
    for weight, logged in zip(weights, (True, False, True, False, False), strict=True):
        batch = {"x": np.full((1, 2), weight, np.float32), "w": np.full(1, weight, np.float32)}
        state, metrics = jitted(state, {}, batch, StepSettings(np.float32(1e-3), None, np.bool_(logged)))
        losses.append(float(metrics["loss"]))
        means.append(float(metrics["means"]["loss"]))

    def mean(steps):
        return pytest.approx(np.average(losses[steps], weights=weights[steps]), rel=1e-6)

    assert len(set(losses)) == 5
    assert means == [losses[0], losses[1], mean(slice(1, 3)), losses[3], mean(slice(3, 5))]
    assert float(state.unlogged.weight) == 9.0  # what a checkpoint takes along


def test_a_step_that_is_not_finite_changes_nothing():
    optimizer = make_optimizer(OptimConfig())
    step = plain_step(optimizer, 0.1)
    good = {"x": np.ones((1, 2), np.float32), "w": np.ones(1, np.float32)}
    state, _ = step(initial_state({WEIGHT: jnp.ones(2)}, optimizer, None), {}, good)
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, {}, {**good, "x": np.full((1, 2), np.nan, np.float32)})
    assert not np.isfinite(metrics["loss"])
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, state._replace(step=before.step), before)


@pytest.mark.long
def test_dropout_depends_on_seed_and_step_alone():
    batch, frozen = make_batch(np.random.default_rng(0)), stack_params(lively_params(MODEL))

    def losses(seed):
        step, state = adapter_step(seed, dropout=0.5)
        values = []
        for _ in range(3):
            state, metrics = step(state, frozen, batch)
            values.append(float(metrics["loss"]))
        return values

    first = losses(0)
    assert first == losses(0)
    assert first[1:] != losses(1)[1:]  # at the first step lora_E is 0 and dropout without effect


def test_pruned_triplets_get_neither_updates_nor_moments():
    batch, frozen = make_batch(np.random.default_rng(0)), stack_params(lively_params(MODEL))
    step, state = adapter_step()
    for _ in range(6):
        state, _ = step(state, frozen, batch)
    fixed = jax.tree.map(np.array, state)
    for _ in range(4):
        state, _ = step(state, frozen, batch)
    dead_seen = 0
    for name, alive in fixed.allocator.alive.items():
        dead, path = ~alive, f"{name}/adalora/lora_A"
        dead_seen += dead.sum()
        np.testing.assert_array_equal(state.trainable[path][dead], fixed.trainable[path][dead])
        np.testing.assert_array_equal(state.optimizer[0].mu[path][dead], 0)
        np.testing.assert_array_equal(state.trainable[f"{name}/adalora/lora_E"][dead], 0)
        change = np.abs(np.asarray(state.trainable[path])[alive] - fixed.trainable[path][alive])
        assert (change.max(axis=-1) > 0).all()
    assert dead_seen == 2 * MODEL.num_layers * len(fixed.allocator.alive)


def test_a_decaying_rate_equals_optax_adamw():
    """The rate comes from the host, the rest of AdamW from the optimizer: together optax's own."""
    config = OptimConfig(learning_rate=0.1, weight_decay=0.3, warmup=2)
    schedule = learning_rate_schedule(config, 8)
    optimizer, theirs = make_optimizer(config), optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.3)
    jitted = make_train_step(quadratic, optimizer)
    state, params = initial_state({WEIGHT: jnp.ones(2)}, optimizer, None), {WEIGHT: jnp.ones(2)}
    moments, rng = theirs.init(params), np.random.default_rng(0)
    for t in range(8):
        batch = {"x": rng.normal(size=(3, 2)).astype(np.float32), "w": np.ones(3, np.float32)}
        grads = jax.grad(lambda p, batch=batch: quadratic(p, {}, batch, None).loss / 3)(params)
        updates, moments = theirs.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        state, _ = jitted(state, {}, batch, StepSettings(np.float32(schedule(t)), None))
        np.testing.assert_allclose(state.trainable[WEIGHT], params[WEIGHT], rtol=1e-5)
    assert np.abs(np.asarray(params[WEIGHT]) - 1).max() > 0.1


def test_clipping_equals_optax():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    ours, norm = clip_by_global_norm(grads, 1.0)
    theirs, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert norm == pytest.approx(13.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    untouched, _ = clip_by_global_norm(grads, 0.0)
    jax.tree.map(np.testing.assert_array_equal, untouched, grads)


def test_schedule_equals_transformers():
    schedule = learning_rate_schedule(OptimConfig(learning_rate=2e-4, warmup=0.1), 50)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-4)
    reference = transformers.get_cosine_schedule_with_warmup(optimizer, 5, 50)
    for step in range(50):
        assert float(schedule(step)) == pytest.approx(
            reference.get_last_lr()[0], abs=2e-4 * 1e-6
        )  # of the peak, in float32
        optimizer.step()
        reference.step()
