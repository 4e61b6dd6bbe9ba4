"""The training loop. Periodic work is a hook's; data, checkpoints and files are the caller's."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from gemma_keras.batch_arrays import Batch
from gemma_keras.training.state import TrainState

Metrics = dict[str, Any]


class Hook(Protocol):
    """Work after a step. Hooks run in order and may add to `metrics`, which starts with what the step returned."""

    def after_step(self, step: int, state: TrainState, metrics: Metrics, batch: Batch) -> None: ...


def train(
    step_function: Callable[[int, TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Batch],
    *,
    first_step: int,
    hooks: Sequence[Hook],
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Runs `step_function(step, state, batch)` per batch, from step `first_step` on, until they end or `stop()`.

    Returns the state after the last completed step, for which all hooks have run.
    """
    for step, batch in enumerate(batches, start=first_step):
        state, metrics = step_function(step, state, batch)
        for hook in hooks:
            hook.after_step(step, state, metrics, batch)
        if stop():
            break
    return state
