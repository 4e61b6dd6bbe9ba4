"""A program for `test_meshes`: the same ten steps on one device and on meshes of eight; prints its findings as JSON.

Axes: B packed rows, T tokens, L layers, r rank.

Launch: python tests/training/mesh_runs.py meshes|policies|"Gemma 3" (with XLA_FLAGS=--xla_force_host_platform_device_count=8)
"""

import dataclasses
import json
import sys
from collections.abc import Iterator

import jax
import numpy as np

from gemma_keras.adapters.inject import initial_adapter_params
from gemma_keras.adapters.rank_allocator import resolve_schedule
from gemma_keras.config.sections import AdapterConfig, DataConfig, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from gemma_keras.config.stages import StepConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import initial_params
from gemma_keras.models.stacking import stack_params
from gemma_keras.planning.plans import plan_for
from gemma_keras.stages.running.assets import place_params
from gemma_keras.training.program import build_model, step_settings, train_program

ROWS, TIME, STEPS = 8, 128, 10
# 8 query heads, so that 8 devices can share them, which they cannot do with the 4 KV heads; the window is less than T.
ARCHITECTURE = get_architecture("gemma2_tiny").replace(
    num_layers=3, num_query_heads=8, num_key_value_heads=4, head_dim=16, query_pre_attn_scalar=16, sliding_window=24,
    vocabulary_size=512,
)  # fmt: skip
# One KV head, which no device can share; the pattern of six once and the beginning of another.
GEMMA3 = get_architecture("gemma3_tiny").replace(
    num_layers=7, num_query_heads=4, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=24,
    vocabulary_size=512,
)  # fmt: skip
# group: name: devices along data and model, changes of the training section, changes of the parallel section; the first run
# of a group is the one that the others have to equal. (Dropout draws a mask a microbatch.)
RUNS: dict[str, dict[str, tuple[int, int, dict, dict]]] = {
    "meshes": {
        "1x1": (1, 1, {}, {}),
        "1x8": (1, 8, {}, {}),
        "2x4": (2, 4, {}, {}),
        "8x1": (8, 1, {}, {}),
    },
    "policies": {
        "1x1 accumulation": (1, 1, {"accumulation": 2}, {}),
        "2x4 projections": (2, 4, {"accumulation": 2, "remat": "projections"}, {}),
        "2x4 matmul": (2, 4, {"accumulation": 2, "remat": "matmul"}, {}),
        "2x4 attention": (2, 4, {"accumulation": 2, "remat": "attention"}, {"shard_sequence": "no"}),
        "2x4 full": (2, 4, {"accumulation": 2, "remat": "full"}, {}),
    },
    "Gemma 3": {
        "1x1 Gemma 3": (1, 1, {}, {}),
        "2x4 Gemma 3": (2, 4, {"remat": "projections"}, {}),
    },
}


def batches() -> Iterator[dict[str, np.ndarray]]:
    """Two documents and some padding in every row, of other lengths in each."""
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = random.integers(0, ARCHITECTURE.vocabulary_size, (ROWS, TIME), np.int32)
        ends = np.sort(random.integers(10, TIME, (ROWS, 2)), axis=1)[:, :, None]
        slots = np.arange(TIME)[None]
        first, second = slots < ends[:, 0], (slots >= ends[:, 0]) & (slots < ends[:, 1])
        segments = first * 1 + second * 2
        yield {
            "tokens": tokens,
            "targets": np.roll(tokens, -1, 1),
            "segment_ids": segments.astype(np.int32),
            "positions": (slots * first + (slots - ends[:, 0]) * second).astype(np.int32),
            "loss_weights": ((random.random((ROWS, TIME)) < 0.6) & (segments > 0)).astype(np.float32),
        }


def run(architecture: Architecture, data: int, model: int, train: dict, parallel: dict) -> dict:
    """Loss and gradient norm of every step, the survivors of every matrix, and the final weights."""
    config = StepConfig(
        model=ModelConfig(dtype="float32"),
        data=DataConfig(sequence_length=TIME),
        adapter=AdapterConfig(method="adalora", init_r=8, target_r=4, tinit=2, tfinal=3, delta_t=2, dropout=0.1),
        optim=OptimConfig(learning_rate=1e-3, warmup=0),
        train=TrainConfig(batch_rows=ROWS, steps=STEPS, **train),
        parallel=ParallelConfig(data=data, model=model, **parallel),
    )
    plan = plan_for(config, architecture, jax.devices(), config.train.remat.replace("auto", "none"))
    program = train_program(config, architecture, plan)
    plain, _ = build_model(dataclasses.replace(config, adapter=AdapterConfig()), architecture)
    frozen = place_params(stack_params(initial_params(plain, 0)), plan.mesh)
    state = program.initial_state(place_params(stack_params(initial_adapter_params(program.matrices, 0)), plan.mesh))
    settings = step_settings(config, STEPS, resolve_schedule(config.adapter, STEPS, len(program.matrices)))
    found: dict = {"loss": [], "grad_norm": [], "alive": []}
    for step, batch in enumerate(batches(), start=1):
        state, metrics = program.step(state, frozen, program.place(batch), settings(step))
        for name in ("loss", "grad_norm"):
            found[name].append(float(metrics[name]))
        assert state.allocator is not None
        alive = {name: np.asarray(mask).tolist() for name, mask in state.allocator.alive.items()}
        found["alive"].append(alive)
    return found | {"weights": {path: np.asarray(value) for path, value in state.trainable.items()}}


def main() -> None:
    reference: dict = {}
    for name, arguments in RUNS[sys.argv[1]].items():
        found = run(GEMMA3 if sys.argv[1] == "Gemma 3" else ARCHITECTURE, *arguments)
        weights = found.pop("weights")
        reference = reference or weights
        # Against the largest of each stack: single elements are sums that may cancel.
        found["weights"] = {
            path: float(np.abs(value - reference[path]).max() / np.abs(reference[path]).max())
            for path, value in weights.items()
        }
        print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
