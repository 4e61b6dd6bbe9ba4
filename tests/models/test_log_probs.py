"""Chunked log-probabilities against the whole matrix of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.models.log_probs import MIN_CHUNK, default_chunk, token_log_probs, token_scores


def naive(hidden, embeddings, targets, cap):
    values = jnp.einsum("btd,vd->btv", hidden, embeddings)
    values = values if cap is None else cap * jnp.tanh(values / cap)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(values), targets[..., None], -1)[..., 0]
    return log_probs, jnp.argmax(values, -1) == targets


@pytest.fixture
def case(rng):
    hidden = jnp.asarray(rng.normal(size=(3, 7, 16)), jnp.float32)
    embeddings = jnp.asarray(rng.normal(size=(29, 16)), jnp.float32)
    return hidden, embeddings, jnp.asarray(rng.integers(0, 29, (3, 7)))


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("chunk", [None, 1, 4, 21, 100])
def test_scores_and_gradients_equal_the_naive_way(case, cap, chunk):
    hidden, embeddings, targets = case
    log_probs, is_argmax = token_scores(hidden, embeddings, targets, final_logit_soft_cap=cap, chunk=chunk)
    expected, expected_argmax = naive(hidden, embeddings, targets, cap)
    np.testing.assert_allclose(log_probs, expected, atol=2e-6)
    np.testing.assert_array_equal(is_argmax, expected_argmax)
    weights = jnp.linspace(0, 1, 21).reshape(3, 7)
    ours = jax.grad(
        lambda h, e: jnp.sum(weights * token_log_probs(h, e, targets, final_logit_soft_cap=cap, chunk=chunk)), (0, 1)
    )(hidden, embeddings)
    theirs = jax.grad(lambda h, e: jnp.sum(weights * naive(h, e, targets, cap)[0]), (0, 1))(hidden, embeddings)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_bfloat16_hidden_gives_float32_scores(case):
    hidden, embeddings, targets = case
    hidden, embeddings = hidden.astype(jnp.bfloat16), embeddings.astype(jnp.bfloat16)
    log_probs = token_log_probs(hidden, embeddings, targets, final_logit_soft_cap=30.0, chunk=4)
    assert log_probs.dtype == jnp.float32
    wide = naive(hidden.astype(jnp.float32), embeddings.astype(jnp.float32), targets, 30.0)[0]
    np.testing.assert_allclose(log_probs, wide, atol=1e-4)


def test_default_chunk_shrinks_with_the_vocabulary():
    assert default_chunk(4096) > default_chunk(16_384) >= default_chunk(256_000) >= MIN_CHUNK


def test_no_array_of_all_logits_is_made(case):
    hidden, embeddings, targets = case

    def loss(hidden, embeddings):
        return jnp.sum(token_log_probs(hidden, embeddings, targets, final_logit_soft_cap=30.0, chunk=3))

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, embeddings).compile().as_text()
    assert "f32[3,29]" in compiled
    assert not any(shape in compiled for shape in ("f32[21,29]", "f32[3,7,29]", "f32[7,3,29]"))
