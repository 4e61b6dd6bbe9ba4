"""One training run in steps: data, program, optimizer steps. `stages.training` takes them in order, `finishing` the last one."""

import functools
import math
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemma_keras import runtime
from gemma_keras.adapters.rank_allocator import RankSchedule, resolve_schedule
from gemma_keras.batch_arrays import Batch
from gemma_keras.checkpoints.manager import Checkpoints
from gemma_keras.config.errors import UserError, require
from gemma_keras.config.stages import TrainingConfig
from gemma_keras.data.pipeline import PreparedSplit, batches, evaluation_batches
from gemma_keras.data.prepare import prepare
from gemma_keras.data.progress import print_progress
from gemma_keras.export.tokenizer_files import require_expressible
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.forward import Params
from gemma_keras.models.loading import weight_files
from gemma_keras.parallel.mesh import row_share
from gemma_keras.planning.memory import compile_first_that_fits
from gemma_keras.planning.plans import plan_for
from gemma_keras.stages.running import processes
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import (
    count,
    load_trainable_params,
    resolve_architecture,
    resolve_data,
    resolve_template,
    resolve_tokenizer,
    with_spans,
)
from gemma_keras.stages.running.validation import COST_BESIDE_ADAPTER, COST_BESIDE_ALL, rows_on_the_way
from gemma_keras.training import hooks
from gemma_keras.training.loop import Hook, Metrics, train
from gemma_keras.training.optimizers import learning_rate_schedule
from gemma_keras.training.program import TrainProgram, adapter_reach, describe_reach, step_settings, total_steps
from gemma_keras.training.state import TrainState


