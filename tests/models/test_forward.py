"""The forward pass against transformers' eager Gemma, and its own invariants."""

import resource
from functools import partial

import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
import pytest
import torch
import transformers

from gemma_keras.models.families.registry import ARCHITECTURES, get_architecture, to_hf_config
from gemma_keras.models.forward import (
    build_backbone,
    forward,
    initial_params,
    logits,
    rope_angles,
    variable_shapes,
)
from gemma_keras.models.hf_names import hf_tensors
from tests.models.conftest import lively_params, lively_tensors, small, small_gemma1, small_gemma3

SHAPES = {
    "grouped heads, window 8": small(),
    "all heads alike": small(num_key_value_heads=4, query_pre_attn_scalar=16),
    "one KV head, even number of layers": small(num_key_value_heads=1, num_layers=4, intermediate_dim=160),
    "27b: head_dim is not the query scale": small(query_pre_attn_scalar=9, num_query_heads=8, head_dim=8),
    "Gemma 1": small_gemma1(),
    "Gemma 1, all heads alike": small_gemma1(num_key_value_heads=4),
    "Gemma 3 from 4b on": small_gemma3(),
    "Gemma 3 270m, one KV head": small_gemma3(num_key_value_heads=1, rope_scaling=1.0),
    "Gemma 3 27b: head_dim is not the query scale": small_gemma3(
        num_query_heads=8, head_dim=8, query_pre_attn_scalar=21
    ),
}
GEMMA3_CHANGES = {
    "no norms": {},  # over queries and keys
    "no scaling of RoPE": {"rope_scaling": 1.0},
    "base of global layers": {"rope_base": 10_000.0},
    "base of local layers": {"local_rope_base": 1_000_000.0},
    "window": {"sliding_window": 9},
    "pattern": {"period": 5},
    "query scale": {"query_pre_attn_scalar": 21},
}


