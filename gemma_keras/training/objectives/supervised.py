"""The supervised loss: Σ w·nll / Σ w over the global batch.

Axes: B packed rows, T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from keras_hub.models import GemmaBackbone

from gemma_keras.models.compute_plan import ONE_DEVICE, ComputePlan
from gemma_keras.models.forward import EMBEDDINGS, forward
from gemma_keras.models.log_probs import token_scores


class LossSums(NamedTuple):
    """Sums over a microbatch, so that any number of microbatches and devices add up to one exact mean."""

    nll: jax.Array
    weight: jax.Array
    correct: jax.Array


def supervised_sums(
    backbone: GemmaBackbone, params, batch, *, training: bool, plan: ComputePlan = ONE_DEVICE
) -> LossSums:
    """Weighted sums of negative log-likelihood, weights, and tokens that the model ranks first.

    Args:
        batch: `tokens`, `targets`, `segment_ids`, `positions` i32[B,T] and `loss_weights` f32[B,T].
        training: whether adapters drop out.
        plan: devices, attention kernel and rematerialisation.
    """
    hidden = forward(
        backbone, params, batch["tokens"], batch["positions"], batch["segment_ids"], training=training, plan=plan
    )
    weights = batch["loss_weights"]
    log_probs, correct = token_scores(
        hidden,
        params[EMBEDDINGS],
        batch["targets"],
        weights,
        final_logit_soft_cap=backbone.architecture.final_logit_soft_cap,
        mesh=plan.mesh,
    )
    return LossSums(-jnp.sum(weights * log_probs), jnp.sum(weights), jnp.sum(weights * correct))
