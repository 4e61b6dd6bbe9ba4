"""One training run, from a configuration to a workdir: what pretraining and supervised fine-tuning have in common."""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from gemma_keras import runtime
from gemma_keras.adapters.rank_allocator import resolve_schedule
from gemma_keras.batch_arrays import Batch
from gemma_keras.checkpoints.manager import Checkpoints
from gemma_keras.config.errors import UserError, require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import StepConfig, TrainingConfig
from gemma_keras.data.pace import print_progress
from gemma_keras.data.pipeline import PreparedSplit, batches, evaluation_batches
from gemma_keras.data.prepare import prepare
from gemma_keras.export.tokenizer_files import require_expressible
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.forward import Params
from gemma_keras.models.sharding import row_share
from gemma_keras.stages import plots, processes
from gemma_keras.stages import workdir as files
from gemma_keras.stages.assets import (
    Assets,
    count,
    load_assets,
    resolve_architecture,
    resolve_data,
    resolve_template,
    resolve_tokenizer,
    with_spans,
)
from gemma_keras.stages.finishing import TrainingRun, finish
from gemma_keras.stages.programs import TrainProgram, compile_first_that_fits, plan_for, step_settings
from gemma_keras.training import hooks
from gemma_keras.training.loop import Metrics, train
from gemma_keras.training.optimizers import learning_rate_schedule
from gemma_keras.training.state import TrainState


@processes.telling_of_lost_ones
def run(config: TrainingConfig, workdir: Path) -> dict:
    """Prepares data, trains, evaluates and exports; the same command again goes on where it stopped.

    Several processes run this together, on a workdir that all of them see; the first one writes. Returns what
    `<workdir>/result.json` holds.

    Raises:
        UserError: the configuration does not fit the data, the weights, the devices or the workdir; or the loss was not
            finite.
        SystemExit: a signal asked the run to stop; a checkpoint of the last step was written.
    """
    require(
        config.train.loss == "supervised",
        "config.train.loss=preference was given, but no stage trains on pairs yet, only scripts.preflight takes it; use "
        "supervised.",
    )
    started = time.perf_counter()
    processes.join(config.parallel)
    processes.by_writer(lambda: files.begin(workdir, to_dict(config)))
    finished = files.read_json(workdir / "result.json")
    if finished:
        print(f"{workdir} is finished; give another --workdir to run it anew", file=sys.stderr)
        return finished
    tell = print_progress if processes.is_writer() else lambda line: None
    template = with_spans(resolve_template(config, tell))
    data = dataclasses.replace(resolve_data(config.data), template=template.name)
    tokenizer = _by_turns(lambda: resolve_tokenizer(config, workdir))
    require_expressible(tokenizer)  # as the export at the end of the run will
    architecture = resolve_architecture(config, tokenizer)  # a mistake there shall not cost the preparation of data
    compilation = _Compilation(config, architecture)
    report = _by_turns(lambda: prepare(data, tokenizer, workdir / "data"))
    splits = {name: PreparedSplit.load(workdir / "data" / name) for name in ("train", "valid")}
    require(not splits["train"].pairs, "data.corpora hold preference pairs; give conversations or texts to this stage.")
    last_step = total_steps(config, splits["train"].packed_count)
    program, step = compilation.result()
    ranks = resolve_schedule(config.adapter, last_step, len(program.matrices)) if program.allocator else None
    assets = load_assets(config, tokenizer, program)
    inputs = {"data": report["fingerprint"], "weights": files.file_sizes(Path(config.model.weights))}
    resuming = any((workdir / "checkpoints").glob("[0-9]*"))
    processes.by_writer(lambda: files.check_inputs(workdir, inputs, resuming))
    evaluate = _evaluator(config, assets, splits["valid"], program)
    run = TrainingRun(config, workdir, template, assets, splits, program, step, last_step, ranks, evaluate)
    state = _train(run)
    result = finish(run, state, report)
    result["seconds"] = time.perf_counter() - started
    processes.by_writer(lambda: files.write_json(workdir / "result.json", result))
    return result


def _by_turns(make: Callable[[], Any]) -> Any:
    """`make()` of the first process, then of the others, which find what it wrote."""
    made = processes.by_writer(make)
    return made if processes.is_writer() else make()


def total_steps(config: StepConfig, packed_rows: int) -> int:
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


class _Compilation:
    """The train step, compiled while data is prepared where the accelerator's cores are not those that prepare it."""

    def __init__(self, config: TrainingConfig, architecture: Architecture):
        plan_for(config, architecture, jax.devices(), remat="none")  # so that a mistake there comes out at once
        self._compile = lambda: compile_first_that_fits(config, architecture, jax.devices())
        self._future: Future | None = None
        if jax.default_backend() != "cpu":
            executor = ThreadPoolExecutor(1)
            self._future = executor.submit(self._compile)
            executor.shutdown(wait=False)

    def result(self) -> tuple[TrainProgram, jax.stages.Compiled]:
        """The program, and its step ready to run."""
        print("compiling the train step", file=sys.stderr, flush=True)
        started = time.perf_counter()
        program, step = self._future.result() if self._future else self._compile()
        seconds, plan = time.perf_counter() - started, program.plan
        mesh = "x".join(map(str, plan.mesh.shape.values())) if plan.mesh is not None else "1x1"
        print(
            f"compiled in {seconds:.0f} s: mesh {mesh}, remat {plan.remat}, {plan.attention} attention", file=sys.stderr
        )
        return program, step


