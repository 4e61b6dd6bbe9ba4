"""From logits to the next token: penalties, temperature, top-k, top-p, min-p, and one random number a row.

Numerics and order are those of transformers (generation/logits_process.py); presence and frequency penalties are
OpenAI's. Every row has settings of its own, all of them traced, so one compiled function serves every setting; work
that no row asks for is skipped. Nothing is sorted: the sets of top-k and top-p are found by bisection over the float32
numbers, and a token is drawn by inverting the cumulative distribution.

Axes: B rows, V vocabulary, n entries of a sparse bias, W words of 32 bits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import leaves
from gemma_keras.config.sections import SamplingConfig

LEAST_TEMPERATURE = 1e-6  # below it, differences of logits overflow float32
BLOCK = 128  # neighbouring ids that are reduced together, before the blocks are
UNIT = 2.0**31  # the integer weight of probability 1
GREATEST_INTEGER = 0x7FFFFFFF  # of 32 bits
NEUTRAL = SamplingConfig(temperature=0.0, top_p=1.0, repetition_penalty=1.0)  # asks for nothing that would cost time


class SamplingRows(NamedTuple):
    """The settings of B rows, as compiled functions take them: arrays [B], one for each field of `SamplingConfig`."""

    temperature: np.ndarray | jax.Array
    top_k: np.ndarray | jax.Array
    top_p: np.ndarray | jax.Array
    min_p: np.ndarray | jax.Array
    repetition_penalty: np.ndarray | jax.Array
    presence_penalty: np.ndarray | jax.Array
    frequency_penalty: np.ndarray | jax.Array
    seed: np.ndarray | jax.Array

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig]) -> "SamplingRows":
        """The settings of `configs`, one a row, as numpy arrays.

        Raises:
            UserError: a value that no distribution has.
        """
        for config in configs:
            check_sampling(config)

        columns = {name: [getattr(config, name) for config in configs] for name in cls._fields}
        # A k beyond int32 keeps everything, as does one beyond the vocabulary.
        top_k = np.array([min(k, GREATEST_INTEGER) for k in columns.pop("top_k")], np.int32)
        seed = np.array([seed & 0xFFFFFFFF for seed in columns.pop("seed")], np.uint32)
        return cls(top_k=top_k, seed=seed, **{name: np.array(column, np.float32) for name, column in columns.items()})

    def of_running(self, running: jax.Array) -> "SamplingRows":
        """The same for rows that are `running` bool[B]; the others ask for nothing that would cost time."""
        *neutral, _ = (field[0] for field in SamplingRows.of([NEUTRAL]))
        *values, seed = self
        kept = (jnp.where(running, value, none) for value, none in zip(values, neutral, strict=True))
        return SamplingRows(*[*kept, seed])


class Tallies(NamedTuple):
    """Tokens that penalties count: `prompt` bool[B, V], those of the prompt; `counts` i32[B, V], how often each one
    came in the answer."""

    prompt: jax.Array
    counts: jax.Array

    @classmethod
    def of_prompts(cls, tokens: jax.Array, is_prompt: jax.Array, vocabulary: int) -> "Tallies":
        """Before the first answer token; `tokens` i32[B, T] count where `is_prompt` bool[B, T]."""
        rows = jnp.arange(len(tokens))[:, None]
        # What is no prompt is sent beyond the vocabulary, where it marks nothing.
        places = jnp.where(is_prompt, tokens, vocabulary)
        prompt = jnp.zeros((len(tokens), vocabulary), bool).at[rows, places].set(True, mode="drop")
        return cls(prompt, jnp.zeros((len(tokens), vocabulary), jnp.int32))

    def counted(self, tokens: jax.Array, running: jax.Array) -> "Tallies":
        """With one answer token i32[B] more in the rows that are `running` bool[B]."""
        rows = jnp.arange(len(tokens))
        return self._replace(counts=self.counts.at[rows, tokens].add(running.astype(self.counts.dtype)))


def check_sampling(config: SamplingConfig) -> None:
    """Raises `UserError`, which names the first impossible value."""
    for leaf in leaves(config):
        if leaf.name != "seed":  # of which any integer will do here
            leaf.check(f"sampling.{leaf.name}")
    if 0 < config.temperature < LEAST_TEMPERATURE:
        raise UserError(f"sampling.temperature is {config.temperature}; give 0 (greedy) or at least 1e-6.")


def penalize(logits: jax.Array, tallies: Tallies, rows: SamplingRows) -> jax.Array:
    """Logits [B, V] of tokens that came already made less likely.

    The repetition penalty (arXiv 1909.05858) divides positive logits of the tokens of prompt and answer, and multiplies
    negative ones. Then presence, once, and frequency, once for each time, are taken off those of the answer's tokens.
    """

    def penalized() -> jax.Array:
        penalty = rows.repetition_penalty[:, None]
        scaled = jnp.where(logits < 0, logits * penalty, logits / penalty)
        answered = tallies.counts > 0
        values = jnp.where(tallies.prompt | answered, scaled, logits)
        counts = tallies.counts.astype(logits.dtype)
        return values - rows.presence_penalty[:, None] * answered - rows.frequency_penalty[:, None] * counts

    return jax.lax.cond(jnp.any(_penalizes(rows)), penalized, lambda: logits)


def _penalizes(rows: SamplingRows) -> jax.Array:
    """bool[B]: rows with a penalty."""
    return (rows.repetition_penalty != 1) | (rows.presence_penalty != 0) | (rows.frequency_penalty != 0)


def process(logits: jax.Array, tallies: Tallies, rows: SamplingRows) -> jax.Array:
    """Logits f32[B, V], up to a constant a row, of the distribution that is drawn from; -inf is never drawn.

    In this order: penalties, temperature (1 where it is 0), top-k, top-p, min-p.
    """
    return _truncated(_tempered(penalize(logits, tallies, rows), rows), rows)


def next_tokens(logits: jax.Array, tallies: Tallies, rows: SamplingRows, step: jax.Array) -> jax.Array:
    """One token i32[B] a row: the most likely after the penalties at temperature 0, else one that is drawn.

    The draw depends on the row's logits, settings, seed and `step` i32[B] only. A row of NaN yields some valid id.
    """
    return next_and_greatest(logits, tallies, rows, step)[0]


def next_and_greatest(
    logits: jax.Array, tallies: Tallies, rows: SamplingRows, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `next_tokens`, with the greatest logit f32[B] of each row, which is infinity where one is NaN."""

    greedy = _most_likely(logits)

    def chosen() -> jax.Array:
        penalized = penalize(logits, tallies, rows)
        drawn = jax.lax.cond(
            jnp.any(rows.temperature > 0),
            lambda: _drawn(_truncated(_tempered(penalized, rows), rows), rows.seed, step),
            lambda: greedy,
        )
        return jnp.where(rows.temperature > 0, drawn, _most_likely(penalized))

    # What a condition gives back is copied: here a token a row, where penalties alone would give back all logits.
    special = jnp.any(_penalizes(rows) | (rows.temperature > 0))
    return jax.lax.cond(special, chosen, lambda: greedy), _greatest(logits)


