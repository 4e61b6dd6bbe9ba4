"""Token-weighted perplexity and token accuracy, for all tokens, the model's turns, and the content of those turns.

Axes: B packed rows, T tokens, C kinds of target token (prompt, closing, content).

Perplexity is exp(Σ nll / Σ tokens) over every token of the set, never a mean of per-example values.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import Backbone

from gemma_keras.batch_arrays import Batch
from gemma_keras.models.forward import Params
from gemma_keras.parallel.mesh import place_batch
from gemma_keras.parallel.plan import ONE_DEVICE, ComputePlan
from gemma_keras.text.templates import CLOSING, CONTENT, PROMPT
from gemma_keras.training.objectives.base import DeviceBatch, Evaluator, score_targets

_ARRAYS = ("tokens", "targets", "segment_ids", "positions", "target_kinds")
_KINDS = (PROMPT, CLOSING, CONTENT)
_SUBSETS = {"all": _KINDS, "response": (CLOSING, CONTENT), "content": (CONTENT,)}


def make_evaluator(backbone: Backbone, plan: ComputePlan = ONE_DEVICE) -> Evaluator:
    """Builds `evaluate(params, batches)`, compiled once for batches of one shape.

    The result has, for each subset (all, response, content): `loss_<subset>` (mean negative log-likelihood in nats),
    `perplexity_<subset>`, `accuracy_<subset>` in 0..1 and `tokens_<subset>`; a subset without tokens is left out.
    Batches need `target_kinds` [B,T] beside the arrays of a training batch; of several processes, each gives its own rows
    (`parallel.mesh.row_share`).
    """

    @jax.jit
    def sums(params: Params, batch: DeviceBatch) -> jax.Array:
        of_kind = batch["target_kinds"][None] == jnp.array(_KINDS)[:, None, None]
        scored = of_kind.any(axis=0).astype(jnp.float32)
        log_probs, correct = score_targets(backbone, params, batch, scored, plan=plan)
        values = jnp.stack([-log_probs, correct.astype(jnp.float32), jnp.ones_like(log_probs)])
        return jnp.sum(jnp.where(of_kind[None], values[:, None], 0.0), axis=(2, 3))

    def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        totals = np.zeros((3, len(_KINDS)))
        for batch in batches:
            totals += np.asarray(sums(params, place_batch(plan.mesh, batch, _ARRAYS)), np.float64)
        return summarise(totals)

    return evaluate


def summarise(totals: np.ndarray) -> dict[str, float]:
    """From sums [3, C] (negative log-likelihood, correct tokens, tokens; by kind) to the figures of `make_evaluator`."""
    figures: dict[str, float] = {}
    for subset, kinds in _SUBSETS.items():
        nll, correct, tokens = totals[:, [_KINDS.index(kind) for kind in kinds]].sum(axis=1)
        if tokens == 0:
            continue
        figures[f"loss_{subset}"] = float(nll / tokens)
        figures[f"perplexity_{subset}"] = math.exp(min(nll / tokens, 700.0))
        figures[f"accuracy_{subset}"] = float(correct / tokens)
        figures[f"tokens_{subset}"] = int(tokens)
    return figures
