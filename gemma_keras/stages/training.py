"""One training run, from a configuration to a workdir: what pretraining and supervised fine-tuning have in common."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.flax import save_file

from gemma_keras import runtime
from gemma_keras.adapters.inject import dropout_seeds, merge
from gemma_keras.adapters.rank_allocator import RankAllocator
from gemma_keras.checkpoints.manager import Checkpoints
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import Config, require
from gemma_keras.config.serialization import to_dict
from gemma_keras.data.pipeline import PreparedSplit, batches, evaluation_batches
from gemma_keras.data.prepare import prepare
from gemma_keras.evaluation.perplexity import make_evaluator
from gemma_keras.export.huggingface import export_hf
from gemma_keras.stages import plots
from gemma_keras.stages import workdir as files
from gemma_keras.stages.assets import Assets, count, load_assets, resolve_architecture, resolve_data, resolve_tokenizer
from gemma_keras.text.templates import TEMPLATES
from gemma_keras.training import hooks
from gemma_keras.training.loop import train
from gemma_keras.training.losses import supervised_sums
from gemma_keras.training.optimizers import learning_rate_schedule, make_optimizer
from gemma_keras.training.state import TrainState, initial_state
from gemma_keras.training.step import make_train_step


def run(config: Config, workdir: Path) -> dict:
    """Prepares data, trains, evaluates and exports; the same command again goes on where it stopped.

    Returns what `<workdir>/result.json` holds.

    Raises:
        UserError: the configuration does not fit the data, the weights or the workdir; or the loss was not finite.
        SystemExit: a signal asked the run to stop; a checkpoint of the last step was written.
    """
    started = time.perf_counter()
    files.begin(workdir, to_dict(config))
    finished = files.read_json(workdir / "result.json")
    if finished:
        print(f"{workdir} is finished; give another --workdir to run it anew", file=sys.stderr)
        return finished
    data = resolve_data(config.data)
    tokenizer = resolve_tokenizer(config, workdir)
    resolve_architecture(config, tokenizer)  # a mistake there shall not cost the preparation of data
    report = prepare(data, tokenizer, workdir / "data")
    splits = {name: PreparedSplit.load(workdir / "data" / name) for name in ("train", "valid")}
    require(not splits["train"].pairs, "data.corpora hold preference pairs; give conversations or texts to this stage.")
    assets = load_assets(config, tokenizer)
    inputs = {"data": report["fingerprint"], "weights": files.file_sizes(Path(config.model.weights))}
    files.check_inputs(workdir, inputs, resuming=any((workdir / "checkpoints").glob("[0-9]*")))
    state = _train(config, workdir, assets, splits)
    result = _finish(config, workdir, assets, state, splits, report)
    result["seconds"] = time.perf_counter() - started
    files.write_json(workdir / "result.json", result)
    return result


def total_steps(config: Config, packed_rows: int) -> int:
    """Optimizer steps of the run: `train.steps`, or what `train.epochs` makes of the packed rows."""
    if config.train.steps:
        return config.train.steps  # against which `validate` has checked the warm-up
    steps = round(config.train.epochs * packed_rows / config.train.batch_rows)
    if steps < 1:
        raise UserError(
            f"{packed_rows} packed rows make no step of train.batch_rows={config.train.batch_rows}; give more rows, "
            "more train.epochs, or fewer rows a batch."
        )
    if config.optim.warmup >= steps:
        raise UserError(f"optim.warmup is {config.optim.warmup:g}, but the run has only {steps} steps; lower it.")
    return steps


def _train(config: Config, workdir: Path, assets: Assets, splits: dict[str, PreparedSplit]) -> TrainState:
    last_step = total_steps(config, splits["train"].packed_count)
    allocator = (
        RankAllocator(assets.matrices, config.adapter, last_step) if config.adapter.method == "adalora" else None
    )
    optimizer = make_optimizer(config.optim, last_step)
    step_function = make_train_step(
        _loss_function(assets), optimizer, allocator=allocator, accumulation=config.train.accumulation,
        clip_norm=config.optim.clip_norm, seed=config.train.seed,
    )  # fmt: skip
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)
    state = initial_state(assets.trainable, optimizer, allocator)
    completed = checkpoints.latest_step() or 0
    if completed:
        state = checkpoints.restore(completed, state)
    _announce(config, assets, splits, allocator, completed, last_step)

    metrics_file = files.MetricsFile(workdir / "metrics.jsonl")
    metrics_file.truncate(completed)
    if completed < last_step:
        tensorboard = files.TensorBoard(workdir / "tensorboard", completed + 1)
        try:
            with _stop_on_signal() as stop:
                run_hooks = _hooks(config, assets, splits, completed, last_step, checkpoints, metrics_file, tensorboard)
                stream = batches(
                    splits["train"], start_step=completed, steps=last_step - completed,
                    batch_rows=config.train.batch_rows, seed=config.train.seed, loss_on=config.data.loss_on,
                )  # fmt: skip
                state = train(
                    step_function, state, assets.frozen, stream, first_step=completed + 1, hooks=run_hooks, stop=stop
                )
                checkpoints.save(int(state.step), state)
        except hooks.NonFiniteError as error:
            raise _explain(error, workdir, splits["train"], checkpoints) from error
        finally:
            tensorboard.close()
            plots.draw(metrics_file.read(), workdir / "plots", [matrix.name for matrix in assets.matrices])
        if stop():
            print(f"stopped after step {int(state.step)}; the same command goes on from there", file=sys.stderr)
            raise SystemExit(128 + stop.signal)
    checkpoints.close()
    return state


def _loss_function(assets: Assets):
    def loss(trainable, frozen, batch, key):
        params = {**frozen, **trainable, **dropout_seeds(assets.matrices, key)}
        return supervised_sums(assets.backbone, params, batch, training=True)

    return loss


def _evaluator(config: Config, assets: Assets, split: PreparedSplit):
    evaluate = make_evaluator(assets.backbone)

    def on_split(trainable) -> dict[str, float]:
        rows = evaluation_batches(split, batch_rows=config.train.batch_rows)
        figures = evaluate({**assets.frozen, **trainable}, rows)
        return {"loss": figures[f"loss_{config.data.loss_on}"], **figures}  # what the training loss is taken over

    return on_split


def _hooks(config, assets, splits, completed, last_step, checkpoints, metrics_file, tensorboard) -> list:
    settings = config.train
    evaluate = _evaluator(config, assets, splits["valid"])
    listed: list = [
        hooks.NonFiniteGuard(),
        hooks.Throughput(learning_rate_schedule(config.optim, last_step), settings.log_every),
    ]
    if len(splits["valid"]):
        listed.append(hooks.Evaluation(lambda state: evaluate(state.trainable), settings.eval_every, last_step))
    return [
        *listed,
        hooks.Log(metrics_file.append, settings.log_every, last_step),
        hooks.Log(tensorboard.append, settings.log_every, last_step),
        hooks.Progress(settings.log_every, completed + 1, last_step, len(assets.matrices)),
        hooks.Checkpoint(checkpoints.save, settings.save_every, last_step),
    ]


def _announce(config, assets, splits, allocator, completed, last_step) -> None:
    shapes = f"{count(assets.trainable):,} of {count(assets.params):,} weights are trained"
    rows = f"{splits['train'].packed_count:,} packed rows of {config.data.sequence_length} tokens"
    print(f"{assets.backbone.architecture.name}: {shapes}; {rows}; {runtime.device_summary()}", file=sys.stderr)
    if allocator:
        print(allocator.schedule.describe(), file=sys.stderr)
    if completed:
        print(f"going on after step {completed} of {last_step}", file=sys.stderr)
    if completed < last_step:
        print("compiling the train step", file=sys.stderr, flush=True)


def _finish(config: Config, workdir: Path, assets: Assets, state: TrainState, splits, report: dict) -> dict:
    result = {
        "steps": int(state.step),
        "weights": count(assets.frozen or assets.trainable),
        "trained_weights": count(assets.trainable),
        "useful_token_share": report["useful_token_share"],
        "export_dir": str(workdir / "export"),
    }
    if state.allocator is not None:
        ranks = {matrix.name: int(state.allocator.alive[matrix.name].sum()) for matrix in assets.matrices}
        result |= {
            "rank_initial": config.adapter.init_r, "rank_final": sum(ranks.values()) / len(ranks), "ranks": ranks,
        }  # fmt: skip
    if len(splits["valid"]):
        result["valid"] = _evaluator(config, assets, splits["valid"])(state.trainable)
        require(
            math.isfinite(result["valid"]["loss"]),
            f"The run ended with a validation loss of {result['valid']['loss']}, so nothing was exported; lower "
            "optim.learning_rate and give another --workdir.",
        )
    params = {**assets.frozen, **state.trainable}
    if assets.matrices:
        _save_adapter(workdir / "adapter", state, config)
        params = merge(assets.matrices, params)
    export_hf(
        params, assets.backbone.architecture, assets.tokenizer, workdir / "export", dtype=config.export.dtype,
        shard_megabytes=config.export.shard_megabytes, template=TEMPLATES[config.data.template],
    )  # fmt: skip
    return result


def _save_adapter(folder: Path, state: TrainState, config: Config) -> None:
    """`adapter.safetensors` (weights by variable path, pruned triplets with lora_E = 0) and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".adapter.safetensors.tmp"
    save_file(state.trainable, temporary)
    temporary.replace(folder / "adapter.safetensors")
    alive = {name: mask.tolist() for name, mask in state.allocator.alive.items()} if state.allocator else {}
    files.write_json(folder / "adapter.json", {"adapter": dataclasses.asdict(config.adapter), "alive": alive})


def _explain(error: hooks.NonFiniteError, workdir: Path, split: PreparedSplit, checkpoints: Checkpoints) -> UserError:
    ids = split.row_ids(error.row_index)
    detail = {"step": error.step, "loss": str(error.loss), "grad_norm": str(error.grad_norm), "rows": ids}
    files.write_json(workdir / "non_finite.json", detail)
    good = f"step {checkpoints.latest_step()}" if checkpoints.latest_step() else "none, since none was due yet"
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return UserError(
        f"The loss ({error.loss}) or gradient norm ({error.grad_norm}) was not finite at step {error.step}, on rows {shown} "
        f"(all in {workdir / 'non_finite.json'}); the last good checkpoint is {good}: look at these rows, or lower "
        "optim.learning_rate in another --workdir."
    )


class _Stop:
    """Whether a signal asked to stop, and which."""

    signal = 0

    def __call__(self) -> bool:
        return self.signal != 0


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """The first SIGINT or SIGTERM lets the current step finish and be saved; the second one acts at once."""
    stop = _Stop()
    previous: dict[int, Any] = {}

    def handle(number: int, frame) -> None:
        stop.signal = number
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)
