"""One contestant of `train_step` in a process of its own, which takes steps when it is told to.

A line of JSON on standard input asks for steps, `{"first": 3, "count": 1}`; the answer is a line on standard output. When
the input ends, so does the process. `python -m benchmarks.contestants NAME FOLDER` with NAME one of

    ours:4                  packed rows, the package's own train step, at most 4 packed rows at a time
    peft:padded:8           transformers and PEFT's AdaLoRA, rows padded to T, at most 8 rows at a time
    peft:dynamic:8          the same, rows sorted by length and padded to the longest of those at a time
    keras_hub:8             keras-hub's `enable_lora` and `fit`, rows padded to T, at most 8 rows at a time
    matmul                  one matrix product a step and nothing else: what the machine can do

where 0 rows at a time means all rows of a step; fewer are accumulated to one optimizer step.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.turns import serve

# (number of the first step, count) -> seconds and mean loss of each of these steps
Steps = Callable[[int, int], list[tuple[float, float]]]

MATMULS = 8  # products that are timed together


def ours(work: workload.Workload, folder: Path, at_once: int) -> Steps:
    """The package's train step on packed rows."""
    import jax

    from gemma_keras.adapters.inject import initial_adapter_params
    from gemma_keras.adapters.rank_allocator import resolve_schedule
    from gemma_keras.config.sections import AdapterConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
    from gemma_keras.config.stages import StepConfig
    from gemma_keras.models.forward import build_backbone
    from gemma_keras.models.loading import load_params
    from gemma_keras.models.stacking import stack_params
    from gemma_keras.planning.memory import compile_first_that_fits
    from gemma_keras.training.program import step_settings

    rows = len(work.steps[0])
    adapter = AdapterConfig(
        method="adalora", init_r=workload.RANK, target_r=workload.TARGET_RANK, alpha=workload.ALPHA,
        dropout=workload.DROPOUT, beta1=workload.BETA, beta2=workload.BETA, delta_t=workload.DELTA_T, tinit=1,
        tfinal=0.1, orth_reg_weight=workload.ORTHOGONALITY,
    )  # fmt: skip
    config = StepConfig(
        model=ModelConfig(architecture=work.architecture.name, dtype=work.dtype),
        data=DataConfig(sequence_length=work.sequence_length),
        adapter=adapter,
        optim=OptimConfig(learning_rate=workload.LEARNING_RATE, warmup=0, schedule="constant"),
        train=TrainConfig(batch_rows=rows, accumulation=max(1, rows // at_once) if at_once else 1, seed=workload.SEED),
    )
    program, compiled = compile_first_that_fits(config, work.architecture, jax.devices())
    backbone = build_backbone(work.architecture, work.dtype)
    frozen = stack_params(load_params(backbone, work.architecture, folder / "hf", work.dtype))
    state = program.initial_state(stack_params(initial_adapter_params(program.matrices, workload.SEED)))
    schedule = resolve_schedule(adapter, workload.TOTAL_STEPS, len(program.matrices))
    settings = step_settings(config, workload.TOTAL_STEPS, schedule)

    def steps(first: int, count: int) -> list[tuple[float, float]]:
        nonlocal state
        batches = [workload.packed_batch(work, step) for step in range(first, first + count)]
        measured = []
        for step, batch in enumerate(batches, start=first):
            start = time.perf_counter()
            state, metrics = compiled(state, frozen, program.place(batch), settings(step + 1))
            loss = float(metrics["loss"])
            measured.append((time.perf_counter() - start, loss))
        return measured

    return steps


def matmul(work: workload.Workload) -> Steps:
    """Products of square matrices, several a step."""
    import jax
    import jax.numpy as jnp

    size = matmul_size(jax.default_backend())
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(work.dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()

    def steps(first: int, count: int) -> list[tuple[float, float]]:
        measured = []
        for _ in range(count):
            start = time.perf_counter()
            products = [product(matrix, matrix) for _ in range(MATMULS)]
            jax.block_until_ready(products)
            measured.append((time.perf_counter() - start, 0.0))
        return measured

    return steps


def matmul_size(backend: str) -> int:
    """Rows and columns of the matrices of `matmul`."""
    return 2048 if backend == "cpu" else 8192


def build(name: str, folder: Path) -> Steps:
    """The contestant of this name, compiled or not, with its weights in memory."""
    from benchmarks import peers

    kind, *rest = name.split(":")
    work = workload.load(folder)
    if kind == "ours":
        return ours(work, folder, int(rest[0]))
    if kind == "matmul":
        return matmul(work)
    if kind == "peft":
        return peers.peft(work, folder, dynamic=rest[0] == "dynamic", at_once=int(rest[1]))
    return peers.keras_hub(work, folder, at_once=int(rest[0]))


def peak_bytes() -> dict[str, int]:
    """The most memory that this process has held so far: on the host, and on a GPU where there is one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    peak = {"host": 1024 * int(found[1]) if found else 0}
    if (
        "torch" in sys.modules
        and sys.modules["torch"].cuda.is_available()
        and sys.modules["torch"].cuda.is_initialized()
    ):
        peak["device"] = sys.modules["torch"].cuda.max_memory_allocated()
    elif "jax" in sys.modules and sys.modules["jax"].default_backend() == "gpu":
        peak["device"] = sys.modules["jax"].local_devices()[0].memory_stats()["peak_bytes_in_use"]
    return peak


def contestant(name: str, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Takes the steps that are asked for."""
    steps = build(name, folder)

    def take_turn(request: dict[str, Any]) -> dict[str, Any]:
        start = time.process_time()
        measured = steps(request["first"], request["count"])
        return {"steps": measured, "processor_seconds": time.process_time() - start, "peak": peak_bytes()}

    return take_turn


if __name__ == "__main__":
    serve(contestant)
