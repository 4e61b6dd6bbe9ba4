"""Budgets, survivors, the final phase, and that a pruned triplet is gone for good."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.adapters.inject import add_adapters, initial_adapter_params
from gemma_keras.adapters.rank_allocator import RankAllocator, RankSchedule, resolve_schedule
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import AdapterConfig
from gemma_keras.models.forward import build_backbone
from tests.models.conftest import small

CONFIG = AdapterConfig(method="adalora", init_r=4, target_r=2, alpha=4.0, delta_t=3, tinit=4, tfinal=6)
STEPS = 20


@pytest.fixture(scope="module")
def matrices():
    return add_adapters(build_backbone(small(num_layers=1), "float32"), CONFIG)


def random_params(matrices, seed=0):
    rng = np.random.default_rng(seed)
    return {
        m.path(w): jnp.asarray(rng.normal(size=getattr(m.adapter, w).shape), jnp.float32)
        for m in matrices
        for w in m.adapter.weight_names
    }


def run(allocator, matrices, steps=STEPS, grads=random_params):
    """Parameters and state after `steps` updates with the given gradients."""
    params, state = random_params(matrices), allocator.init()
    update = jax.jit(allocator.update)
    for t in range(1, steps + 1):
        state, params = update(state, params, grads(matrices, t), jnp.int32(t))
    return params, state


@given(
    total=st.integers(10, 400), start=st.floats(0, 0.4), end=st.floats(0, 0.4), delta=st.integers(1, 50),
    target=st.integers(0, 8),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_budget_falls_from_all_to_target(total, start, end, delta, target):
    schedule = RankSchedule(total, int(start * total), int(end * total), delta, 8 * 7, target * 7)
    budgets = [schedule.budget(t) for t in range(total + 1)]
    assert budgets[schedule.tinit] == 8 * 7 and budgets[schedule.fixed_at] == budgets[-1] == target * 7
    assert all(a >= b for a, b in zip(budgets, budgets[1:], strict=False))
    assert schedule.allocates(schedule.fixed_at)  # whatever delta_t, the target is reached


def test_fractions_resolve_to_steps():
    schedule = resolve_schedule(dataclasses.replace(CONFIG, tinit=0.1, tfinal=0.25), 200, 3)
    assert (schedule.tinit, schedule.tfinal, schedule.fixed_at) == (20, 50, 150)
    assert (schedule.initial_budget, schedule.target_budget) == (12, 6)


@pytest.mark.parametrize("change", [{"tinit": 15.0}, {"tfinal": 0.9}, {"target_r": 5}])
def test_impossible_schedules_are_named(change):
    with pytest.raises(UserError, match="adapter"):
        resolve_schedule(dataclasses.replace(CONFIG, **change), STEPS, 4)


def test_equal_scores_do_not_over_prune(matrices):
    allocator = RankAllocator(matrices, CONFIG, STEPS)
    zeros = lambda matrices, t: jax.tree.map(jnp.zeros_like, random_params(matrices))  # noqa: E731
    _, state = run(allocator, matrices, grads=zeros)
    assert int(allocator.ranks(state).sum()) == 2 * len(matrices)


def test_target_equal_to_initial_rank_prunes_nothing(matrices):
    allocator = RankAllocator(matrices, dataclasses.replace(CONFIG, target_r=4), STEPS)
    params, state = run(allocator, matrices)
    assert int(allocator.ranks(state).sum()) == 4 * len(matrices)
    assert all(np.asarray(params[m.path("lora_E")]).all() for m in matrices)


def test_survivors_have_the_largest_scores_of_all_matrices(matrices):
    allocator = RankAllocator(matrices, CONFIG, STEPS)
    params, state = run(allocator, matrices)
    scores = np.asarray(allocator.triplet_scores(state))
    alive = np.concatenate([np.asarray(state.alive[m.name]) for m in matrices])
    assert scores[alive].min() > scores[~alive].max()
    pruned = np.concatenate([np.asarray(params[m.path("lora_E")]) == 0 for m in matrices])
    np.testing.assert_array_equal(pruned, ~alive)
    assert len(set(np.asarray(allocator.ranks(state)).tolist())) > 1  # ranks differ between matrices


def test_pattern_stays_fixed_in_the_final_phase(matrices):
    allocator = RankAllocator(matrices, CONFIG, STEPS)
    _, fixed = run(allocator, matrices, steps=allocator.schedule.fixed_at)
    _, final = run(allocator, matrices)
    jax.tree.map(np.testing.assert_array_equal, fixed, final)


def test_active_triplets_before_and_after_the_pattern_is_fixed(matrices):
    allocator = RankAllocator(matrices, CONFIG, STEPS)
    _, state = run(allocator, matrices)
    before = allocator.active(state, jnp.int32(allocator.schedule.fixed_at - 1))
    after = allocator.active(state, jnp.int32(allocator.schedule.fixed_at))
    assert all(np.asarray(mask).all() for mask in before.values())
    assert sum(int(mask.sum()) for mask in after.values()) == 2 * len(matrices)


def dense_penalty(matrices, params, alive):
    """The penalty written out, on physically smaller factors."""
    norms = []
    for m in matrices:
        keep = np.asarray(alive[m.name], bool)
        for factor in (np.asarray(params[m.path("lora_A")])[keep], np.asarray(params[m.path("lora_B")]).T[keep]):
            norms.append(np.linalg.norm(factor @ factor.T - np.eye(len(factor))))
    return np.mean(norms)


def test_dropping_pruned_triplets_changes_neither_penalty_nor_gradients(matrices):
    allocator = RankAllocator(matrices, CONFIG, STEPS)
    params, state = run(allocator, matrices)
    active = allocator.active(state, jnp.int32(STEPS))
    penalty, grads = jax.value_and_grad(allocator.penalty)(params, active)
    assert penalty == pytest.approx(dense_penalty(matrices, params, state.alive), rel=1e-5)
    noise = random_params(matrices, seed=9)
    masks = allocator.weight_masks(active)
    disturbed = {path: jnp.where(masks[path] > 0, value, noise[path]) for path, value in params.items()}
    penalty_again, grads_again = jax.value_and_grad(allocator.penalty)(disturbed, active)
    assert penalty_again == penalty  # what pruned triplets hold does not matter
    for path, mask in masks.items():
        np.testing.assert_array_equal(grads[path] * mask, grads_again[path] * mask)


def test_penalty_of_a_matrix_without_survivors_is_finite(matrices):
    allocator = RankAllocator(matrices, CONFIG, STEPS)
    active = {m.name: jnp.zeros(4) for m in matrices}
    penalty, grads = jax.value_and_grad(allocator.penalty)(random_params(matrices), active)
    assert penalty == 0 and all(np.isfinite(np.asarray(g)).all() for g in grads.values())


def test_paths_are_unique_and_the_replaced_projection_is_listed_once():
    backbone = build_backbone(small(num_layers=2), "float32")
    matrices = add_adapters(backbone, dataclasses.replace(CONFIG, dropout=0.1))
    paths = [variable.path for variable in backbone.variables]
    assert len(paths) == len(set(paths))
    assert matrices[0].path("lora_A") == "decoder_block_0/attention/query/adalora/lora_A"
    initial = initial_adapter_params(matrices, 0)
    assert set(initial) <= set(paths) and len(initial) == 3 * 8


def test_unknown_target_is_named():
    with pytest.raises(UserError, match="'q_proj'"):
        add_adapters(build_backbone(small(), "float32"), dataclasses.replace(CONFIG, targets=("q_proj",)))
