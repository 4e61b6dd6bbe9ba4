"""Direct preference optimisation on packed pairs (arXiv 2305.18290, equation 7).

Axes: B packed rows, T tokens, S segments, each of them one pair: its chosen side in one array, its rejected side in the other.
"""

import jax
import jax.numpy as jnp
from keras_hub.models import GemmaBackbone

from gemma_keras.models.compute_plan import ONE_DEVICE, ComputePlan
from gemma_keras.models.forward import EMBEDDINGS, Params, forward
from gemma_keras.models.log_probs import token_scores
from gemma_keras.training.objectives.supervised import LossSums


def preference_sums(
    backbone: GemmaBackbone,
    params: Params,
    reference: Params,
    batch: dict[str, jax.Array],
    *,
    beta: float,
    training: bool,
    plan: ComputePlan = ONE_DEVICE,
) -> LossSums:
    """Sums over pairs of −log σ(β·margin), of pairs, and of pairs whose margin is above 0.

    The margin is (log π − log π_ref) of the chosen answer less that of the rejected one; at the first step of a fresh adapter
    it is 0 and the loss ln 2.

    Args:
        params: the policy, adapters and states of dropout included.
        reference: the model as it was, such as `adapters_off(params)`; it gets no gradient.
        batch: `tokens`, `targets`, `segment_ids`, `positions` i32[2,B,T], `loss_weights` f32[2,B,T]: chosen, rejected.
    """
    rows = {name: _side_by_side(array) for name, array in batch.items()}
    policy = _answer_log_probs(backbone, params, rows, training, plan)
    before = _answer_log_probs(backbone, jax.lax.stop_gradient(reference), rows, False, plan)
    ratios = policy - before
    scored = _per_segment(rows["loss_weights"], rows["segment_ids"]) > 0
    valid = (scored[:, 0] & scored[:, 1]).astype(jnp.float32)
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    return LossSums(-jnp.sum(valid * jax.nn.log_sigmoid(margins)), jnp.sum(valid), jnp.sum(valid * (margins > 0)))


def adapters_off(params: Params) -> Params:
    """The same parameters with adapters that add nothing: the reference of a policy that trains a fresh adapter."""
    return {path: jnp.zeros_like(value) if path.endswith("/lora_B") else value for path, value in params.items()}


def _side_by_side(pairs: jax.Array) -> jax.Array:
    """[2, B, T] -> [2 B, T], the sides of a row as neighbours, so that rows stay divided over devices as they are."""
    return pairs.swapaxes(0, 1).reshape(-1, pairs.shape[-1])


def _answer_log_probs(
    backbone: GemmaBackbone, params: Params, rows: dict[str, jax.Array], training: bool, plan: ComputePlan
) -> jax.Array:
    """Σ w·log-probability of every answer, f32[B, 2, S]."""
    hidden = forward(
        backbone, params, rows["tokens"], rows["positions"], rows["segment_ids"], training=training, plan=plan
    )
    log_probs, _ = token_scores(
        hidden, params[EMBEDDINGS], rows["targets"], rows["loss_weights"],
        final_logit_soft_cap=backbone.architecture.final_logit_soft_cap, mesh=plan.mesh,
    )  # fmt: skip
    return _per_segment(rows["loss_weights"] * log_probs, rows["segment_ids"])


def _per_segment(values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Sums of [2 B, T] by segment, f32[B, 2, S]; padding (segment 0) is left out. S is T, the most there can be."""
    time = values.shape[1]
    sums = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=time + 1))(values, segment_ids)
    return sums[:, 1:].reshape(-1, 2, time)
