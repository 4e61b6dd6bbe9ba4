"""The end of a training run: figures of the validation rows, ranks that survived, the adapter, the exported model."""

import dataclasses
import math

import numpy as np
from safetensors.numpy import save_file

from gemma_keras.adapters.inject import MergedParams
from gemma_keras.config.errors import require
from gemma_keras.data.progress import print_progress
from gemma_keras.export.huggingface import export_hf, gathered
from gemma_keras.models.stacking import UnstackedParams
from gemma_keras.stages.running import processes
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import ByteProgress, count
from gemma_keras.stages.running.training_run import TrainingRun
from gemma_keras.training.state import TrainState


def finish(run: TrainingRun, state: TrainState) -> dict:
    """Evaluates, keeps the adapter and exports; returns the figures of `result.json`.

    Raises:
        UserError: the loss on the validation rows is not finite.
    """
    config, workdir, program = run.config, run.workdir, run.program
    result = {
        "steps": int(state.step),
        "weights": count(run.frozen or run.trainable),
        "trained_weights": count(run.trainable),
        "useful_token_share": run.report["useful_token_share"],
        "export_dir": str(workdir / "export"),
    }
    ranks = {name: sum(alive) for name, alive in _survivors(run, state).items()}
    if ranks:
        # The mean as the budget counts: larger matrices count for more.
        sizes = [matrix.adapter.d_in + matrix.adapter.d_out + 1 for matrix in program.matrices]
        mean = sum(rank * size for rank, size in zip(ranks.values(), sizes, strict=True)) / sum(sizes)
        result |= {"rank_initial": config.adapter.init_r, "rank_final": mean, "ranks": ranks}
    if len(run.splits["valid"]):
        result["valid"] = run.evaluate(state.trainable)
        require(
            math.isfinite(result["valid"]["loss"]),
            f"The run ended with a validation loss of {result['valid']['loss']}, so nothing was exported; lower "
            "optim.learning_rate and give another --workdir.",
        )
    if program.matrices:
        _save_adapter(run, state)
    params = UnstackedParams({**run.frozen, **state.trainable})
    print_progress("exporting the model")
    export_hf(
        MergedParams(program.matrices, params), program.backbone.architecture, run.tokenizer, workdir / "export",
        dtype=config.export.dtype, shard_megabytes=config.export.shard_megabytes,
        template=run.template, progress=ByteProgress("exporting"),
    )  # fmt: skip
    return result


def _survivors(run: TrainingRun, state: TrainState) -> dict[str, list[bool]]:
    """Which triplets of each matrix are alive, by its name, block after block; empty without ranks to allocate."""
    if run.program.allocator is None or state.allocator is None:
        return {}
    rows = {
        matrix.name: np.asarray(state.allocator.alive[stack.name])[row].tolist()
        for stack in run.program.allocator.stacks
        for row, matrix in enumerate(stack.matrices)
    }
    return {matrix.name: rows[matrix.name] for matrix in run.program.matrices}


def _save_adapter(run: TrainingRun, state: TrainState) -> None:
    """`adapter.safetensors` (weights by variable path, pruned triplets with lora_E = 0) and its configuration."""
    whole = {path: np.asarray(gathered(array)) for path, array in state.trainable.items()}
    weights = dict(UnstackedParams(whole))
    if not processes.is_writer():
        return
    folder = run.workdir / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".adapter.safetensors.tmp"
    save_file(weights, temporary)
    temporary.replace(folder / "adapter.safetensors")
    about = {"adapter": dataclasses.asdict(run.config.adapter), "alive": _survivors(run, state)}
    files.write_json(folder / "adapter.json", about)