def add_bias(logits: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Logits [B, V] with `values` f32[B, n] added to those of `ids` i32[B, n]; ids outside the vocabulary are ignored."""
    each_row = jnp.arange(len(logits))[:, None]
    # A negative index would count from the end.
    places = jnp.where(ids < 0, logits.shape[-1], ids)
    return logits.at[each_row, places].add(values, mode="drop")


def unpack_bits(bits: jax.Array, vocabulary: int) -> jax.Array:
    """bool[B, V] from `bits`, 32-bit integers [B, W]: token 32 w + i is bit i, from the lowest, of word w; where there are
    not so many words, the last tokens are false."""
    words = jax.lax.bitcast_convert_type(bits, jnp.uint32)[:, :, None]
    flags = ((words >> jnp.arange(32, dtype=jnp.uint32)) & 1).astype(bool).reshape(len(bits), -1)[:, :vocabulary]
    return jnp.pad(flags, ((0, 0), (0, vocabulary - flags.shape[1])))


def masked(logits: jax.Array, bits: jax.Array) -> jax.Array:
    """Logits [B, V], -inf where the bit of a token in `bits` [B, W] (see `unpack_bits`) is not set."""
    return jnp.where(unpack_bits(bits, logits.shape[-1]), logits, -jnp.inf)


def _tempered(logits: jax.Array, rows: SamplingRows) -> jax.Array:
    """Logits over the temperature, the greatest of each row 0."""
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1)[:, None]
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature


def _truncated(logits: jax.Array, rows: SamplingRows) -> jax.Array:
    """Logits [B, V], the greatest of each row 0, with -inf outside the sets of top-k, then top-p, then min-p.

    Tokens as likely as the last one kept are kept too.
    """
    vocabulary = logits.shape[-1]
    removable = jnp.where(rows.top_k > 0, jnp.maximum(vocabulary - rows.top_k, 0), 0)

    def top_k(values: jax.Array) -> jax.Array:
        least = jnp.where(removable > 0, -jnp.inf, 0)  # nothing to look for in rows that remove nothing
        threshold = _threshold(values, jnp.ones_like, removable.astype(jnp.float32), least)
        return jnp.where((values >= threshold[:, None]) | (removable == 0)[:, None], values, -jnp.inf)

    def top_p(values: jax.Array) -> jax.Array:
        weights = jnp.exp(values)
        mass = (1 - rows.top_p) * jnp.sum(weights, axis=-1)
        # Tokens that weigh less than 1 / V of what may go are less than that together.
        least = jnp.where(rows.top_p < 1, mass / (2 * vocabulary), 1)
        threshold = _threshold(weights, lambda weight: weight, mass, least)
        return jnp.where((weights >= threshold[:, None]) | (rows.top_p == 1)[:, None], values, -jnp.inf)

    def min_p(values: jax.Array) -> jax.Array:
        return jnp.where(values >= jnp.log(rows.min_p)[:, None], values, -jnp.inf)

    for needed, narrowed in ((removable > 0, top_k), (rows.top_p < 1, top_p), (rows.min_p > 0, min_p)):
        logits = jax.lax.cond(jnp.any(needed), narrowed, lambda values: values, logits)
    return logits


def _threshold(
    values: jax.Array, weigh: Callable[[jax.Array], jax.Array], removable: jax.Array, least: jax.Array
) -> jax.Array:
    """The t f32[B], from `least` [B] to each row's greatest value, that parts the same `values` [B, V] as the greatest
    t for which those below it weigh `removable` [B] at most.

    Bisects the float32 numbers between, of which there are less than 2^31. `weigh` must be monotonic. A row is done
    once what lies between its bounds weighs less than two of its lightest values: it is one value.
    """

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, low_weight, high_weight = state
        middle = low + (high - low + 1) // 2
        weight = jnp.sum(jnp.where(values < _float(middle)[:, None], weigh(values), 0), axis=-1)
        fits = weight <= removable
        return (
            jnp.where(fits, middle, low),
            jnp.where(fits, high, jnp.maximum(middle - 1, low)),
            jnp.where(fits, weight, low_weight),
            jnp.where(fits, high_weight, weight),
        )

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        low, high, low_weight, high_weight = state
        return jnp.any((low < high) & (high_weight - low_weight >= 1.5 * weigh(_float(low))))

    low, high = _ordinal(least), _ordinal(jnp.max(values, axis=-1))
    everything = jnp.sum(weigh(values), axis=-1)
    low, *_ = jax.lax.while_loop(unfinished, step, (low, high, jnp.zeros_like(everything), everything))
    return _float(low)


def _ordinal(values: jax.Array) -> jax.Array:
    """float32 numbers as integers of the same order."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ GREATEST_INTEGER, bits)


def _float(ordinals: jax.Array) -> jax.Array:
    """The inverse of `_ordinal`."""
    bits = jnp.where(ordinals < 0, ordinals ^ GREATEST_INTEGER, ordinals)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _blocks(values: jax.Array, padding: float) -> jax.Array:
    """[B, V] as [B, blocks, BLOCK], filled up with `padding`."""
    missing = -values.shape[-1] % BLOCK
    return jnp.pad(values, ((0, 0), (0, missing)), constant_values=padding).reshape(len(values), -1, BLOCK)


def _greatest(logits: jax.Array) -> jax.Array:
    """The greatest logit f32[B] of each row, infinity where one is NaN."""
    # Said apart, for XLA:CPU loses NaN in a maximum of many numbers.
    logits = jnp.where(jnp.isnan(logits), jnp.inf, logits)
    # Behind a barrier, lest the two become one, which takes several times as long on CPU.
    return jnp.max(jax.lax.optimization_barrier(jnp.max(_blocks(logits, -jnp.inf), axis=-1)), axis=-1)


def _most_likely(logits: jax.Array) -> jax.Array:
    """The first id i32[B] of the greatest logit, as `argmax` has it but by blocks, which is many times faster on CPU."""
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    within = jnp.argmax(_row_of(blocks, block), axis=-1)
    return jnp.minimum(block * BLOCK + within, logits.shape[-1] - 1).astype(jnp.int32)


def _row_of(blocks: jax.Array, block: jax.Array) -> jax.Array:
    """[B, BLOCK]: the block with number `block` [B] of each row."""
    return jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _drawn(logits: jax.Array, seeds: jax.Array, step: jax.Array) -> jax.Array:
    """An id i32[B] drawn with the probabilities of `logits` [B, V].

    Probabilities become integers of 1 / UNIT, whose sums are exact: rounding cannot reach a token of weight 0 (-inf, or
    a probability below 2^-32), wherever it stands.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    # NaN weighs nothing.
    weights = jnp.where(probabilities > 0, jnp.round(probabilities * UNIT), 0).astype(jnp.uint32)
    blocks = _blocks(weights, 0)
    reached = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = _uniform_below(reached[:, -1], seeds, step)
    block = _first_beyond(reached, target)
    before = jnp.where(block > 0, jnp.take_along_axis(reached, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0)
    within = _first_beyond(jnp.cumsum(_row_of(blocks, block), axis=-1), target - before)
    return jnp.minimum(block * BLOCK + within, logits.shape[-1] - 1).astype(jnp.int32)


def _first_beyond(reached: jax.Array, target: jax.Array) -> jax.Array:
    """The first place i32[B] in ascending sums [B, n] that exceeds `target` [B]; the last place where none does."""
    return jnp.minimum(jnp.sum(reached <= target[:, None], axis=-1), reached.shape[-1] - 1)


def _uniform_below(limits: jax.Array, seeds: jax.Array, step: jax.Array) -> jax.Array:
    """An integer u32[B] from 0 to below `limits` u32[B], drawn with each row's seed and step."""

    def bits_of(seed: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(jax.random.key(seed), number), dtype=jnp.uint32)

    # bits * limit / 2^32, by halves of 16 bits: there are no 64-bit integers.
    bits = jax.vmap(bits_of)(seeds, step)
    high, low, limit_high, limit_low = bits >> 16, bits & 0xFFFF, limits >> 16, limits & 0xFFFF
    middle = high * limit_low + (low * limit_low >> 16)
    return high * limit_high + (middle >> 16) + (low * limit_high + (middle & 0xFFFF) >> 16)
