"""Small models with weights at which every part of Gemma 2 shows (soft caps, swapped norms, windows)."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families import gemma3
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.hf_names import hf_tensors


def small(**changes) -> Architecture:
    """A Gemma 2 of 3 layers, grouped heads, vocabulary 97 and a window of 8."""
    sizes = dict(num_layers=3, hidden_dim=64, intermediate_dim=96, head_dim=16, vocabulary_size=97, sliding_window=8)
    return get_architecture("gemma2_tiny").replace(**{**sizes, **changes})


def small_gemma1(**changes) -> Architecture:
    """A Gemma 1 of 2 layers with one KV head."""
    sizes = dict(
        num_layers=2, hidden_dim=64, intermediate_dim=96, num_query_heads=4, num_key_value_heads=1, head_dim=16
    )
    return get_architecture("gemma_2b").replace(
        **{**sizes, "query_pre_attn_scalar": 16, "vocabulary_size": 97, **changes}
    )


def small_gemma3(**changes) -> Architecture:
    """A Gemma 3 of 7 layers, the sixth global with positions divided by 8, grouped heads, vocabulary 97 and a window of 8."""
    sizes = dict(
        name="small", num_layers=7, hidden_dim=64, intermediate_dim=96, num_query_heads=4, num_key_value_heads=2,
        head_dim=16, query_pre_attn_scalar=16, vocabulary_size=97, sliding_window=8, rope_scaling=8.0,
    )  # fmt: skip
    return gemma3.shape(**{**sizes, **changes})


def lively_tensors(architecture: Architecture, gain: float = 3.0) -> dict[str, np.ndarray]:
    """HF tensors: norm scales N(0, 0.4), matrices N(0, gain^2/fan_in); at a gain of 3 logits reach both soft caps."""
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor in hf_tensors(architecture):
        deviation = 0.4 if len(tensor.hf_shape) == 1 else gain / np.sqrt(tensor.hf_shape[1])
        tensors[tensor.name] = rng.normal(0, deviation, tensor.hf_shape).astype(np.float32)
    return tensors


def lively_params(architecture: Architecture, gain: float = 3.0) -> dict[str, jnp.ndarray]:
    """The same weights as `lively_tensors` under Keras paths."""
    tensors = lively_tensors(architecture, gain)
    return {tensor.path: jnp.asarray(tensor.from_hf(tensors[tensor.name])) for tensor in hf_tensors(architecture)}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
