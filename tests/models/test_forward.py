"""The forward pass against transformers' eager Gemma, and its own invariants."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from gemma_keras.models.architectures import ARCHITECTURES, get_architecture, to_hf_config
from gemma_keras.models.forward import build_backbone, forward, init_cache, initial_params, logits, variable_shapes
from gemma_keras.models.hf_names import hf_tensors
from tests.models.conftest import lively_params, lively_tensors, small, small_gemma1

SHAPES = {
    "grouped heads, window 8": small(),
    "all heads alike": small(num_key_value_heads=4, query_pre_attn_scalar=16),
    "one KV head, even number of layers": small(num_key_value_heads=1, num_layers=4, intermediate_dim=160),
    "27b: head_dim is not the query scale": small(query_pre_attn_scalar=9, num_query_heads=8, head_dim=8),
    "Gemma 1": small_gemma1(),
    "Gemma 1, all heads alike": small_gemma1(num_key_value_heads=4),
}


def hf_logits(architecture, tokens, **changes) -> np.ndarray:
    """Logits of transformers' model with `lively_tensors`."""
    config = {**to_hf_config(architecture, "float32"), **changes}
    config = transformers.AutoConfig.for_model(**config, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = {name: torch.tensor(value) for name, value in lively_tensors(architecture).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"])
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy()


def plain(tokens):
    """(tokens, positions, segment_ids) of unpacked rows."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jnp.asarray(tokens), positions, jnp.ones_like(positions)


def our_logits(architecture, *batch, dtype="float32") -> np.ndarray:
    backbone = build_backbone(architecture, dtype)
    run = jax.jit(lambda params, *batch: logits(backbone, params, forward(backbone, params, *batch)))
    return np.asarray(run(lively_params(architecture), *batch))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name, rng):
    architecture = SHAPES[name]
    tokens = rng.integers(0, architecture.vocabulary_size, (2, 40))
    expected = hf_logits(architecture, tokens)
    assert np.std(expected) > 1
    np.testing.assert_allclose(our_logits(architecture, *plain(tokens)), expected, rtol=0, atol=2e-4)
