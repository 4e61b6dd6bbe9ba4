"""The compiled train step: compiled once, the same for every length of run, planned within the memory and the devices."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from gemma_keras.adapters.rank_allocator import resolve_schedule
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from gemma_keras.config.stages import StepConfig
from gemma_keras.parallel.plan import REMAT_POLICIES, ComputePlan
from gemma_keras.planning.memory import policies_to_try, saved_bytes
from gemma_keras.planning.plans import default_mesh_shape, plan_for
from gemma_keras.stages.running.assets import load_trainable_params
from gemma_keras.training.program import step_settings, total_steps, train_program
from tests.models.conftest import small

STEPS = 10
ARCHITECTURE = small(num_layers=2, vocabulary_size=96)
ADALORA = AdapterConfig(method="adalora", init_r=4, target_r=2, delta_t=2, tinit=2, tfinal=3, dropout=0.1)
CONFIG = StepConfig(
    model=ModelConfig(dtype="float32"),
    data=DataConfig(sequence_length=16),
    adapter=ADALORA,
    optim=OptimConfig(learning_rate=1e-2, warmup=2),
    train=TrainConfig(steps=STEPS, batch_rows=4, accumulation=2),
)
CPU, TPU = (types.SimpleNamespace(device_kind=kind, platform=kind[:3].lower()) for kind in ("cpu", "TPU v5 lite"))


def change(config: StepConfig = CONFIG, **sections: dict) -> StepConfig:
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    )


def batch(step: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(step).integers(0, 96, (4, 16)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape).copy(),
        "loss_weights": np.ones(tokens.shape, np.float32),
        "row_index": np.zeros_like(tokens),
    }


class Compilations:
    """What XLA compiles, by the events that JAX tells of."""

    def __init__(self):
        self.count, self.listening = 0, True
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_) -> None:
        self.count += self.listening and event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    counter = Compilations()
    yield counter
    counter.listening = False


@pytest.mark.parametrize(
    "method", [*(pytest.param(method, marks=pytest.mark.long) for method in ("none", "lora")), "adalora"]
)
def test_nothing_is_compiled_after_the_first_step(method, compilations):
    config = change(adapter={"method": method})
    program = train_program(config, ARCHITECTURE, ComputePlan())
    trainable, frozen = load_trainable_params(config, program)
    state = program.initial_state(trainable)
    lowered = program.lower()
    before = compilations.count
    compiled = lowered.compile()
    assert compilations.count == before + 1
    ranks = resolve_schedule(config.adapter, STEPS, len(program.matrices)) if program.allocator else None
    settings, losses, alive, seen = step_settings(config, STEPS, ranks), [], [], []
    for step in range(1, STEPS + 1):
        state, metrics = compiled(state, frozen, program.place(batch(1)), settings(step))
        losses.append(float(metrics["loss"]))
        alive.append(int(np.asarray(metrics["ranks"]).sum()) if program.allocator else 0)
        seen.append(compilations.count)
    assert seen[0] > before and set(seen) == {seen[0]}
    assert int(state.step) == STEPS and losses[-1] < losses[0] - 0.02
    if program.allocator:  # every phase was passed
        assert (alive[0], alive[-1]) == (4 * len(program.matrices), 2 * len(program.matrices))


def test_the_program_is_the_same_for_any_length_of_run():
    def text(config):
        return train_program(config, ARCHITECTURE, ComputePlan()).lower().as_text()

    expected = text(CONFIG)
    longer = change(
        train={"steps": 999, "save_every": 7}, optim={"learning_rate": 3e-5, "warmup": 0.2, "schedule": "constant"},
        adapter={"delta_t": 7, "tinit": 0.1, "tfinal": 50.0, "target_r": 3},
    )  # fmt: skip
    assert text(longer) == expected
    assert text(change(adapter={"init_r": 6})) != expected
    assert text(change(train={"accumulation": 1})) != expected


def test_nothing_is_allocated_for_a_program():
    """A table of 10 million rows of 65,536 numbers, from its shape alone."""
    program = train_program(CONFIG, ARCHITECTURE.replace(vocabulary_size=10**7, hidden_dim=2**16), ComputePlan())
    leaves = jax.tree.leaves((program.state, program.frozen, program.batch, program.settings))
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_settings_follow_the_schedules():
    ranks = resolve_schedule(ADALORA, STEPS, 8)
    settings = step_settings(CONFIG, STEPS, ranks)
    assert settings(1).learning_rate == 0 and settings(3).learning_rate == np.float32(1e-2)
    assert [bool(settings(t).phase.fixed) for t in (7, 8)] == [False, True]
    assert step_settings(CONFIG, STEPS, None)(3).phase is None


def test_the_length_of_a_run_is_given_in_steps_tokens_or_passes():
    def length(**train):
        return total_steps(change(train={"steps": 0, **train}), packed_rows=100)

    assert length(tokens=6_400) == length(tokens=6_400, batch_rows=2) // 2 == 100  # rows of 16 tokens
    assert length(tokens=6_400, steps=7) == 7
    assert length(epochs=3.0) == 75 and length(tokens=1) == 1


def test_allocations_may_be_a_share_of_the_run():
    schedule = resolve_schedule(dataclasses.replace(ADALORA, delta_t=0.02, tinit=0.1, tfinal=0.2), 500, 8)
    assert schedule.delta_t == 10
    assert resolve_schedule(dataclasses.replace(ADALORA, delta_t=0.001), STEPS, 8).delta_t == 1


def test_policies_worth_compiling():
    def sizes(policy):
        return saved_bytes(CONFIG, ARCHITECTURE, ComputePlan(remat=policy))

    def tried(limit, **train):
        return policies_to_try(change(train=train), ARCHITECTURE, ComputePlan(), limit)

    assert tried(None) == ["matmul"]
    assert tried(1e15) == list(REMAT_POLICIES)
    assert tried(sizes("none")) == list(REMAT_POLICIES[1:])  # what remains must be below the limit
    assert tried(sizes("attention")) == ["full"]
    assert tried(1.0) == ["full"]
    assert tried(1.0, remat="matmul") == ["matmul"]


@pytest.mark.parametrize("shape", [ARCHITECTURE, small(num_layers=46, hidden_dim=4608, intermediate_dim=36864)])
def test_saved_bytes_fall_with_every_policy_and_rise_with_the_tokens(shape):
    sizes = [saved_bytes(CONFIG, shape, ComputePlan(remat=policy)) for policy in REMAT_POLICIES]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(REMAT_POLICIES)
    stream = 2 * 16 * shape.num_layers * shape.hidden_dim * 4  # microbatch rows, T, L, D, float32
    assert sizes[-1] == stream
    doubled = change(train={"batch_rows": 8})
    assert saved_bytes(doubled, shape, ComputePlan(remat="none")) == 2 * sizes[0]


@pytest.mark.parametrize(
    ("parallel", "train", "message"),
    [
        ({"model": 8}, {}, "config.parallel.model is 8, which does not divide the 4 heads"),
        ({"data": 8, "model": 1}, {}, "config.parallel.data is 8, which does not divide the 2 rows"),
        ({"data": 4, "model": 4}, {"batch_rows": 8}, "4x4 = 16 devices, but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_a_users_mistake(parallel, train, message):
    config = change(dataclasses.replace(CONFIG, parallel=ParallelConfig(**parallel)), train=train)
    with pytest.raises(UserError, match=message):
        plan_for(config, ARCHITECTURE, [CPU] * 8, "none")


def test_what_a_plan_leaves_open_is_chosen():
    one = plan_for(CONFIG, ARCHITECTURE, [CPU], "full")
    assert one == ComputePlan(attention="blockwise", remat="full")
    assert plan_for(change(data={"sequence_length": 128}), ARCHITECTURE, [TPU], "none").attention == "splash"
    assert plan_for(change(model={"attention": "reference"}), ARCHITECTURE, [TPU], "none").attention == "reference"


@pytest.mark.parametrize(
    ("devices", "rows", "expected"), [(8, 16, (8, 1)), (8, 2, (2, 4)), (8, 1, (1, 4)), (4, 1, (1, 4))]
)
def test_default_mesh(devices, rows, expected):
    """Rows first, heads (4) for what rows leave."""
    assert default_mesh_shape(ARCHITECTURE, devices, rows) == expected
