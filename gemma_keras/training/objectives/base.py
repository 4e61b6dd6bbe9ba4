"""What training minimises, as a protocol, and what its implementations share.

An objective knows which arrays of a batch it reads, the sums that one step needs, how they are logged, what a model's figures
on other rows are, and the reference that it compares a model with, if it has any.

Axes: B packed rows, T tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from keras_hub.models import Backbone

from gemma_keras.batch_arrays import Batch
from gemma_keras.models.forward import EMBEDDINGS, Params, forward
from gemma_keras.models.log_probs import token_scores
from gemma_keras.parallel.mesh import place_batch
from gemma_keras.parallel.plan import ONE_DEVICE, ComputePlan

DeviceBatch = dict[str, jax.Array]
# (params, batches of this process's rows) -> figures by name
Evaluator = Callable[[Params, Iterable[Batch]], dict[str, float]]

SCORED_ARRAYS = ("tokens", "targets", "segment_ids", "positions", "loss_weights")


class LossSums(NamedTuple):
    """Sums over a microbatch, so that any number of microbatches and devices add up to one exact mean.

    The loss is `loss / weight`, and so is each metric, under the name that it is logged by.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]

    def means(self) -> dict[str, jax.Array]:
        """The loss and the metrics; 0 where nothing had weight."""
        weight = jnp.maximum(self.weight, 1.0)
        return {name: total / weight for name, total in {"loss": self.loss, **self.metrics}.items()}


class Objective(Protocol):
    """What a training run minimises; `registry.OBJECTIVES` makes one from a configuration.

    Attributes:
        arrays: names of the batch's arrays (`batch_arrays`) that `sums` reads.
        metrics: names of the metrics in these sums.
        pairs: whether these have a leading axis of 2, the sides of preference pairs.
    """

    arrays: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    pairs: ClassVar[bool]

    def sums(self, trainable: Params, frozen: Params, batch: DeviceBatch, key: jax.Array) -> LossSums:
        """Of one microbatch, traced within the train step; `key` fixes what adapters drop out."""

    def evaluator(self) -> Evaluator:
        """Builds `evaluate(params, batches)`, compiled once for batches of one shape.

        The figures have "loss", the mean over all batches. Of several processes, each gives its own rows
        (`parallel.mesh.row_share`).
        """


def score_targets(
    backbone: Backbone,
    params: Params,
    batch: DeviceBatch,
    weights: jax.Array,
    *,
    training: bool = False,
    plan: ComputePlan = ONE_DEVICE,
) -> tuple[jax.Array, jax.Array]:
    """(log-probability f32, whether the model ranks it first) of every target, [B,T]; 0 where `weights` [B,T] are 0.

    Args:
        batch: `tokens`, `targets`, `segment_ids`, `positions` i32[B,T].
        training: whether adapters drop out.
        plan: devices, attention kernel, and what the backward pass recomputes.
    """
    hidden = forward(
        backbone, params, batch["tokens"], batch["positions"], batch["segment_ids"], training=training, plan=plan
    )
    return token_scores(
        hidden,
        params[EMBEDDINGS],
        batch["targets"],
        weights,
        final_logit_soft_cap=backbone.architecture.final_logit_soft_cap,
        mesh=plan.mesh,
    )


def make_mean_evaluator(
    sums: Callable[[Params, DeviceBatch], LossSums], arrays: Sequence[str], plan: ComputePlan
) -> Evaluator:
    """The evaluator of an objective whose figures are the loss and the metrics of the train step, over all batches."""
    compiled = jax.jit(sums)

    def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        totals: dict[str, float] = {}
        weight = 0.0
        for batch in batches:
            found = compiled(params, place_batch(plan.mesh, batch, arrays))
            weight += float(found.weight)
            for name, value in {"loss": found.loss, **found.metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / max(weight, 1.0) for name, total in totals.items()}

    return evaluate
