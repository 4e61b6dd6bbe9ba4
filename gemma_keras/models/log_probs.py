"""Log-probabilities of target tokens without the [B, T, V] logits.

Axes: B batch, T time, D model dim, V vocabulary (of one device where a mesh divides it), C tokens in a chunk, P parts of
the vocabulary, X all tokens (B · T). A mesh divides V by all its devices, each of which scores every token against its
part: so neither embeddings nor logits are ever brought together, and every device has as many tokens to score as the
others.

Tokens are scored a chunk at a time against a part of the vocabulary at a time, and tokens of weight 0 not at all.
Fine-tuning keeps the embeddings frozen: the forward pass then makes from logits, while they are there, also the gradient
of each log-probability with respect to its hidden vector, and the backward pass multiplies that with the cotangents:
4·V·D operations a token instead of 6. As in flash attention, with the embeddings as keys and values, neither needs all
logits of a token at once (online softmax, arXiv:1805.02867). Where the embeddings are trained too, the backward pass
computes the logits again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gemma_keras.config.errors import UserError
from gemma_keras.models.weight_protocol import plain
from gemma_keras.parallel.mesh import ALL, DATA, MODEL

# With fewer tokens at a time, reading the embeddings again for each chunk takes longer than multiplying with them.
MIN_CHUNK = {"cpu": 192, "other": 1024}
LOGITS_BYTES = {"cpu": 1 << 21, "other": 1 << 27}  # float32 logits held at once: a CPU's cache, an accelerator's memory

_WHOLE = PartitionSpec()
_EMBEDDINGS = PartitionSpec(ALL, None)


class _Setting(NamedTuple):
    """What is known at trace time."""

    cap: float | None
    mesh: Mesh | None
    chunk: int
    parts: int


class _Sums(NamedTuple):
    """Of the logits of C tokens so far, f32: maximum, sum of exponentials, logit of the target, and [C, D] the sum of rows of
    the embeddings but the target's, by exponential and slope of the soft cap."""

    peaks: jax.Array
    totals: jax.Array
    target_logits: jax.Array
    weighted: jax.Array | None


