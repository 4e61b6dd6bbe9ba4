"""Periodic work of the training loop: guard, means, throughput, evaluation, log, progress line, checkpoints.

Their order matters: the guard first, which looks at the step's own loss, whatever changes metrics next, then what reads
them, checkpoints last.
"""

import datetime
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gemma_keras.batch_arrays import Batch
from gemma_keras.config.sections import TrainConfig, in_steps
from gemma_keras.training.loop import Metrics
from gemma_keras.training.state import TrainState

# Fields that depend on the machine's speed; all others are equal from run to run.
TIMING_FIELDS = ("tokens_per_second", "seconds")


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite; `step` and `row_index` (prepared rows of the batch) say where."""

    def __init__(self, step: int, row_index: list[int], loss: float, grad_norm: float):
        super().__init__(f"loss {loss} and gradient norm {grad_norm} at step {step}")
        self.step, self.row_index, self.loss, self.grad_norm = step, row_index, loss, grad_norm


class Periods(NamedTuple):
    """Steps between lines, evaluations and checkpoints; 0: at the end only."""

    log: int
    evaluate: int
    save: int

    @classmethod
    def of(cls, config: TrainConfig, last_step: int) -> "Periods":
        """By a configuration, whose fractions of all steps make one step at least."""
        given = (config.log_every, config.eval_every, config.save_every)
        return cls(*(max(1, in_steps(value, last_step)) if value else 0 for value in given))


def due(step: int, every: int, last_step: int) -> bool:
    """Whether work of this period falls on `step`; always on the last one, never else when `every` is 0."""
    return step == last_step or (every > 0 and step % every == 0)


class NonFiniteGuard:
    """Stops at once, before a checkpoint could hold what a non-finite step left."""

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            rows = np.unique(batch["row_index"])
            raise NonFiniteError(step, rows[rows >= 0].tolist(), loss, grad_norm)


class Means:
    """Puts the means over all steps since the last logged line in the place of this step's own loss and metrics."""

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        metrics |= metrics.pop("means")


class Throughput:
    """Adds the learning rate, the share of tokens that are not padding, and tokens per second since the last log."""

    def __init__(self, learning_rate: Callable[[int], float], log_every: int):
        self.learning_rate = learning_rate
        self.log_every = log_every
        self.first = True
        self.tokens = 0
        self.started = time.perf_counter()

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        useful = int(np.count_nonzero(batch["segment_ids"]))
        self.tokens += useful
        metrics["learning_rate"] = float(self.learning_rate(step - 1))
        metrics["useful_token_share"] = useful / batch["segment_ids"].size
        elapsed = time.perf_counter() - self.started
        metrics["tokens_per_second"] = self.tokens / elapsed
        if self.first or step % self.log_every == 0:  # the first step compiles, and says nothing about speed
            self.first, self.tokens, self.started = False, 0, time.perf_counter()


class Evaluation:
    """Adds `evaluate(state)` to the metrics, every so many steps and at the end."""

    def __init__(self, evaluate: Callable[[TrainState], dict[str, float]], every: int, last_step: int):
        self.evaluate, self.every, self.last_step = evaluate, every, last_step

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        if due(step, self.every, self.last_step):
            metrics |= {f"valid_{name}": value for name, value in self.evaluate(state).items()}


class Log:
    """Gives `write` one dictionary of plain numbers a step that is `logged`; `ranks` is a list, summed up beside it.

    `complete` may change the metrics of such a step before.
    """

    def __init__(
        self,
        write: Callable[[dict], None],
        logged: Callable[[int], bool],
        complete: Callable[[Metrics], None] = lambda metrics: None,
    ):
        self.write, self.logged, self.complete = write, logged, complete

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        if not self.logged(step):
            return
        self.complete(metrics)
        line: dict = {"step": step}
        for name, value in metrics.items():
            line[name] = np.asarray(value).tolist()
        if "ranks" in line:
            line["adapter_rank_total"] = sum(line["ranks"])
        self.write(line)


class ProgressLine:
    """A line for people, of each step that is `logged`: step, loss, tokens/s, time left, adapter rank."""

    def __init__(self, logged: Callable[[int], bool], first_step: int, last_step: int, matrices: int = 0):
        self.logged, self.first_step, self.last_step, self.matrices = logged, first_step, last_step, matrices
        self.started = 0.0

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        if step == self.first_step:
            self.started = time.perf_counter()  # after it: the first step compiles
        elif not self.logged(step):
            return
        parts = [f"step {step}/{self.last_step}", f"loss {float(metrics['loss']):.4f}"]
        if step > self.first_step:
            left = (time.perf_counter() - self.started) / (step - self.first_step) * (self.last_step - step)
            parts += [f"{metrics['tokens_per_second']:,.0f} tokens/s", f"ETA {datetime.timedelta(seconds=round(left))}"]
        if "ranks" in metrics and self.matrices:
            parts.append(f"average rank {int(np.sum(metrics['ranks'])) / self.matrices:.2f}")
        if "valid_loss" in metrics:
            parts.append(f"valid loss {metrics['valid_loss']:.4f}")
        print("  ".join(parts), file=sys.stderr, flush=True)


class Checkpoint:
    """Calls `save(step, state)` every so many steps and at the end."""

    def __init__(self, save: Callable[[int, TrainState], None], every: int, last_step: int):
        self.save, self.every, self.last_step = save, every, last_step

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None:
        if due(step, self.every, self.last_step):
            self.save(step, state)
