"""From logits to the next token: repetition penalty, temperature, top-k, top-p, and one random draw a row.

Numerics and order are those of transformers (generation/logits_process.py). All values are traced, so one compiled
function serves every setting.

Axes: B rows, V vocabulary.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SamplingConfig

LEAST_TEMPERATURE = 1e-6  # below it, differences of logits overflow float32


class Sampling(NamedTuple):
    """The numbers of a `SamplingConfig` that a compiled function takes: four scalars."""

    temperature: np.float32
    top_k: np.int32
    top_p: np.float32
    repetition_penalty: np.float32

    @classmethod
    def of(cls, config: SamplingConfig) -> "Sampling":
        """The values of `config`.

        Raises:
            UserError: a value that no distribution has.
        """
        check_sampling(config)
        # A k beyond int32 keeps everything, as does one beyond the vocabulary.
        top_k = np.int32(min(config.top_k, np.iinfo(np.int32).max))
        return cls(
            np.float32(config.temperature), top_k, np.float32(config.top_p), np.float32(config.repetition_penalty)
        )


def check_sampling(config: SamplingConfig) -> None:
    """Raises `UserError`, which names the first impossible value."""
    temperature, penalty = config.temperature, config.repetition_penalty
    for name, holds, expected in (
        ("max_new_tokens", config.max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature == 0 or LEAST_TEMPERATURE <= temperature < math.inf, "0 (greedy) or above 1e-6"),
        ("top_k", config.top_k >= 0, "0 (all tokens) or more"),
        ("top_p", 0 < config.top_p <= 1, "above 0 and at most 1"),
        ("repetition_penalty", 0 < penalty < math.inf, "above 0 (1: no penalty)"),
    ):
        if not holds:
            raise UserError(f"sampling.{name} is {getattr(config, name)}; give a value {expected}.")


def penalize(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits [B, V] of the tokens in `seen` bool[B, V] made less likely (arXiv 1909.05858): positive ones divided by
    `penalty`, negative ones multiplied."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def truncate(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits [B, V] with -inf outside the `top_k` most likely tokens (0: all) and, of these, outside the smallest set
    whose probability reaches `top_p`. Tokens as likely as the last one kept are kept too.

    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    >>> jnp.isfinite(truncate(logits, top_k=3, top_p=0.7)).tolist()
    [[True, True, False, False]]
    """
    vocabulary = logits.shape[-1]
    kept = jnp.where(top_k > 0, jnp.minimum(top_k, vocabulary), vocabulary)
    ascending = jnp.sort(logits, axis=-1)
    least = jax.lax.dynamic_slice_in_dim(ascending, vocabulary - kept, 1, axis=-1)
    ascending = jnp.where(ascending < least, -jnp.inf, ascending)
    # Summed from the unlikely end, where float32 is finest; the most likely token always stays.
    removed = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p
    count = jnp.minimum(jnp.sum(removed, axis=-1, keepdims=True), vocabulary - 1)
    return jnp.where(logits < jnp.take_along_axis(ascending, count, axis=-1), -jnp.inf, logits)


def process(logits: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits f32[B, V], up to a constant a row, of the distribution that is drawn from; the temperature is not 0."""
    logits = penalize(logits, seen, sampling.repetition_penalty)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / sampling.temperature
    return jax.lax.cond(
        (sampling.top_k > 0) | (sampling.top_p < 1),
        lambda x: truncate(x, sampling.top_k, sampling.top_p),
        lambda x: x,
        logits,
    )


def row_keys(seed: jax.Array, rows: jax.Array) -> jax.Array:
    """A random key for each row number [B]: a row's draws depend on the seed and its number only."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), rows)


def next_tokens(logits: jax.Array, seen: jax.Array, sampling: Sampling, keys: jax.Array, step: jax.Array) -> jax.Array:
    """One token i32[B] a row: the most likely after the penalty at temperature 0, else drawn with key (row, step).

    `logits` f32[B, V]; `seen` bool[B, V]: tokens of the prompt and of the answer so far.
    """

    def greedy() -> jax.Array:
        return jnp.argmax(penalize(logits, seen, sampling.repetition_penalty), axis=-1)

    def drawn() -> jax.Array:
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(step_keys, process(logits, seen, sampling))

    return jax.lax.cond(sampling.temperature > 0, drawn, greedy).astype(jnp.int32)