class TrainingRun:
    """What the steps of a run share; each step sets what the ones after it need.

    Attributes:
        report, splits, last_step, periods: of the prepared data, by `prepare`.
        program, step, ranks: the program, its compiled step and the schedule of ranks, by `compile`.
        trainable, frozen: the weights as the run begins, stacked over the blocks, by `compile`.
    """

    def __init__(self, config: TrainingConfig, workdir: Path):
        """Checks what can be checked before data is read, so that a mistake there does not cost its preparation.

        Raises:
            UserError: the configuration does not fit the weights or the devices.
        """
        self.config, self.workdir = config, workdir
        tell = print_progress if processes.is_writer() else lambda line: None
        self.template = with_spans(resolve_template(config, tell))
        self.data = resolve_data(config.data, self.template)
        self.tokenizer = processes.writer_first(lambda: resolve_tokenizer(config, workdir))
        require_expressible(self.tokenizer)  # as the export at the end of the run will
        self._compiled = _begin_compiling(config, resolve_architecture(config, self.tokenizer))

    def prepare(self) -> None:
        """Prepares the data, or finds it prepared.

        Raises:
            UserError: the data cannot be read, or is not for this stage.
        """
        folder = self.workdir / "data"
        self.report = processes.writer_first(lambda: prepare(self.data, self.tokenizer, folder))
        self.splits = {name: PreparedSplit.load(folder / name) for name in ("train", "valid")}
        require(
            not self.splits["train"].pairs,
            "data.corpora hold preference pairs; give conversations or texts to this stage.",
        )
        self.last_step = total_steps(self.config, self.splits["train"].packed_count)
        periods = hooks.Periods.of(self.config.train, self.last_step)
        self.periods = periods if len(self.splits["valid"]) else periods._replace(evaluate=0)

    def compile(self) -> None:
        """Waits for the compiled step, then loads the weights where it wants them.

        Raises:
            UserError: the step does not fit in the devices' memory, or a resumed run had read something else.
        """
        config = self.config
        print_progress("compiling the train step")
        started = time.perf_counter()
        self.program, self.step = self._compiled()
        seconds, plan = time.perf_counter() - started, self.program.plan
        mesh = "x".join(map(str, plan.mesh.shape.values())) if plan.mesh is not None else "1x1"
        print_progress(f"compiled in {seconds:.0f} s: mesh {mesh}, remat {plan.remat}, {plan.attention} attention")
        index, parts = row_share(plan.mesh)
        self._share: dict[str, Any] = {"process_index": index, "process_count": parts}
        self._evaluator = self.program.objective.evaluator()
        self.ranks: RankSchedule | None = None
        if self.program.allocator:
            self.ranks = resolve_schedule(config.adapter, self.last_step, len(self.program.matrices))
        self.trainable, self.frozen = load_trainable_params(config, self.program)
        weights = files.fingerprints(weight_files(config.model.weights) if config.model.weights else ())
        inputs = {"data": self.report["fingerprint"], "weights": weights}
        resuming = any((self.workdir / "checkpoints").glob("[0-9]*"))
        processes.by_writer(lambda: files.check_inputs(self.workdir, inputs, resuming))

    def fit(self) -> TrainState:
        """Trains from the newest checkpoint to the last step.

        Raises:
            UserError: the loss was not finite.
            SystemExit: a signal asked the run to stop; a checkpoint of the last step was written.
        """
        checkpoints = Checkpoints(self.workdir / "checkpoints", self.config.train.keep_checkpoints)
        state = self.program.initial_state(self.trainable)
        completed = checkpoints.latest_step() or 0
        if completed:
            state = checkpoints.restore(completed, state)
        self._announce(completed)
        if completed < self.last_step:
            state = self._take_steps(state, completed, checkpoints)
        checkpoints.close()
        return state

    def evaluate(self, trainable: Params, rows: np.ndarray | None = None) -> dict[str, float]:
        """The figures of the validation rows, or of these packed ones, as many at once as the plan has room for."""
        batches = evaluation_batches(self.splits["valid"], batch_rows=self._evaluated_at_once, rows=rows, **self._share)
        return self._evaluator({**self.frozen, **trainable}, batches)

    @property
    def _evaluated_at_once(self) -> int:
        """Rows of a batch of evaluation: those of a microbatch."""
        return self.config.train.batch_rows // self.config.train.accumulation

    def _evaluated_on_the_way(self) -> np.ndarray:
        """Packed validation rows by which a run is followed; see `validation`."""
        return rows_on_the_way(
            self.splits["valid"].packed_count,
            batch_rows=self._evaluated_at_once,
            times=math.ceil(self.last_step / (self.periods.evaluate or self.last_step)),
            trained_rows=self.last_step * self.config.train.batch_rows,
            cost=COST_BESIDE_ADAPTER if self.frozen else COST_BESIDE_ALL,
        )

    def _take_steps(self, state: TrainState, completed: int, checkpoints: Checkpoints) -> TrainState:
        config = self.config
        settings = step_settings(config, self.last_step, self.ranks, self._is_logged)
        rows = batches(
            self.splits["train"], start_step=completed, steps=self.last_step - completed,
            batch_rows=config.train.batch_rows, seed=config.train.seed, loss_on=config.data.loss_on,
            **self._share,
        )  # fmt: skip

        def step(number: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            return self.step(state, self.frozen, self.program.place(batch), settings(number))

        log = files.RunLog(self.workdir, completed) if processes.is_writer() else None
        try:
            with processes.stop_on_signal() as signals:
                state = train(
                    step, state, rows, first_step=completed + 1, hooks=self._hooks(completed, checkpoints, log),
                    stop=processes.stopping_together(lambda: bool(signals)),
                )  # fmt: skip
                checkpoints.save(int(state.step), state)
        except hooks.NonFiniteError as error:
            raise self._explain(error, checkpoints) from error
        finally:
            if log:
                log.close([matrix.name for matrix in self.program.matrices])
        if processes.any_of_all(bool(signals)):
            print_progress(f"stopped after step {int(state.step)}; the same command goes on from there")
            raise SystemExit(128 + (signals or [signal.SIGTERM])[0])
        return state

    def _hooks(self, completed: int, checkpoints: Checkpoints, log: files.RunLog | None) -> list[Hook]:
        periods, last_step = self.periods, self.last_step
        listed: list[Hook] = [
            hooks.NonFiniteGuard(),
            hooks.Means(),
            hooks.Throughput(learning_rate_schedule(self.config.optim, last_step), periods.log),
        ]
        if len(self.splits["valid"]):
            rows = self._evaluated_on_the_way()
            listed.append(
                hooks.Evaluation(lambda state: self.evaluate(state.trainable, rows), periods.evaluate, last_step)
            )
        listed.append(hooks.Log(log.append if log else lambda line: None, self._is_logged, self._sum_over_processes))
        if log:
            listed.append(hooks.ProgressLine(self._is_logged, completed + 1, last_step, len(self.program.matrices)))
        return [*listed, hooks.Checkpoint(checkpoints.save, periods.save, last_step)]

    def _is_logged(self, step: int) -> bool:
        """Whether a line is logged after this step: the first one, those of `log_every`, and where validation falls."""
        periods = (self.periods.log, self.periods.evaluate)
        return step == 1 or any(hooks.due(step, period, self.last_step) for period in periods)

    def _sum_over_processes(self, metrics: Metrics) -> None:
        """Turns what `hooks.Throughput` says of this process's part of the rows into figures of all rows."""
        parts = self._share["process_count"]
        if parts > 1:
            metrics["useful_token_share"] = processes.mean_of_all(metrics["useful_token_share"])
            metrics["tokens_per_second"] = parts * processes.mean_of_all(metrics["tokens_per_second"])

    def _announce(self, completed: int) -> None:
        trained = count(self.trainable)
        shapes = f"{trained:,} of {trained + count(self.frozen):,} weights are trained"
        print_progress(f"{self.program.backbone.architecture.name}: {shapes}; {runtime.device_summary()}")
        packed, in_step = self.splits["train"].packed_count, self.config.train.batch_rows
        print_progress(
            f"{self.last_step:,} steps of {in_step} x {self.config.data.sequence_length:,} tokens: "
            f"{self.last_step * in_step / packed:.3g} passes over {packed:,} packed rows"
        )
        if self.ranks:
            print_progress(self.ranks.describe())
        if reach := adapter_reach(self.program.matrices, self.config.optim, self.last_step):
            print_progress(describe_reach(reach))
        if every := self.periods.evaluate:
            part, there = len(self._evaluated_on_the_way()), self.splits["valid"].packed_count
            those = f"all {there:,}" if part == there else f"the same {part:,} of {there:,}"
            at_end = "" if part == there else "; on all of them at the end"
            print_progress(f"validation every {every:,} steps on {those} packed rows{at_end}")
        if completed:
            print_progress(f"going on after step {completed} of {self.last_step}")

    def _explain(self, error: hooks.NonFiniteError, checkpoints: Checkpoints) -> UserError:
        path = self.workdir / "non_finite.json"
        ids = self.splits["train"].row_ids(processes.union_of_all(error.row_index))
        detail = {"step": error.step, "loss": str(error.loss), "grad_norm": str(error.grad_norm), "rows": ids}
        processes.by_writer(lambda: files.write_json(path, detail))
        good = f"step {checkpoints.latest_step()}" if checkpoints.latest_step() else "none, since none was due yet"
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        return UserError(
            f"The loss ({error.loss}) or gradient norm ({error.grad_norm}) was not finite at step {error.step}, on rows "
            f"{shown} (all in {path}); the last good checkpoint is {good}: look at these rows, or lower "
            "optim.learning_rate in another --workdir."
        )


def _begin_compiling(
    config: TrainingConfig, architecture: Architecture
) -> Callable[[], tuple[TrainProgram, jax.stages.Compiled]]:
    """The function that gives the program and its compiled step.

    They are compiled while data is prepared, where the accelerator's cores are not those that prepare it.
    """
    plan_for(config, architecture, jax.devices(), remat="none")  # so that a mistake there comes out at once
    compiled = functools.partial(compile_first_that_fits, config, architecture, jax.devices())
    if jax.default_backend() == "cpu":
        return compiled
    executor = ThreadPoolExecutor(1)
    future = executor.submit(compiled)
    executor.shutdown(wait=False)
    return future.result
