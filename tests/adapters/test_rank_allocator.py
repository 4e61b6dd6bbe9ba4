"""Budgets, survivors, the final phase, and that a pruned triplet is gone for good."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras.adapters.inject import TARGETS, adapter_stacks, add_adapters, initial_adapter_params
from gemma_keras.adapters.rank_allocator import RankAllocator, RankSchedule, resolve_schedule
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.forward import build_backbone
from tests.models.conftest import small

CONFIG = AdapterConfig(method="adalora", init_r=4, target_r=2, alpha=4.0, delta_t=3, tinit=4, tfinal=6)
STEPS = 20


LAYERS = 2


@pytest.fixture(scope="module")
def stacks():
    return adapter_stacks(add_adapters(build_backbone(small(num_layers=LAYERS), "float32"), CONFIG))


@pytest.fixture(scope="module")
def schedule(stacks):
    return resolve_schedule(CONFIG, STEPS, LAYERS * len(stacks))


def random_params(stacks, seed=0):
    rng = np.random.default_rng(seed)
    return {
        s.path(w): jnp.asarray(rng.normal(size=s.shape(w)), jnp.float32) for s in stacks for w in s.adapter.weight_names
    }


def run(allocator, schedule, steps=STEPS, grads=random_params):
    """Parameters and state after `steps` updates with the given gradients."""
    params, state = random_params(allocator.stacks), allocator.init()
    update = jax.jit(allocator.update)
    for t in range(1, steps + 1):
        state, params = update(state, params, grads(allocator.stacks, t), schedule.phase(t))
    return params, state


def flat(allocator, masks):
    """What is kept of every triplet, in the order of `RankAllocator.triplet_scores`."""
    return np.stack([np.asarray(masks[s.name]) for s in allocator.stacks], axis=1).reshape(-1)


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


@pytest.mark.parametrize(
    "steps, tinit, tfinal", [(20, 0, 19), (1, 0, 0), (2, 0, 1), (1, 0.1, 0.3), (10, 0.05, 9), (2, 0, 0.5)]
)
def test_no_pattern_is_fixed_before_anything_is_scored(steps, tinit, tfinal):
    config = dataclasses.replace(CONFIG, tinit=tinit, tfinal=tfinal)
    with pytest.raises(UserError, match="after step 1 of .* before any was scored"):
        resolve_schedule(config, steps, 4)
    resolve_schedule(dataclasses.replace(config, target_r=config.init_r), steps, 4)  # nothing is chosen
    longer = resolve_schedule(
        dataclasses.replace(config, tinit=0, tfinal=int(tfinal * steps) if tfinal < 1 else tfinal), steps + 1, 4
    )
    first = next(t for t in range(1, steps + 2) if longer.phase(t).allocates)
    assert any(longer.phase(t).scores for t in range(1, first + 1))


@given(total=st.integers(2, 60), tinit=st.integers(0, 60), tfinal=st.integers(0, 60), delta=st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_every_allocation_follows_a_score(total, tinit, tfinal, delta):
    config = dataclasses.replace(CONFIG, tinit=tinit, tfinal=tfinal, delta_t=delta)
    try:
        schedule = resolve_schedule(config, total, 4)
    except UserError:
        return
    allocations = [t for t in range(1, total + 1) if schedule.phase(t).allocates]
    assert allocations and any(schedule.phase(t).scores for t in range(1, allocations[0] + 1))


def test_a_phase_says_what_a_step_does():
    schedule = RankSchedule(total_steps=20, tinit=4, tfinal=6, delta_t=3, initial_budget=32, target_budget=16)
    assert [t for t in range(1, 21) if schedule.phase(t).scores] == list(range(1, 14))
    assert [t for t in range(1, 21) if schedule.phase(t).allocates] == [6, 9, 12, 14]
    assert [t for t in range(1, 21) if schedule.phase(t).prunes] == [6, 9, 12, *range(14, 21)]
    assert [t for t in range(1, 21) if schedule.phase(t).fixed] == list(range(15, 21))
    assert [int(schedule.phase(t).budget) for t in (4, 14, 20)] == [32, 16, 16]


def test_equal_scores_do_not_over_prune(stacks, schedule):
    allocator = RankAllocator(stacks, CONFIG)
    zeros = lambda stacks, t: jax.tree.map(jnp.zeros_like, random_params(stacks))  # noqa: E731
    _, state = run(allocator, schedule, grads=zeros)
    assert int(allocator.ranks(state).sum()) == 2 * LAYERS * len(stacks)


def test_the_budget_counts_weights():
    """Of all seven projections, whose triplets differ in size; PEFT's counts triplets."""
    config = dataclasses.replace(CONFIG, targets=TARGETS)
    stacks = adapter_stacks(add_adapters(build_backbone(small(num_layers=LAYERS), "float32"), config))
    sizes = np.array([s.adapter.d_in + s.adapter.d_out + 1 for s in stacks])
    assert len(set(sizes.tolist())) > 1
    target, used, triplets = 2 * LAYERS * sizes.sum(), [], []
    for compatible in (False, True):
        allocator = RankAllocator(stacks, dataclasses.replace(config, peft_compatible=compatible))
        _, state = run(allocator, resolve_schedule(config, STEPS, LAYERS * len(stacks)))
        ranks = np.array([np.asarray(state.alive[s.name]).sum() for s in stacks])
        used.append(int(ranks @ sizes))
        triplets.append(int(ranks.sum()))
    assert target - sizes.max() < used[0] <= target
    assert triplets[1] == 2 * LAYERS * len(stacks)


