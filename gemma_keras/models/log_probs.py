"""Log-probabilities of target tokens without the [B, T, V] logits.

Axes: B batch, T time, D model dim, V vocabulary, C tokens in a chunk.
"""

import jax
import jax.numpy as jnp

MIN_CHUNK = 64
CHUNK_BYTES = {"cpu": 1 << 23, "other": 1 << 28}  # float32 logits held at once: a CPU's cache, an accelerator's memory


def default_chunk(vocabulary_size: int) -> int:
    """Tokens scored at a time on the default backend. 8 MiB made the backward pass twice as fast on CPU as one piece."""
    budget = CHUNK_BYTES["cpu" if jax.default_backend() == "cpu" else "other"]
    return max(MIN_CHUNK, budget // (4 * vocabulary_size))


def token_scores(
    hidden: jax.Array,
    embeddings: jax.Array,
    targets: jax.Array,
    *,
    final_logit_soft_cap: float | None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability f32[B, T] of every target token, and whether it is a most likely token, bool[B, T].

    `hidden` [B, T, D] comes from `forward`, `embeddings` [V, D] are the tied token embeddings (cast to the dtype of
    `hidden`), `targets` i32[B, T]. Tokens are scored `chunk` at a time (default `default_chunk(V)`), and a chunk's logits
    are computed again in the backward pass. Where tokens share the highest logit, each of them counts as most likely.
    """
    batch, time, dim = hidden.shape
    tokens = batch * time
    embeddings = embeddings.astype(hidden.dtype)
    chunks = -(-tokens // (chunk or default_chunk(embeddings.shape[0])))
    chunk = -(-tokens // chunks)
    padding = chunks * chunk - tokens
    chunked_hidden = jnp.pad(hidden.reshape(tokens, dim), ((0, padding), (0, 0))).reshape(chunks, chunk, dim)
    chunked_targets = jnp.pad(targets.reshape(tokens), (0, padding)).reshape(chunks, chunk)

    @jax.checkpoint
    def body(carry: None, x: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return carry, _chunk_scores(x[0], embeddings, x[1], final_logit_soft_cap)

    _, scores = jax.lax.scan(body, None, (chunked_hidden, chunked_targets))
    log_probs, is_argmax = (score.reshape(-1)[:tokens].reshape(batch, time) for score in scores)
    return log_probs, is_argmax


def _chunk_scores(
    hidden: jax.Array, embeddings: jax.Array, targets: jax.Array, final_logit_soft_cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """(log-probability f32[C], is-argmax bool[C]) of `targets` i32[C] under `hidden` [C, D] and `embeddings` [V, D]."""
    logits = jnp.einsum("cd,vd->cv", hidden, embeddings, preferred_element_type=jnp.float32)
    if final_logit_soft_cap is not None:
        logits = final_logit_soft_cap * jnp.tanh(logits / final_logit_soft_cap)
    # A comparison in place of an index: its gradient is a select, that of an index a slow scatter.
    is_target = jnp.arange(embeddings.shape[0]) == targets[:, None]
    target_logits = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    peaks = jax.lax.stop_gradient(logits.max(axis=-1))
    normalisers = jnp.log(jnp.exp(logits - peaks[:, None]).sum(axis=-1)) + peaks
    return target_logits - normalisers, target_logits >= peaks


def token_log_probs(
    hidden: jax.Array,
    embeddings: jax.Array,
    targets: jax.Array,
    *,
    final_logit_soft_cap: float | None,
    chunk: int | None = None,
) -> jax.Array:
    """The first half of `token_scores`: log-probabilities f32[B, T]."""
    return token_scores(hidden, embeddings, targets, final_logit_soft_cap=final_logit_soft_cap, chunk=chunk)[0]
