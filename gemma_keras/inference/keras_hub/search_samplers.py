"""Contrastive and beam search as samplers for `keras_hub.models.GemmaCausalLM.compile(sampler=...)`, on the JAX backend.

keras_hub has samplers of these names. Its beams go on after their stop token, and branch while the longer prompts of a batch
still run, so their scores are not those of the answers; its contrastive search takes stop tokens of the prompt for the
answer's where the padding mask holds integers. These ones do neither, and share their mathematics with the engine.

The model's cache is one array that each step returns anew, so candidates and beams are rows of it.

Axes: B rows, k candidates or beams of each, T places, D model dim, V vocabulary, m continuations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras

from gemma_keras.config.errors import UserError
from gemma_keras.inference.keras_hub.samplers import LoopSampler, SamplerCall, is_stop
from gemma_keras.inference.search.contrastive import candidate_scores, unit


@keras.saving.register_keras_serializable(package="gemma_keras")
class ContrastiveSampler(LoopSampler):
    """Contrastive search (arXiv 2202.06417): of the `top_k` likeliest tokens the one with the greatest

        (1 - penalty_alpha) p - penalty_alpha max_j cos(h, h_j)

    with h the hidden state that it leads to, h_j those of all earlier tokens.

    Args:
        penalty_alpha: weight of the likeness, from 0 to 1; 0 is greedy.
        top_k: tokens that are tried at each step.

    Raises:
        UserError: a value that is out of range.
    """

    def __init__(self, penalty_alpha: float = 0.6, top_k: int = 4):
        super().__init__()
        if not 0 <= penalty_alpha <= 1 or top_k < 1:
            raise UserError(
                f"contrastive search was given penalty_alpha={penalty_alpha} and top_k={top_k}; give a penalty_alpha from "
                "0 to 1 and a top_k of at least 1."
            )
        self.penalty_alpha, self.top_k = penalty_alpha, top_k

    def get_config(self) -> dict[str, Any]:
        return dict(penalty_alpha=self.penalty_alpha, top_k=self.top_k)

    def begin(self, call: SamplerCall, cache: Any, index: jax.Array) -> tuple[Any, ...]:
        """
        Raises:
            UserError: the model gives no hidden states.
        """
        if call.hidden_states is None:
            raise UserError(
                "contrastive search needs hidden states, which this model does not give; use GemmaCausalLM."
            )
        logits, _, cache = call.next(call.prompt, cache, index)
        return call.prompt, cache, index, logits.astype(jnp.float32), unit(call.hidden_states)

    def step(self, call: SamplerCall, prompt: jax.Array, cache: Any, index: jax.Array, *own: Any) -> tuple[Any, ...]:
        (logits, states), (batch, places), k = own, prompt.shape, self.top_k
        each, alpha = jnp.arange(batch), jnp.full(batch, self.penalty_alpha, jnp.float32)
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), k)
        tokens = jnp.where(call.mask[:, index, None], prompt[:, index, None], tokens.astype(prompt.dtype))
        tried = jnp.repeat(prompt, k, axis=0).at[:, index].set(tokens.reshape(-1))
        many = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), cache)
        after, hidden, many = call.next(tried, many, index + 1)
        candidates = hidden.reshape(batch, k, -1)
        is_earlier = jnp.broadcast_to(jnp.arange(places) < index, prompt.shape)
        best = jnp.argmax(candidate_scores(probabilities, candidates, states, is_earlier, alpha), axis=-1)
        rows = each * k + best
        states = states.at[:, index].set(unit(candidates[each, best]))
        kept = jax.tree.map(lambda x: x[rows], many)
        return tried[rows], kept, index + 1, after[rows].astype(jnp.float32), states


class _Beams(NamedTuple):
    """Beams under way, `scores` f32[B, k] their log-probabilities; the best finished ones, i32[B, k, T] and f32[B, k];
    `open` bool[B]: one that is under way may still be better."""

    scores: jax.Array
    finished: jax.Array
    finished_scores: jax.Array
    open: jax.Array


@keras.saving.register_keras_serializable(package="gemma_keras")
class BeamSampler(LoopSampler):
    """Beam search as transformers does it (generation/utils.py, `_beam_search`, with early_stopping=False).

    Args:
        num_beams: beams of each row.
        length_penalty: finished answers are compared by log-probability / length ** length_penalty, their stop token counted.

    Raises:
        UserError: less than one beam.
    """

    def __init__(self, num_beams: int = 4, length_penalty: float = 1.0):
        super().__init__()
        if num_beams < 1:
            raise UserError(f"num_beams is {num_beams}; give at least 1.")
        self.num_beams, self.length_penalty = num_beams, length_penalty

    def get_config(self) -> dict[str, Any]:
        return dict(num_beams=self.num_beams, length_penalty=self.length_penalty)

    def begin(self, call: SamplerCall, cache: Any, index: jax.Array) -> tuple[Any, ...]:
        (batch, places), k = call.prompt.shape, self.num_beams
        copies, cache = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), (call.prompt, cache))
        beams = _Beams(
            scores=jnp.broadcast_to(jnp.where(jnp.arange(k) > 0, -1e9, 0.0), (batch, k)),
            finished=copies.reshape(batch, k, places),
            finished_scores=jnp.full((batch, k), -jnp.inf),
            open=jnp.sum(call.mask, axis=-1) < places,
        )
        return copies, cache, index, beams

    def goes_on(self, call: SamplerCall, prompt: jax.Array, cache: Any, index: jax.Array, *own: Any) -> jax.Array:
        """Whether any beam may still be better than the finished ones."""
        return own[0].open.any()

    def step(self, call: SamplerCall, prompt: jax.Array, cache: Any, index: jax.Array, *own: Any) -> tuple[Any, ...]:
        (batch, places), k = call.prompt.shape, self.num_beams
        logits, _, cache = call.next(prompt, cache, index)
        length = jnp.maximum(index - jnp.sum(call.mask, axis=-1, dtype=jnp.int32) + 1, 1)
        texts, stops = prompt.reshape(batch, k, places), tuple(call.stop_token_ids or ())
        parents, tokens, beams = self._branch(logits, texts, index, length, call.mask[:, index], stops, *own)
        texts = jnp.take_along_axis(texts, parents[:, :, None], axis=1).at[:, :, index].set(tokens)
        chosen = (jnp.arange(batch)[:, None] * k + parents).reshape(-1)
        return texts.reshape(prompt.shape), jax.tree.map(lambda x: x[chosen], cache), index + 1, beams

    def answers(self, state: tuple[Any, ...]) -> jax.Array:
        """The best beam of each row."""
        return state[3].finished[:, 0]

    def _branch(
        self,
        logits: jax.Array,
        texts: jax.Array,
        index: jax.Array,
        length: jax.Array,
        given: jax.Array,
        stops: tuple[int, ...],
        beams: _Beams,
    ) -> tuple[jax.Array, jax.Array, _Beams]:
        """Which beam each of the next ones continues, i32[B, k], and by which token, i32[B, k].

        `length` i32[B] is that of the answers with this token; rows whose token is `given` bool[B] stay as they are.
        """
        batch, k, places = texts.shape
        vocabulary = logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1).reshape(batch, k, vocabulary)
        totals = (log_probs + beams.scores[:, :, None]).reshape(batch, -1)
        most = min(max(2, 1 + len(stops)) * k, totals.shape[1])
        values, where = jax.lax.top_k(totals, most)
        parents, tokens = where // vocabulary, (where % vocabulary).astype(texts.dtype)
        at_end, norm = index + 1 == places, length.astype(jnp.float32)[:, None] ** self.length_penalty
        stop = is_stop(tokens, stops)
        # Continuations come best first; only the first k may end, and the first k that do not end go on.
        ends = (stop | at_end) & (jnp.arange(most) < k) & (beams.open & ~given)[:, None]
        scores = jnp.concatenate([beams.finished_scores, jnp.where(ends, values / norm, -jnp.inf)], axis=1)
        ended = jnp.take_along_axis(texts, parents[:, :, None], axis=1).at[:, :, index].set(tokens)
        scores, kept = jax.lax.top_k(scores, k)
        finished = jnp.take_along_axis(jnp.concatenate([beams.finished, ended], axis=1), kept[:, :, None], axis=1)
        _, going = jax.lax.top_k(jnp.where(stop, -most, 0) - jnp.arange(most), k)
        own, alike = given[:, None], jnp.broadcast_to(jnp.arange(k), (batch, k))
        next_scores = jnp.where(own, beams.scores, jnp.take_along_axis(values, going, axis=1))
        improves = (next_scores[:, :1] / norm > scores[:, -1:])[:, 0] & ~at_end
        beams = _Beams(next_scores, finished, scores, beams.open & (given | improves))
        parents = jnp.where(own, alike, jnp.take_along_axis(parents, going, axis=1))
        tokens = jnp.where(own, texts[:, :, index], jnp.take_along_axis(tokens, going, axis=1))
        return parents, tokens, beams