def test_target_equal_to_initial_rank_prunes_nothing(stacks):
    config = dataclasses.replace(CONFIG, target_r=4)
    allocator = RankAllocator(stacks, config)
    params, state = run(allocator, resolve_schedule(config, STEPS, allocator.matrix_count))
    assert int(allocator.ranks(state).sum()) == 4 * LAYERS * len(stacks)
    assert all(np.asarray(params[s.path("lora_E")]).all() for s in stacks)


def test_survivors_have_the_largest_scores_of_all_matrices(stacks, schedule):
    allocator = RankAllocator(stacks, CONFIG)
    params, state = run(allocator, schedule)
    scores, alive = np.asarray(allocator.triplet_scores(state)), flat(allocator, state.alive)
    assert scores[alive].min() > scores[~alive].max()
    pruned = flat(allocator, {s.name: params[s.path("lora_E")] == 0 for s in stacks})
    assert pruned[~alive].all()  # one that was chosen again is still 0, for nothing trains here
    ranks = np.asarray(allocator.ranks(state))
    np.testing.assert_array_equal(ranks, alive.reshape(-1, CONFIG.init_r).sum(axis=1))
    assert len(set(ranks.tolist())) > 1  # ranks differ between matrices


def test_scores_are_those_of_each_matrix_by_itself(stacks, schedule):
    """The score of a triplet written out for one block and projection after the other."""
    allocator = RankAllocator(stacks, CONFIG)
    _, state = run(allocator, schedule)
    product = {path: np.asarray(state.importance[path] * state.uncertainty[path]) for path in state.importance}
    expected = [
        product[s.path("lora_E")][layer, triplet]
        + product[s.path("lora_A")][layer, triplet, :].mean()
        + product[s.path("lora_B")][layer, :, triplet].mean()
        for layer in range(LAYERS)
        for s in stacks
        for triplet in range(CONFIG.init_r)
    ]
    np.testing.assert_allclose(allocator.triplet_scores(state), expected, rtol=1e-5)


def test_pattern_stays_fixed_in_the_final_phase(stacks, schedule):
    allocator = RankAllocator(stacks, CONFIG)
    _, fixed = run(allocator, schedule, steps=schedule.fixed_at)
    _, final = run(allocator, schedule)
    jax.tree.map(np.testing.assert_array_equal, fixed, final)


def test_active_triplets_before_and_after_the_pattern_is_fixed(stacks, schedule):
    allocator = RankAllocator(stacks, CONFIG)
    _, state = run(allocator, schedule)
    before = allocator.active(state, schedule.phase(schedule.fixed_at))
    after = allocator.active(state, schedule.phase(schedule.fixed_at + 1))
    assert all(np.asarray(mask).all() for mask in before.values())
    left = sum(int(mask.sum()) for mask in after.values())
    assert left == int(allocator.ranks(state).sum()) < 4 * LAYERS * len(stacks)


def dense_penalty(stacks, params, alive):
    """The penalty written out, on physically smaller factors."""
    norms = []
    for s in stacks:
        for layer in range(LAYERS):
            keep = np.asarray(alive[s.name][layer], bool)
            lora_A, lora_B = (np.asarray(params[s.path(name)][layer]) for name in ("lora_A", "lora_B"))
            for factor in (lora_A[keep], lora_B.T[keep]):
                norms.append(np.linalg.norm(factor @ factor.T - np.eye(len(factor))))
    return np.mean(norms)


def test_dropping_pruned_triplets_changes_neither_penalty_nor_gradients(stacks, schedule):
    allocator = RankAllocator(stacks, CONFIG)
    params, state = run(allocator, schedule)
    active = allocator.active(state, schedule.phase(STEPS))
    penalty, grads = jax.value_and_grad(allocator.penalty)(params, active)
    assert penalty == pytest.approx(dense_penalty(stacks, params, state.alive), rel=1e-5)
    noise = random_params(stacks, seed=9)
    masks = allocator.weight_masks(active)
    disturbed = {path: jnp.where(masks[path] > 0, value, noise[path]) for path, value in params.items()}
    penalty_again, grads_again = jax.value_and_grad(allocator.penalty)(disturbed, active)
    assert penalty_again == penalty  # what pruned triplets hold does not matter
    for path, mask in masks.items():
        np.testing.assert_array_equal(grads[path] * mask, grads_again[path] * mask)


def test_penalty_of_a_matrix_without_survivors_is_finite(stacks):
    allocator = RankAllocator(stacks, CONFIG)
    active = {s.name: jnp.zeros((LAYERS, 4)) for s in stacks}
    penalty, grads = jax.value_and_grad(allocator.penalty)(random_params(stacks), active)
    assert penalty == 0 and all(np.isfinite(np.asarray(g)).all() for g in grads.values())


def test_paths_are_unique_and_the_replaced_projection_is_listed_once():
    backbone = build_backbone(small(num_layers=2), "float32")
    matrices = add_adapters(backbone, dataclasses.replace(CONFIG, dropout=0.1))
    paths = [variable.path for variable in backbone.variables]
    assert len(paths) == len(set(paths))
    assert matrices[0].path("lora_A") == "decoder_block_0/attention/query/adalora/lora_A"
    initial = initial_adapter_params(matrices, 0)
    assert set(initial) <= set(paths) and len(initial) == 3 * 8
    stack = adapter_stacks(matrices)[0]
    assert stack.name == "decoder_blocks/attention/query"
    assert stack.path("lora_A") == "decoder_blocks/attention/query/adalora/lora_A"
    assert stack.shape("lora_A") == (2, 4, 64) and len(adapter_stacks(matrices)) == 4


def test_unknown_target_is_named():
    with pytest.raises(UserError, match="'q_proj'"):
        add_adapters(build_backbone(small(), "float32"), dataclasses.replace(CONFIG, targets=("q_proj",)))
