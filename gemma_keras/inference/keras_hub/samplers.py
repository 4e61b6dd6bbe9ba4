"""Samplers for `keras_hub.models.GemmaCausalLM.compile(sampler=...)`, on the JAX backend, with this package's mathematics.

    causal_lm.compile(sampler=PenaltySampler(temperature=0.7, top_p=0.95, repetition_penalty=1.1))
    causal_lm.generate({"token_ids": ..., "padding_mask": ...}, stop_token_ids=(1,))

Prompts may be of different lengths, padded on the right. keras_hub fills all rows from the end of the shortest prompt on,
one place a step, and lets the tokens of longer prompts stand; what is drawn at those places counts for nothing here.

Axes: B rows, T places, D model dim, V vocabulary, W = ceil(V / 32) words of 32 bits.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras_hub.samplers import Sampler

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.constraints.constraint import Choice, Constraint, JsonSchema, Regex
from gemma_keras.inference.constraints.grammars import Grammars, allowed, taken
from gemma_keras.inference.sampling import SamplingRows, Tallies, masked, next_tokens
from gemma_keras.text.tokenizer import Tokenizer

Next = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, jax.Array, Any]]


def is_stop(tokens: jax.Array, stop_token_ids: Sequence[int] | None) -> jax.Array:
    """bool of the shape of `tokens`."""
    return jnp.isin(tokens, jnp.array(stop_token_ids or (), tokens.dtype))


class SamplerCall(NamedTuple):
    """What keras_hub gives a sampler: `next`; `prompt` i32[B, T], whose tokens are given where `mask` bool[B, T] is set;
    `hidden_states` [B, T, D] of the prompt, from models that have them."""

    next: Next
    prompt: jax.Array
    mask: jax.Array
    stop_token_ids: Sequence[int] | None
    hidden_states: jax.Array | None


class LoopSampler(Sampler):
    """A sampler whose loop carries prompts i32[B, T], a cache, the place i32[] that is filled next, and more of its own."""

    def begin(self, call: SamplerCall, cache: Any, index: jax.Array) -> tuple[Any, ...]:
        """What the loop carries first."""
        raise NotImplementedError

    def step(self, call: SamplerCall, prompt: jax.Array, cache: Any, index: jax.Array, *own: Any) -> tuple[Any, ...]:
        """What it carries after one place more."""
        raise NotImplementedError

    def goes_on(self, call: SamplerCall, prompt: jax.Array, cache: Any, index: jax.Array, *own: Any) -> jax.Array:
        """Whether any row has no stop token yet among its new ones."""
        new = ~call.mask & (jnp.arange(prompt.shape[1]) < index)
        return ~jnp.all(jnp.any(is_stop(prompt, call.stop_token_ids) & new, axis=-1))

    def __call__(
        self,
        next: Next,
        prompt: jax.Array,
        cache: Any = None,
        index: int | jax.Array = 0,
        mask: jax.Array | None = None,
        stop_token_ids: Sequence[int] | None = None,
        hidden_states: jax.Array | None = None,
        model: keras.Model | None = None,
        **_: Any,
    ) -> jax.Array:
        """`prompt` i32[B, T] with new tokens from `index` on where `mask` bool[B, T] is not set."""
        mask = jnp.zeros(prompt.shape, bool) if mask is None else jnp.asarray(mask, bool)
        call = SamplerCall(next, prompt, mask, stop_token_ids, hidden_states)
        index = jnp.asarray(index, jnp.int32)
        state = self.run_loop(
            functools.partial(self.goes_on, call), functools.partial(self.step, call),
            loop_vars=self.begin(call, () if cache is None else cache, index),
            maximum_iterations=prompt.shape[1] - index, model=model,
        )  # fmt: skip
        return self.answers(state)

    def answers(self, state: tuple[Any, ...]) -> jax.Array:
        """i32[B, T] of what the loop carried last."""
        return state[0]


@keras.saving.register_keras_serializable(package="gemma_keras")
class PenaltySampler(LoopSampler):
    """Draws after penalties, temperature, top-k, top-p and min-p, as `sampling.next_tokens` does.

    The draw of row b at its n-th new token depends on `seed`, b and n only: the same call gives the same answer. (Samplers
    of keras_hub give another one at each call.)

    Args:
        temperature: 0: the most likely token.
        top_k: keep the k most likely tokens; 0: all.
        top_p: keep the most likely tokens up to this probability mass.
        min_p: drop tokens less likely than this share of the most likely one's probability.
        repetition_penalty: divides the logits of tokens of prompt and answer; 1: none.
        presence_penalty: taken off the logits of tokens that the answer has.
        frequency_penalty: the same, once for each time that the answer has them.
        seed: of the draws.

    Raises:
        UserError: a value that no distribution has.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(temperature=temperature)
        values = temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed
        self.settings: dict[str, Any] = dict(zip(SamplingRows._fields, values, strict=True))
        rows = SamplingRows.of([SamplingConfig(**self.settings)])
        self._rows = _variables(SamplingRows(*(field[0] for field in rows)))

    def set_rows(self, configs: Sequence[SamplingConfig]) -> None:
        """From now on row b of a batch has the settings `configs[b]`, and draws by its seed alone, not by b.

        Settings are variables: a model that has generated with this sampler is not compiled again for other values, only
        for another number of rows. They are not part of `get_config`; `max_new_tokens` is not looked at.

        Raises:
            UserError: a value that no distribution has.
        """
        self._rows = _variables(SamplingRows.of(configs))

    @property
    def variables(self) -> list[keras.Variable]:
        """The settings, which keras_hub passes to the compiled function."""
        return [*super().variables, *self._rows]

    def get_config(self) -> dict[str, Any]:
        return dict(self.settings)

    def begin(self, call: SamplerCall, cache: Any, index: jax.Array) -> tuple[Any, ...]:
        prompt, lengths = call.prompt, jnp.sum(call.mask, axis=-1, dtype=jnp.int32)
        vocabulary = jax.eval_shape(call.next, prompt, cache, index)[0].shape[-1]
        tallies = Tallies.of_prompts(prompt, call.mask, vocabulary)
        return prompt, cache, index, tallies, self.first_notes(call, lengths)

    def step(self, call: SamplerCall, prompt: jax.Array, cache: Any, index: jax.Array, *own: Any) -> tuple[Any, ...]:
        """
        Raises:
            UserError: `set_rows` was given another number of rows.
        """
        tallies, notes = own
        lengths, given = jnp.sum(call.mask, axis=-1, dtype=jnp.int32), call.mask[:, index]
        logits, _, cache = call.next(prompt, cache, index)
        scores = self.scores(logits.astype(jnp.float32), notes)
        token = next_tokens(scores, tallies, self._settings_of(len(prompt)), index - lengths)
        token, notes = self.decide(call, token, prompt, lengths, index)
        token = jnp.where(given, prompt[:, index], token.astype(prompt.dtype))
        return prompt.at[:, index].set(token), cache, index + 1, tallies.counted(token, ~given), notes

    def first_notes(self, call: SamplerCall, lengths: jax.Array) -> Any:
        """What `scores` is told at the first step, for prompts of `lengths` i32[B]: arrays; nothing here."""
        return ()

    def scores(self, logits: jax.Array, notes: Any) -> jax.Array:
        """Logits f32[B, V] of a step as the settings shall see them."""
        return logits

    def decide(
        self, call: SamplerCall, drawn: jax.Array, prompt: jax.Array, lengths: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The tokens i32[B] that are taken where `drawn` i32[B] were drawn for place `index`, and the next notes."""
        return drawn, ()

    def _settings_of(self, batch: int) -> SamplingRows:
        rows = SamplingRows(*(keras.ops.convert_to_tensor(variable) for variable in self._rows))
        if rows.seed.shape == (batch,):
            return rows
        if rows.seed.shape:
            raise UserError(
                f"the sampler was given settings of {len(rows.seed)} rows and the batch has {batch}; "
                "call `set_rows` with one for each row."
            )
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(rows.seed), jnp.arange(batch))
        seeds = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(keys)
        return SamplingRows(*(jnp.broadcast_to(field, (batch,)) for field in rows))._replace(seed=seeds)


def _variables(rows: SamplingRows) -> SamplingRows:
    """The fields as Keras variables."""
    return SamplingRows(
        *(keras.Variable(field, dtype=str(field.dtype), trainable=False, autocast=False) for field in rows)
    )


@keras.saving.register_keras_serializable(package="gemma_keras")
class ConstrainedSampler(PenaltySampler):
    """Answers that match `constraint` whatever the model would say, each ended by a stop token where there is room for it.

    At each step the host is asked which tokens may come next: notes are u32[B, W]. Stop tokens are those of `generate`, eos
    where it has none.

    Args:
        constraint: a `Choice`, `Regex` or `JsonSchema`, or one as `constraint_config` writes it: `{"regex": "[0-9]+"}`.
        tokenizer: path of the model's tokenizer.model.
        max_new_tokens: answers are whole after as many tokens, or after as many as their row has places left.
        **sampling: settings of `PenaltySampler`.

    Raises:
        UserError: no tokenizer there, an impossible constraint, or an impossible setting.
    """

    def __init__(
        self, constraint: Constraint | dict[str, Any], tokenizer: str | Path, max_new_tokens: int = 512, **sampling: Any
    ):
        super().__init__(**sampling)
        self.constraint = constraint_of(constraint) if isinstance(constraint, dict) else constraint
        self.max_new_tokens = max_new_tokens
        self._tokenizer = Tokenizer(tokenizer)
        self._grammars = functools.cache(functools.partial(Grammars, self._tokenizer))
        self._grammars_for(None).matcher(self.constraint, max_new_tokens)

    def get_config(self) -> dict[str, Any]:
        own = dict(
            constraint=constraint_config(self.constraint),
            tokenizer=str(self._tokenizer.path),
            max_new_tokens=self.max_new_tokens,
        )
        return own | super().get_config()

    def _grammars_for(self, stop_token_ids: Sequence[int] | None) -> Grammars:
        return self._grammars((self._tokenizer.eos_id,) if stop_token_ids is None else tuple(stop_token_ids))

    def first_notes(self, call: SamplerCall, lengths: jax.Array) -> jax.Array:
        return self.decide(call, jnp.zeros_like(lengths), call.prompt, lengths, jnp.int32(-1))[1]

    def scores(self, logits: jax.Array, notes: jax.Array) -> jax.Array:
        return masked(logits, notes)

    def decide(
        self, call: SamplerCall, drawn: jax.Array, prompt: jax.Array, lengths: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        words = -(-self._tokenizer.vocabulary_size // 32)
        shapes = jax.ShapeDtypeStruct(drawn.shape, jnp.int32), jax.ShapeDtypeStruct((len(prompt), words), jnp.uint32)
        on_host = functools.partial(self._on_host, self._grammars_for(call.stop_token_ids), words)
        return jax.pure_callback(on_host, shapes, drawn, prompt, lengths, index)

    def _on_host(
        self, grammars: Grammars, words: int, drawn: Any, prompt: Any, lengths: Any, index: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        drawn, prompt, lengths, index = (np.asarray(array) for array in (drawn, prompt, lengths, index))
        tokens, bits = np.array(drawn), np.empty((len(prompt), words), np.uint32)
        for row, length in enumerate(lengths.tolist()):
            most = min(self.max_new_tokens, prompt.shape[1] - length)
            answer = prompt[row, length : max(index, length)].tolist()
            if index >= length:
                tokens[row] = taken(grammars, self.constraint, answer, most, int(drawn[row]))
                answer.append(int(tokens[row]))
            bits[row] = allowed(grammars, self.constraint, answer, most)
        return tokens, bits


def constraint_config(constraint: Constraint) -> dict[str, Any]:
    """A constraint as JSON.

    >>> constraint_config(Choice(("yes", "no")))
    {'choice': ['yes', 'no']}
    """
    match constraint:
        case Choice(options):
            return {"choice": list(options)}
        case Regex(pattern):
            return {"regex": pattern}
        case JsonSchema(schema):
            return {"json_schema": schema}


def constraint_of(config: dict[str, Any]) -> Constraint:
    """The inverse of `constraint_config`.

    Raises:
        UserError: what it has is not exactly one constraint.
    """
    match config:
        case {"choice": options, **rest} if not rest:
            return Choice(tuple(options))
        case {"regex": str(pattern), **rest} if not rest:
            return Regex(pattern)
        case {"json_schema": str(schema), **rest} if not rest:
            return JsonSchema(schema)
    raise UserError(
        f"{config} was given as a constraint; give one of choice (a list of texts), regex or json_schema (texts)."
    )
