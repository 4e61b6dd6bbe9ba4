"""The preference objective: direct preference optimisation (DPO) on packed pairs (arXiv 2305.18290, equation 7).

Axes: B packed rows, T tokens, S segments, each of them one pair: its chosen side in one array, its rejected side in the other.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from keras_hub.models import Backbone

from gemma_keras.adapters.inject import AdapterStack, disable_adapters, dropout_seeds
from gemma_keras.config.errors import UserError
from gemma_keras.config.stages import StepConfig
from gemma_keras.models.forward import Params
from gemma_keras.parallel.plan import ONE_DEVICE, ComputePlan
from gemma_keras.training.objectives.base import (
    SCORED_ARRAYS,
    DeviceBatch,
    Evaluator,
    LossSums,
    make_mean_evaluator,
    score_targets,
)


@dataclasses.dataclass(frozen=True)
class Preference:
    """Prefers chosen answers to rejected ones, held by `beta` to a reference: the same model without its adapters."""

    arrays: ClassVar[tuple[str, ...]] = SCORED_ARRAYS
    metrics: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    pairs: ClassVar[bool] = True

    backbone: Backbone
    stacks: list[AdapterStack]
    plan: ComputePlan
    beta: float

    @classmethod
    def of(cls, config: StepConfig, backbone: Backbone, stacks: list[AdapterStack], plan: ComputePlan) -> "Preference":
        """By a configuration.

        Raises:
            UserError: there is no adapter.
        """
        if not stacks:
            raise UserError(
                "config.train.loss=preference needs an adapter, beside which the model is the reference: name one."
            )
        return cls(backbone, stacks, plan, config.train.preference_beta)

    def reference(self, params: Params) -> Params:
        """The model that a policy is compared with."""
        return disable_adapters(self.stacks, params)

    def sums(self, trainable: Params, frozen: Params, batch: DeviceBatch, key: jax.Array) -> LossSums:
        """As `preference_sums`, with the adapters' dropout."""
        params = {**frozen, **trainable}
        policy = {**params, **dropout_seeds(self.stacks, key)}
        return self._sums(policy, params, batch, training=True)

    def evaluator(self) -> Evaluator:
        """The loss and `rewards/accuracies`, over all pairs."""
        return make_mean_evaluator(lambda params, batch: self._sums(params, params, batch), self.arrays, self.plan)

    def _sums(self, policy: Params, params: Params, batch: DeviceBatch, training: bool = False) -> LossSums:
        reference = self.reference(params)
        return preference_sums(
            self.backbone, policy, reference, batch, beta=self.beta, training=training, plan=self.plan
        )


def preference_sums(
    backbone: Backbone,
    params: Params,
    reference: Params,
    batch: DeviceBatch,
    *,
    beta: float,
    training: bool,
    plan: ComputePlan = ONE_DEVICE,
) -> LossSums:
    """Sums over pairs of −log σ(β·margin), of pairs, and of pairs whose margin is above 0 (`rewards/accuracies`, as in TRL).

    The margin is (log π − log π_ref) of the chosen answer less that of the rejected one; at the first step of a fresh adapter
    it is 0 and the loss ln 2.

    Args:
        params: the policy, adapters and states of dropout included.
        reference: the model as it was, such as `params` with `inject.disable_adapters`; it gets no gradient.
        batch: `tokens`, `targets`, `segment_ids`, `positions` i32[2,B,T], `loss_weights` f32[2,B,T]: chosen, rejected.
    """
    rows = {name: _side_by_side(array) for name, array in batch.items()}
    policy = _answer_log_probs(backbone, params, rows, training, plan)
    before = _answer_log_probs(backbone, jax.lax.stop_gradient(reference), rows, False, plan)
    ratios = policy - before
    scored = _per_segment(rows["loss_weights"], rows["segment_ids"]) > 0
    valid = (scored[:, 0] & scored[:, 1]).astype(jnp.float32)
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    loss = -jnp.sum(valid * jax.nn.log_sigmoid(margins))
    return LossSums(loss, jnp.sum(valid), {"rewards/accuracies": jnp.sum(valid * (margins > 0))})


def _side_by_side(pairs: jax.Array) -> jax.Array:
    """[2, B, T] -> [2 B, T], the sides of a row as neighbours, so that rows stay divided over devices as they are."""
    return pairs.swapaxes(0, 1).reshape(-1, pairs.shape[-1])


def _answer_log_probs(
    backbone: Backbone, params: Params, rows: DeviceBatch, training: bool, plan: ComputePlan
) -> jax.Array:
    """Σ w·log-probability of every answer, f32[B, 2, S]."""
    weights = rows["loss_weights"]
    log_probs, _ = score_targets(backbone, params, rows, weights, training=training, plan=plan)
    return _per_segment(weights * log_probs, rows["segment_ids"])


def _per_segment(values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Sums of [2 B, T] by segment, f32[B, 2, S]; padding (segment 0) is left out. S is T, the most there can be."""
    time = values.shape[1]
    sums = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=time + 1))(values, segment_ids)
    return sums[:, 1:].reshape(-1, 2, time)