def hf_logits(architecture, tokens) -> np.ndarray:
    """Logits of transformers' model with `lively_tensors`."""
    config = transformers.AutoConfig.for_model(**to_hf_config(architecture, "float32"))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    state = {name: torch.tensor(value) for name, value in lively_tensors(architecture).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"])
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy()


def plain(tokens):
    """(tokens, positions, segment_ids) of unpacked rows."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jnp.asarray(tokens), positions, jnp.ones_like(positions)


def our_logits(architecture, *batch, params=None, dtype="float32") -> np.ndarray:
    backbone = build_backbone(architecture, dtype)
    run = jax.jit(lambda params, *batch: logits(backbone, params, forward(backbone, params, *batch)))
    return np.asarray(run(params or lively_params(architecture), *batch))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name, rng):
    architecture = SHAPES[name]
    tokens = rng.integers(0, architecture.vocabulary_size, (2, 40))
    expected = hf_logits(architecture, tokens)
    assert np.std(expected) > 1
    np.testing.assert_allclose(our_logits(architecture, *plain(tokens)), expected, rtol=0, atol=2e-4)


def test_logits_equal_transformers_over_several_blocks_of_queries(rng):
    architecture = small(sliding_window=50)
    tokens = rng.integers(0, architecture.vocabulary_size, (1, 300))
    expected = hf_logits(architecture, tokens)
    np.testing.assert_allclose(our_logits(architecture, *plain(tokens)), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_logit_soft_cap": None},
        {"final_logit_soft_cap": None},
        {"sliding_window": None},
        {"sliding_window": 9},
        {"query_pre_attn_scalar": 16},
    ],
    ids=str,
)
def test_every_part_of_gemma2_shows_in_the_weights_of_the_parity_tests(change, rng):
    architecture = small()
    batch = plain(rng.integers(0, 97, (2, 40)))
    changed = our_logits(architecture.replace(**change), *batch)
    assert np.abs(changed - our_logits(architecture, *batch)).max() > 1e-2


@pytest.mark.parametrize("name", GEMMA3_CHANGES)
def test_every_part_of_gemma3_shows_in_the_weights_of_the_parity_tests(name, rng):
    changed = small_gemma3().replace(qk_norms=False) if name == "no norms" else small_gemma3(**GEMMA3_CHANGES[name])
    batch, params = plain(rng.integers(0, 97, (2, 40))), lively_params(small_gemma3())
    difference = our_logits(changed, *batch, params=params) - our_logits(small_gemma3(), *batch, params=params)
    assert np.abs(difference).max() > 1e-2


def test_swapped_norms_show(rng):
    architecture = small()
    batch = plain(rng.integers(0, 97, (2, 40)))
    params = lively_params(architecture)
    swapped = dict(params)
    for layer in range(architecture.num_layers):
        first, second = (f"decoder_block_{layer}/{name}/scale" for name in ("post_attention_norm", "pre_ffw_norm"))
        swapped[first], swapped[second] = params[second], params[first]
    difference = our_logits(architecture, *batch, params=swapped) - our_logits(architecture, *batch)
    assert np.abs(difference).max() > 1e-2


@pytest.mark.long
def test_hidden_states_equal_keras_hubs_own_forward(rng):
    """On CPU keras-hub's attention is right where the query scale is head_dim; it fixes the layers' order and layouts."""
    architecture = small(query_pre_attn_scalar=16)
    params = lively_params(architecture)
    theirs = keras_hub.models.GemmaBackbone(
        vocabulary_size=97, num_layers=3, num_query_heads=4, num_key_value_heads=2, hidden_dim=64, intermediate_dim=192,
        head_dim=16, use_post_ffw_norm=True, use_post_attention_norm=True, attention_logit_soft_cap=50.0,
        use_sliding_window_attention=True, sliding_window_size=8, dtype="float32",
    )  # fmt: skip
    for weight in theirs.weights:
        weight.assign(params[weight.path])
    tokens, positions, segments = plain(rng.integers(0, 97, (2, 24)))
    ours = forward(build_backbone(architecture, "float32"), params, tokens, positions, segments)
    np.testing.assert_allclose(ours, theirs({"token_ids": tokens, "padding_mask": segments}), atol=1e-4)


def test_packed_rows_equal_unpacked_rows(rng):
    architecture = small()
    rows = [rng.integers(0, 97, length) for length in (30, 9, 21)]
    tokens, positions, segments = (np.zeros((1, 64), np.int32) for _ in range(3))
    start = 0
    for segment, row in enumerate(rows, start=1):
        place = np.s_[0, start : start + len(row)]
        tokens[place], positions[place], segments[place] = row, np.arange(len(row)), segment
        start += len(row)
    params = lively_params(architecture, gain=1)  # at a gain of 3 rounding grows to 1e-5 by itself
    packed = our_logits(architecture, tokens, positions, segments, params=params)
    start = 0
    for row in rows:
        alone = our_logits(architecture, *plain(row[None]), params=params)
        np.testing.assert_allclose(packed[0, start : start + len(row)], alone[0], rtol=0, atol=1e-5)
        start += len(row)
    assert np.isfinite(packed).all()


def test_gradients_of_padded_rows_are_finite(rng):
    architecture = small()
    backbone = build_backbone(architecture, "float32")
    tokens, positions, segments = plain(rng.integers(0, 97, (2, 12)))
    segments = segments.at[0, 5:].set(0).at[1].set(0)

    def loss(params):
        hidden = forward(backbone, params, tokens, positions, segments)
        return jnp.sum(hidden**2 * (segments > 0)[..., None])

    gradients = jax.jit(jax.grad(loss))(lively_params(architecture))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_bfloat16_stays_close_to_float32(dtype, rng):
    architecture = small(attention_logit_soft_cap=None, final_logit_soft_cap=None)
    backbone = build_backbone(architecture, dtype)
    params = initial_params(backbone, 0)
    wide = {path: value.astype(jnp.float32) for path, value in params.items()}
    batch = plain(rng.integers(0, 97, (2, 40)))
    hidden = jax.jit(partial(forward, backbone))(params, *batch)
    assert hidden.dtype == jnp.bfloat16
    assert {value.dtype.name for value in params.values()} == {"float32" if "mixed" in dtype else "bfloat16"}
    exact = jax.jit(partial(forward, build_backbone(architecture, "float32")))(wide, *batch)
    assert np.abs(hidden.astype(jnp.float32) - exact).mean() < 0.02


def test_rope_angles_are_exact_at_large_positions():
    cos, sin = rope_angles(jnp.array([[8191, 65_537]]), 64)
    exact = np.array([8191, 65_537])[None, :, None, None] / 10_000 ** (np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(cos, np.cos(exact), atol=5e-3)
    np.testing.assert_allclose(sin, np.sin(exact), atol=5e-3)
    np.testing.assert_allclose(cos[:, :1], np.cos(exact[:, :1]), atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_backbones_take_no_memory_and_their_weights_are_those_of_the_table(name):
    architecture = get_architecture(name)
    bytes_before = sum(array.nbytes for array in jax.live_arrays())
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    backbone = build_backbone(architecture, "bfloat16")
    with keras.StatelessScope():  # the end of a scope is where Keras makes up for deferred initialisations
        pass
    keras.layers.Dense(1).build((None, 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before < 200 * 1024
    assert sum(array.nbytes for array in jax.live_arrays()) - bytes_before < 1024
    shapes = variable_shapes(backbone)
    assert len(shapes) == len(backbone.variables)
    assert set(shapes) == {tensor.path for tensor in hf_tensors(architecture)}
    assert sum(np.prod(spec.shape) for spec in shapes.values()) == architecture.parameter_count


def test_a_missing_weight_is_named(rng):
    architecture = small()
    params = lively_params(architecture)
    del params["decoder_block_1/ffw_linear/kernel"]
    with pytest.raises(KeyError, match="decoder_block_1/ffw_linear/kernel"):
        our_logits(architecture, *plain(rng.integers(0, 97, (1, 4))), params=params)


def test_replaced_projections_are_used_and_told_of_training(rng):
    architecture = small()
    backbone, params = build_backbone(architecture, "float32"), lively_params(architecture)
    batch = plain(rng.integers(0, 97, (1, 6)))
    seen = []

    class Wrapper(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.built = True

        def call(self, x, training=False):
            seen.append(training)
            return 2 * self.inner(x)

    before = forward(backbone, params, *batch)
    attention = backbone.transformer_layers[1].attention
    attention._tracker.unlock()
    attention.query_dense = Wrapper(attention.query_dense)
    doubled = {**params, "decoder_block_1/attention/query/kernel": 2 * params["decoder_block_1/attention/query/kernel"]}
    after = forward(backbone, params, *batch, training=True)
    assert seen == [True]
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, forward(build_backbone(architecture, "float32"), doubled, *batch), atol=1e-5)


def test_initial_params():
    architecture = get_architecture("gemma2_tiny")
    backbone = build_backbone(architecture, "float32")
    params, again, other = initial_params(backbone, 0), initial_params(backbone, 0), initial_params(backbone, 1)
    assert all((params[path] == again[path]).all() for path in params)
    query = "decoder_block_1/attention/query/kernel"
    assert not (params[query] == other[query]).any()
    deeper = initial_params(build_backbone(architecture.replace(num_layers=6), "float32"), 0)
    assert all((params[path] == deeper[path]).all() for path in params)
    for path, value in params.items():
        if path.endswith("/scale"):
            assert not value.any()
    for path, fan_in in {
        query: 128,
        "decoder_block_0/attention/attention_output/kernel": 128,
        "decoder_block_0/ffw_gating/kernel": 128,
        "decoder_block_0/ffw_linear/kernel": 384,
        "token_embedding/embeddings": 128,
    }.items():
        assert float(jnp.std(params[path])) == pytest.approx(fan_in**-0.5, rel=0.05)


def test_initial_loss_is_that_of_a_uniform_guess(rng):
    architecture = get_architecture("gemma2_tiny")
    params = initial_params(build_backbone(architecture, "float32"), 0)
    values = our_logits(architecture, *plain(rng.integers(0, 2560, (2, 64))), params=params)
    targets = rng.integers(0, 2560, (2, 64, 1))
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(values)), targets, -1).mean()
    assert nll == pytest.approx(np.log(2560), abs=1.0)
