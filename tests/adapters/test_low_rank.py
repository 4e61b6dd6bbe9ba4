"""The adapters' product against a plain reference with the same mask, and the mask by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.adapters.low_rank_base import keep_mask, low_rank_product

BATCH, TIME, D_IN, RANK, D_OUT, RATE = 2, 5, 24, 4, 12, 0.25
SEED = jnp.array([123_456_789, 3_000_000_000], jnp.uint32)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = ((BATCH, TIME, D_IN), (RANK, D_IN), (D_OUT, RANK))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def plain(x, down, up, mask):
    """Inverted dropout and two products, differentiated by JAX."""
    return jnp.where(mask, x / (1 - RATE), 0.0) @ down.T @ up.T


def test_product_and_gradients_equal_plain_dropout(arrays):
    mask = keep_mask(arrays[0].shape, SEED, RATE)
    assert 0 < int(mask.sum()) < mask.size
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, TIME, D_OUT)), jnp.float32)
    product, pull = jax.vjp(lambda *a: low_rank_product(*a, SEED, RATE), *arrays)
    expected, pull_expected = jax.vjp(lambda *a: plain(*a, mask), *arrays)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("seed", "rate"), [(None, RATE), (SEED, 0.0)])
def test_without_dropout_it_is_the_product(arrays, seed, rate):
    x, down, up = arrays
    np.testing.assert_allclose(low_rank_product(*arrays, seed, rate), x @ down.T @ up.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_share_of_dropped_entries(rate):
    shape = (8, 128, 256)
    mask = np.asarray(keep_mask(shape, SEED, rate))
    deviation = np.sqrt(rate * (1 - rate))
    assert abs((~mask).mean() - rate) < 5 * deviation / np.sqrt(mask.size)
    for axis in range(3):  # along no axis do neighbours know of each other
        first, second = np.delete(mask, 0, axis), np.delete(mask, -1, axis)
        agreement = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(agreement) < 5 / np.sqrt(first.size)


def test_the_mask_depends_on_both_words_of_the_seed():
    shape = (2, 64, 64)
    base = np.asarray(keep_mask(shape, SEED, 0.5))
    np.testing.assert_array_equal(keep_mask(shape, SEED, 0.5), base)
    for other in (SEED.at[0].add(1), SEED.at[1].add(1)):
        changed = np.asarray(keep_mask(shape, other, 0.5))
        assert abs(np.mean(changed != base) - 0.5) < 5 * 0.5 / np.sqrt(base.size)


def test_the_mask_is_that_of_the_place_in_the_whole_array():
    """By the formula written out in numpy from the number of each entry, whatever device holds it."""
    shape = (3, 7, 10)
    place = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    first, second = np.asarray(SEED)
    bits = (place ^ first) * np.uint32(0x9E3779B1)
    bits = ((bits ^ (bits >> np.uint32(16))) ^ second) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    expected = (bits ^ (bits >> np.uint32(16))) >= np.uint32(RATE * 2**32)
    np.testing.assert_array_equal(keep_mask(shape, SEED, RATE), expected)
    # More rows leave the mask of the first ones as it is.
    np.testing.assert_array_equal(keep_mask((5, *shape[1:]), SEED, RATE)[:3], expected)
