"""Random models as plain `GemmaCausalLM`s, and what they answer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import GemmaBackbone, GemmaCausalLM

from gemma_keras.models.architecture import Architecture
from tests.inference.models import varied_params


def build_causal_lm(shape: Architecture) -> GemmaCausalLM:
    """Of Gemma 2, with the weights of `varied_params`."""
    backbone = GemmaBackbone(
        vocabulary_size=shape.vocabulary_size, num_layers=shape.num_layers, num_query_heads=shape.num_query_heads,
        num_key_value_heads=shape.num_key_value_heads, hidden_dim=shape.hidden_dim,
        intermediate_dim=2 * shape.intermediate_dim, head_dim=shape.head_dim, use_post_ffw_norm=True,
        use_post_attention_norm=True, attention_logit_soft_cap=shape.attention_logit_soft_cap,
        final_logit_soft_cap=shape.final_logit_soft_cap, use_sliding_window_attention=True,
        sliding_window_size=shape.sliding_window, dtype="float32",
    )  # fmt: skip
    params = varied_params(shape)
    for weight in backbone.weights:
        weight.assign(params[weight.path])
    return GemmaCausalLM(backbone, preprocessor=None)


def answers_of(
    causal_lm: GemmaCausalLM, prompts: list[list[int]], places: int, stop_token_ids: tuple[int, ...] | None = None
) -> list[list[int]]:
    """What `generate` answers in rows of `places` tokens, up to and with the stop token."""
    tokens, mask = np.zeros((len(prompts), places), np.int32), np.zeros((len(prompts), places), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    out = causal_lm.generate({"token_ids": tokens, "padding_mask": mask}, stop_token_ids=stop_token_ids)
    answers = []
    for row, prompt in enumerate(prompts):
        assert out["token_ids"][row, : len(prompt)].tolist() == prompt
        own = out["token_ids"][row, len(prompt) :]
        answers.append(own[np.asarray(out["padding_mask"][row, len(prompt) :], bool)].tolist())
    return answers


def uncached_states(causal_lm: GemmaCausalLM, places: int) -> Callable[[list[int]], tuple[np.ndarray, np.ndarray]]:
    """A function from at most `places` tokens to their hidden states f32[T, D] and the logits f32[V] after the last, by a
    forward pass without a cache."""
    head = causal_lm.backbone.token_embedding

    @jax.jit
    def run(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = causal_lm.backbone({"token_ids": tokens, "padding_mask": jnp.ones(tokens.shape, bool)})
        return hidden[0], head(hidden, reverse=True)[0]

    def call(tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((1, places), np.int32)
        padded[0, : len(tokens)] = tokens
        hidden, logits = run(padded)
        return np.asarray(hidden)[: len(tokens)], np.asarray(logits)[len(tokens) - 1]

    return call


def uncached_logits(causal_lm: GemmaCausalLM, places: int) -> Callable[[list[int]], np.ndarray]:
    """A function from at most `places` tokens to the logits f32[V] after the last."""
    states = uncached_states(causal_lm, places)
    return lambda tokens: states(tokens)[1]
