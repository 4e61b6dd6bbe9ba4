"""Attention against a plain reference, and its blocks against the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.models.attention import attention


def plain_attention(q, k, v, query_positions, key_positions, query_segments, key_segments, scale, cap, window):
    """The definition, one head and one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        distance = query_positions[b, t] - key_positions[b]
        seen = (query_segments[b, t] == key_segments[b]) & (key_segments[b] > 0) & (distance >= 0)
        seen &= distance < (window or 10**9)
        values = k[b, :, n // groups] @ q[b, t, n] * scale
        values = values if cap is None else cap * np.tanh(values / cap)
        weights = np.exp(values - values[seen].max()) * seen if seen.any() else np.full(len(seen), np.nan)
        out[b, t, n] = weights @ v[b, :, n // groups] / weights.sum()
    return out


def packed(rng, batch, time):
    """Positions and segments of rows packed from segments of random lengths, with padding at the end."""
    positions, segments = (np.zeros((batch, time), np.int32) for _ in range(2))
    for b in range(batch):
        start, segment = 0, 1
        while start < time - 5:
            stop = min(start + int(rng.integers(1, 60)), time - 5)
            positions[b, start:stop], segments[b, start:stop] = np.arange(stop - start), segment
            start, segment = stop, segment + 1
    return positions, segments


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_equals_its_definition(in_order, window, cap, rng):
    q, k, v = (rng.normal(size=(2, 150, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    positions, segments = packed(rng, 2, 150)
    ours = attention(
        jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), query_positions=positions, key_positions=positions,
        query_segments=segments, key_segments=segments, scale=0.5, logit_soft_cap=cap, window=window, in_order=in_order,
    )  # fmt: skip
    expected = plain_attention(q, k, v, positions, positions, segments, segments, 0.5, cap, window)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(ours)[real], expected[real], atol=2e-6)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("time", [1, 128, 129, 1100])
def test_blocks_of_queries_cover_every_length(time, rng):
    q, k, v = (jnp.asarray(rng.normal(size=(1, time, heads, 4)), jnp.float32) for heads in (2, 1, 1))
    positions = jnp.arange(time)[None]
    options = dict(
        query_positions=positions, key_positions=positions, query_segments=positions * 0 + 1,
        key_segments=positions * 0 + 1, scale=1.0, logit_soft_cap=50.0, window=40,
    )  # fmt: skip
    whole, blocks = (jax.jit(partial(attention, **options, in_order=in_order))(q, k, v) for in_order in (False, True))
    np.testing.assert_allclose(blocks, whole, atol=2e-6)


def test_gradients_of_blocks_equal_those_of_the_whole(rng):
    positions, segments = packed(rng, 2, 200)
    arrays = tuple(jnp.asarray(rng.normal(size=(2, 200, heads, 4)), jnp.float32) for heads in (2, 1, 1))

    def total(arrays, in_order):
        out = attention(
            *arrays, query_positions=positions, key_positions=positions, query_segments=segments, key_segments=segments,
            scale=1.0, logit_soft_cap=5.0, window=33, in_order=in_order,
        )  # fmt: skip
        return jnp.sum(out**2 * (segments > 0)[..., None, None])

    gradients = [jax.jit(jax.grad(total), static_argnums=1)(arrays, in_order) for in_order in (True, False)]
    for blocks, whole in zip(*gradients, strict=True):
        np.testing.assert_allclose(blocks, whole, atol=1e-5)
