"""The supervised objective: Σ w·nll / Σ w over the global batch.

Axes: B packed rows, T tokens.
"""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import jax
import jax.numpy as jnp
from keras_hub.models import Backbone

from gemma_keras.adapters.inject import AdapterStack, dropout_seeds
from gemma_keras.batch_arrays import Batch
from gemma_keras.config.stages import StepConfig
from gemma_keras.models.forward import Params
from gemma_keras.parallel.plan import ONE_DEVICE, ComputePlan
from gemma_keras.training.objectives.base import SCORED_ARRAYS, DeviceBatch, Evaluator, LossSums, score_targets
from gemma_keras.training.objectives.token_figures import make_evaluator


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Learns the targets that carry loss; `loss_on` (`data.loss_on`) says which of the evaluation's losses is the same."""

    arrays: ClassVar[tuple[str, ...]] = SCORED_ARRAYS
    metrics: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    pairs: ClassVar[bool] = False

    backbone: Backbone
    stacks: list[AdapterStack]
    plan: ComputePlan
    loss_on: str

    @classmethod
    def of(cls, config: StepConfig, backbone: Backbone, stacks: list[AdapterStack], plan: ComputePlan) -> "Supervised":
        """By a configuration."""
        return cls(backbone, stacks, plan, config.data.loss_on)

    def sums(self, trainable: Params, frozen: Params, batch: DeviceBatch, key: jax.Array) -> LossSums:
        """As `supervised_sums`, with the adapters' dropout."""
        params = {**frozen, **trainable, **dropout_seeds(self.stacks, key)}
        return supervised_sums(self.backbone, params, batch, training=True, plan=self.plan)

    def evaluator(self) -> Evaluator:
        """The figures of `token_figures.make_evaluator`, and as "loss" the one that training minimises."""
        figures_of = make_evaluator(self.backbone, self.plan)

        def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
            figures = figures_of(params, batches)
            return {"loss": figures[f"loss_{self.loss_on}"], **figures}

        return evaluate


def supervised_sums(
    backbone: Backbone, params: Params, batch: DeviceBatch, *, training: bool, plan: ComputePlan = ONE_DEVICE
) -> LossSums:
    """Weighted sums of negative log-likelihood, of weights, and of tokens that the model ranks first (`token_accuracy`).

    Args:
        batch: `tokens`, `targets`, `segment_ids`, `positions` i32[B,T] and `loss_weights` f32[B,T].
        training: whether adapters drop out.
        plan: devices, attention kernel, and what the backward pass recomputes.
    """
    weights = batch["loss_weights"]
    log_probs, correct = score_targets(backbone, params, batch, weights, training=training, plan=plan)
    return LossSums(-jnp.sum(weights * log_probs), jnp.sum(weights), {"token_accuracy": jnp.sum(weights * correct)})