def _train(run: TrainingRun) -> TrainState:
    config, workdir, last_step = run.config, run.workdir, run.last_step
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)
    state = run.program.initial_state(run.assets.trainable)
    completed = checkpoints.latest_step() or 0
    if completed:
        state = checkpoints.restore(completed, state)
    _announce(run, completed)
    settings = step_settings(config, last_step, run.ranks)

    def step(number: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return run.step(state, run.assets.frozen, run.program.place(batch), settings(number))

    if completed < last_step:
        log = _Log(workdir, completed)
        try:
            with _stop_on_signal() as stop:
                index, count = row_share(run.program.plan.mesh)
                stream = batches(
                    run.splits["train"], start_step=completed, steps=last_step - completed,
                    batch_rows=config.train.batch_rows, seed=config.train.seed, loss_on=config.data.loss_on,
                    process_index=index, process_count=count,
                )  # fmt: skip
                state = train(
                    step, state, stream, first_step=completed + 1, hooks=_hooks(run, completed, checkpoints, log),
                    stop=lambda: processes.any_of_all(stop()),
                )  # fmt: skip
                checkpoints.save(int(state.step), state)
        except hooks.NonFiniteError as error:
            raise _explain(error, workdir, run.splits["train"], checkpoints) from error
        finally:
            log.close([matrix.name for matrix in run.assets.matrices])
        if processes.any_of_all(stop()):
            print(f"stopped after step {int(state.step)}; the same command goes on from there", file=sys.stderr)
            raise SystemExit(128 + (stop.signal or signal.SIGTERM))
    checkpoints.close()
    return state


class _Log:
    """`metrics.jsonl`, TensorBoard and plots; of several processes, the first one's."""

    def __init__(self, workdir: Path, completed: int):
        self._plots = workdir / "plots"
        self._writes = processes.is_writer()
        if self._writes:
            self._metrics = files.MetricsFile(workdir / "metrics.jsonl")
            self._metrics.truncate(completed)
            self._tensorboard = files.TensorBoard(workdir / "tensorboard", completed + 1)

    def append(self, line: dict) -> None:
        """Writes one logged step."""
        if self._writes:
            self._metrics.append(line)
            self._tensorboard.append(line)

    def close(self, matrices: list[str]) -> None:
        """Closes the files and draws what they hold."""
        if self._writes:
            self._tensorboard.close()
            plots.draw(self._metrics.read(), self._plots, matrices)


class _AllRows:
    """Turns what `hooks.Throughput` says of this process's part of the rows into figures of all rows."""

    def __init__(self, parts: int):
        self.parts = parts

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        """Adds up over processes; all of them have to come here."""
        metrics["useful_token_share"] = processes.mean_of_all(metrics["useful_token_share"])
        metrics["tokens_per_second"] = self.parts * processes.mean_of_all(metrics["tokens_per_second"])


def _evaluator(
    config: TrainingConfig, assets: Assets, split: PreparedSplit, program: TrainProgram
) -> Callable[[Params], dict[str, float]]:
    evaluate = program.objective.evaluator()
    index, count = row_share(program.plan.mesh)

    def on_validation_rows(trainable: Params) -> dict[str, float]:
        # As many rows at once as a microbatch has, which is what the plan has room for.
        rows = evaluation_batches(
            split, batch_rows=config.train.batch_rows // config.train.accumulation, process_index=index,
            process_count=count,
        )  # fmt: skip
        return evaluate({**assets.frozen, **trainable}, rows)

    return on_validation_rows


def _hooks(run: TrainingRun, completed: int, checkpoints: Checkpoints, log: _Log) -> list:
    settings, last_step = run.config.train, run.last_step
    listed: list = [
        hooks.NonFiniteGuard(),
        hooks.Throughput(learning_rate_schedule(run.config.optim, last_step), settings.log_every),
    ]
    _, parts = row_share(run.program.plan.mesh)
    if parts > 1:
        listed.append(_AllRows(parts))
    if len(run.splits["valid"]):
        listed.append(hooks.Evaluation(lambda state: run.evaluate(state.trainable), settings.eval_every, last_step))
    listed.append(hooks.Log(log.append, settings.log_every, last_step))
    if processes.is_writer():
        listed.append(hooks.ProgressLine(settings.log_every, completed + 1, last_step, len(run.assets.matrices)))
    return [*listed, hooks.Checkpoint(checkpoints.save, settings.save_every, last_step)]


def _announce(run: TrainingRun, completed: int) -> None:
    assets, trained = run.assets, count(run.assets.trainable)
    shapes = f"{trained:,} of {trained + count(assets.frozen):,} weights are trained"
    rows = f"{run.splits['train'].packed_count:,} packed rows of {run.config.data.sequence_length} tokens"
    print(f"{assets.backbone.architecture.name}: {shapes}; {rows}; {runtime.device_summary()}", file=sys.stderr)
    if run.ranks:
        print(run.ranks.describe(), file=sys.stderr)
    if completed:
        print(f"going on after step {completed} of {run.last_step}", file=sys.stderr)


def _explain(error: hooks.NonFiniteError, workdir: Path, split: PreparedSplit, checkpoints: Checkpoints) -> UserError:
    ids = split.row_ids(processes.union_of_all(error.row_index))
    detail = {"step": error.step, "loss": str(error.loss), "grad_norm": str(error.grad_norm), "rows": ids}
    processes.by_writer(lambda: files.write_json(workdir / "non_finite.json", detail))
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