def default_chunk(vocabulary_size: int, platform: str) -> tuple[int, int]:
    """(C, P) on "cpu", "tpu" or "gpu", for the vocabulary that lies on one device; P divides it.

    >>> default_chunk(4000, "cpu"), default_chunk(262_144, "cpu"), default_chunk(32_000, "tpu")
    ((192, 1), (192, 64), (1048, 1))
    """
    kind = "cpu" if platform == "cpu" else "other"
    budget = LOGITS_BYTES[kind] // 4
    chunk = max(MIN_CHUNK[kind], budget // vocabulary_size)
    most = max(1, chunk * vocabulary_size // budget)
    return chunk, max(parts for parts in range(1, most + 1) if vocabulary_size % parts == 0)


def token_scores(
    hidden: jax.Array,
    embeddings: Any,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    final_logit_soft_cap: float | None,
    mesh: Mesh | None = None,
    chunk: int | None = None,
    parts: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability f32[B, T] of every target token, and whether it is a most likely token, bool[B, T].

    Args:
        hidden: [B, T, D] from `forward`; the matrix products are computed in its dtype and summed in float32.
        embeddings: the tied token embeddings [V, D], in any form of a weight. They are cast to the dtype of `hidden`.
        targets: i32[B, T].
        weights: f32[B, T]. Positions of weight 0 are not computed: they score 0 and False, and nothing, not even a NaN
            in `hidden`, comes from them or reaches them. Other weights count as 1. None: every position is scored.
        final_logit_soft_cap: logits are cap · tanh(logits / cap).
        mesh: devices that share the vocabulary; it is never gathered.
        chunk: tokens scored at a time, and `parts` of a device's vocabulary that they are scored against one after the
            other (defaults: `default_chunk`).

    Where tokens share the highest logit, each of them counts as most likely. The gradient of `hidden` has B divided over
    "data", and T over "model" where that divides T.

    Raises:
        UserError: the devices cannot share V equally.
    """
    embeddings = plain(embeddings, hidden.dtype)
    vocabulary, ways = embeddings.shape[0], 1 if mesh is None else mesh.size
    if vocabulary % ways:
        raise UserError(
            f"the vocabulary has {vocabulary} tokens, which {ways} devices cannot share equally; choose another number of "
            "devices in config.parallel."
        )
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    own_chunk, own_parts = default_chunk(vocabulary // ways, platform)
    setting = _Setting(final_logit_soft_cap, mesh, chunk or own_chunk, parts or own_parts)
    with jax.named_scope("log_probs"):
        return _token_scores(setting, hidden, embeddings, targets, weights)


def _per_device(setting: _Setting, function: Callable[..., Any], in_specs: tuple, out_specs: Any) -> Callable[..., Any]:
    if setting.mesh is None:
        return function
    return jax.shard_map(function, mesh=setting.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _hidden_gradient_spec(setting: _Setting, time: int) -> PartitionSpec:
    """How the sum over devices of a [B, T, D] lies: divided over T where possible, half the traffic of a whole sum."""
    divides = setting.mesh is not None and time % setting.mesh.shape[MODEL] == 0
    return PartitionSpec(DATA, MODEL if divides else None, None)


def _forward(
    setting: _Setting, with_gradient: bool, hidden: jax.Array, embeddings: jax.Array, targets: jax.Array, weights: Any
) -> tuple[jax.Array, ...]:
    """(log-probabilities, is-argmax, log-sum-exps) [B, T] and, `with_gradient`, d log-probability / d hidden [B, T, D]."""
    gradient_spec = _hidden_gradient_spec(setting, hidden.shape[1])

    def scores(hidden: jax.Array, embeddings: jax.Array, targets: jax.Array, weights: Any) -> tuple[jax.Array, ...]:
        own = embeddings.astype(hidden.dtype)

        def body(carry: None, x: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
            hidden, targets = x[0], _own_targets(setting, x[1], own.shape[0])
            return carry, _scores_of(setting, with_gradient, hidden, own, targets)

        _, ys = _over_scored(setting, body, None, (hidden, targets), weights)
        return (*ys[:3], *(_sum_over_devices(setting, y, gradient_spec) for y in ys[3:]))

    specs = (_WHOLE,) * 3 + (gradient_spec,) * with_gradient
    return _per_device(setting, scores, (_WHOLE, _EMBEDDINGS, _WHOLE, _WHOLE), specs)(
        hidden, embeddings, targets, weights
    )


def _token_scores_primal(
    setting: _Setting, hidden: jax.Array, embeddings: jax.Array, targets: jax.Array, weights: Any
) -> tuple[jax.Array, jax.Array]:
    log_probs, is_argmax, _ = _forward(setting, False, hidden, embeddings, targets, weights)
    return log_probs, is_argmax


_token_scores = jax.custom_vjp(_token_scores_primal, nondiff_argnums=(0,))


def _token_scores_fwd(setting: _Setting, hidden: Any, embeddings: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
    arrays = hidden.value, embeddings.value, targets.value, None if weights is None else weights.value
    if embeddings.perturbed:
        log_probs, is_argmax, normalisers = _forward(setting, False, *arrays)
        return (log_probs, is_argmax), (arrays, normalisers, None)
    log_probs, is_argmax, _, gradient = _forward(setting, True, *arrays)
    return (log_probs, is_argmax), ((None, None, None, arrays[3]), None, gradient)


def _token_scores_bwd(setting: _Setting, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    arrays, normalisers, gradient = residuals
    cotangent = cotangents[0]
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    if arrays[3] is not None:
        cotangent = jnp.where(arrays[3] != 0, cotangent, 0.0)
    if gradient is None:
        return (*_both_gradients(setting, cotangent, normalisers, *arrays), None, None)
    return (cotangent[..., None] * gradient).astype(gradient.dtype), None, None, None


_token_scores.defvjp(_token_scores_fwd, _token_scores_bwd, symbolic_zeros=True)


def _both_gradients(
    setting: _Setting,
    cotangents: jax.Array,
    normalisers: jax.Array,
    hidden: jax.Array,
    embeddings: jax.Array,
    targets: jax.Array,
    weights: Any,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of hidden [B, T, D] and embeddings [V, D], from logits that are computed again."""
    gradient_spec = _hidden_gradient_spec(setting, hidden.shape[1])

    def gradients(cotangents, normalisers, hidden, embeddings, targets, weights):
        own = embeddings.astype(hidden.dtype)

        def body(total: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array]]:
            cotangents, normalisers, hidden, targets = x
            targets = _own_targets(setting, targets, own.shape[0])
            logits = _logits(setting, hidden, own)
            d_logits = _d_logits(setting, logits, targets, jnp.exp(logits - normalisers[:, None]))
            d_logits = (cotangents[:, None] * d_logits).astype(hidden.dtype)
            total = total + _product("cv,cd->vd", d_logits, hidden)
            return total, (_product("cv,vd->cd", d_logits, own).astype(hidden.dtype),)

        total = jnp.zeros(own.shape, jnp.float32)
        total, (d_hidden,) = _over_scored(setting, body, total, (cotangents, normalisers, hidden, targets), weights)
        return _sum_over_devices(setting, d_hidden, gradient_spec), total.astype(embeddings.dtype)

    in_specs = (_WHOLE, _WHOLE, _WHOLE, _EMBEDDINGS, _WHOLE, _WHOLE)
    out_specs = (gradient_spec, _EMBEDDINGS)
    return _per_device(setting, gradients, in_specs, out_specs)(
        cotangents, normalisers, hidden, embeddings, targets, weights
    )


def _over_scored(setting: _Setting, body: Callable, carry: Any, arrays: tuple, weights: Any) -> tuple[Any, tuple]:
    """`lax.scan` of `body` over chunks [C, ...] of the scored tokens of `arrays` [B, T, ...]; results are [B, T, ...].

    The number of chunks is that of all tokens, so that a count of operations is an upper bound; those beyond the last
    scored token are skipped when run.
    """
    rows = arrays[0].shape[:2]
    tokens = rows[0] * rows[1]
    chunks = -(-tokens // setting.chunk)
    chunk = -(-tokens // chunks)
    arrays = tuple(array.reshape(tokens, *array.shape[2:]) for array in arrays)
    if weights is None:
        padding = chunks * chunk - tokens
        padded = (jnp.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1)) for array in arrays)
        carry, ys = jax.lax.scan(body, carry, tuple(x.reshape(chunks, chunk, *x.shape[1:]) for x in padded))
        return carry, tuple(y.reshape(-1, *y.shape[2:])[:tokens].reshape(*rows, *y.shape[2:]) for y in ys)

    scored = weights.reshape(tokens) != 0
    (order,) = jnp.nonzero(scored, size=chunks * chunk, fill_value=tokens)

    def step(carry: Any, order: jax.Array) -> tuple[Any, tuple]:
        def run(carry: Any) -> tuple[Any, tuple]:
            return body(carry, tuple(jnp.asarray(x).at[order].get(mode="fill", fill_value=0) for x in arrays))

        def skip(carry: Any) -> tuple[Any, tuple]:
            return carry, tuple(jnp.zeros(y.shape, y.dtype) for y in jax.eval_shape(run, carry)[1])

        return jax.lax.cond(order[0] < tokens, run, skip, carry)

    carry, ys = jax.lax.scan(step, carry, order.reshape(chunks, chunk))
    slots = jnp.cumsum(scored) - 1
    return carry, tuple(_unpacked(y.reshape(-1, *y.shape[2:]), slots, scored).reshape(*rows, *y.shape[2:]) for y in ys)


def _unpacked(packed: jax.Array, slots: jax.Array, scored: jax.Array) -> jax.Array:
    """Puts results of scored tokens back in their places [X, ...], and 0 between them."""
    keep = scored.reshape(-1, *(1,) * (packed.ndim - 1))
    return jnp.where(keep, packed[slots], jnp.zeros((), packed.dtype))


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _logits(setting: _Setting, hidden: jax.Array, embeddings: jax.Array) -> jax.Array:
    logits = _product("cd,vd->cv", hidden, embeddings)
    return logits if setting.cap is None else setting.cap * jnp.tanh(logits / setting.cap)


def _own_targets(setting: _Setting, targets: jax.Array, size: int) -> jax.Array:
    """Targets as indices into this device's part of the vocabulary; those of other parts are out of its range."""
    return targets if setting.mesh is None else targets - jax.lax.axis_index(ALL) * size


def _scores_of(
    setting: _Setting, with_gradient: bool, hidden: jax.Array, embeddings: jax.Array, targets: jax.Array
) -> tuple[jax.Array, ...]:
    """(log-probabilities, is-argmax, log-sum-exps) [C] and, `with_gradient`, this device's part of the gradient [C, D]."""
    tokens, (vocabulary, width) = hidden.shape[0], embeddings.shape
    size = vocabulary // setting.parts

    def add(sums: _Sums, part: tuple[jax.Array, jax.Array]) -> tuple[_Sums, None]:
        """The sums with a part of the vocabulary, relative to the highest logit so far."""
        start, rows = part
        logits = _logits(setting, hidden, rows)
        peaks = jnp.maximum(sums.peaks, logits.max(axis=-1))
        kept, exponentials = jnp.exp(sums.peaks - peaks), jnp.exp(logits - peaks[:, None])
        weighted = sums.weighted
        if weighted is not None:
            # Without the target, whose two shares nearly cancel out where it is likely: rounded ones would not.
            slopes = jnp.where(_is_target(targets - start, size), 0.0, exponentials * _slope(setting, logits))
            weighted = weighted * kept[:, None] + _product("cv,vd->cd", slopes.astype(hidden.dtype), rows)
        # One element of each row is read by index, which costs less than a pass over the logits; no gradient goes this way.
        own = jnp.take_along_axis(logits, jnp.clip(targets - start, 0, size - 1)[:, None], axis=1)[:, 0]
        is_here = (targets >= start) & (targets < start + size)
        totals = sums.totals * kept + exponentials.sum(axis=-1)
        return _Sums(peaks, totals, jnp.where(is_here, own, sums.target_logits), weighted), None

    zeros = jnp.zeros(tokens, jnp.float32)
    sums = _Sums(zeros - jnp.inf, zeros, zeros, jnp.zeros((tokens, width), jnp.float32) if with_gradient else None)
    starts = jnp.arange(setting.parts) * size
    sums, _ = jax.lax.scan(add, sums, (starts, embeddings.reshape(setting.parts, size, width)))
    peaks, totals, target_logits = sums.peaks, sums.totals, sums.target_logits
    if setting.mesh:
        peaks = jax.lax.pmax(peaks, ALL)
        target_logits, totals = jax.lax.psum((target_logits, totals * jnp.exp(sums.peaks - peaks)), ALL)
    normalisers = jnp.log(totals) + peaks
    results = target_logits - normalisers, target_logits >= peaks, normalisers
    if sums.weighted is None:
        return results
    is_own = (targets >= 0) & (targets < vocabulary)
    missing = 1.0 - jnp.exp(target_logits - peaks) / totals
    slopes = jnp.where(is_own, missing * _slope(setting, target_logits), 0.0)
    of_target = slopes[:, None] * embeddings[jnp.clip(targets, 0, vocabulary - 1)]
    expected = sums.weighted * (jnp.exp(sums.peaks - peaks) / totals)[:, None]
    return *results, (of_target - expected).astype(hidden.dtype)


def _d_logits(setting: _Setting, logits: jax.Array, targets: jax.Array, probabilities: jax.Array) -> jax.Array:
    """d log-probability / d logit before the soft cap, f32[C, V]."""
    is_target = _is_target(targets, logits.shape[1])
    return (is_target.astype(jnp.float32) - probabilities) * _slope(setting, logits)


def _is_target(targets: jax.Array, size: int) -> jax.Array:
    """bool[C, size]: a comparison, which is part of the same pass over the logits, where an index is a slow scatter."""
    return jnp.arange(size) == targets[:, None]


def _slope(setting: _Setting, logits: jax.Array) -> Any:
    """The derivative of the soft cap at these logits."""
    return 1.0 if setting.cap is None else 1.0 - jnp.square(logits / setting.cap)


def _sum_over_devices(setting: _Setting, partial: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The sum of [B, T, D] over the parts of the vocabulary, each device keeping its own rows and, by `spec`, times."""
    if setting.mesh is None:
        return partial
    rows = jax.lax.psum_scatter(partial, DATA, scatter_dimension=0, tiled=True)
    if spec[1] is None:
        return jax.lax.psum(rows, MODEL)
    return jax.lax.psum_scatter(rows, MODEL, scatter_dimension=1, tiled=True)
