"""Prompts read in pieces and tokens read one by one give the logits of one forward pass over the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.kv_cache import Context, KVCache, held_positions, init_cache
from gemma_keras.models.quantization import Int8
from gemma_keras.parallel.plan import ONE_DEVICE
from tests.models.conftest import lively_params, small, small_gemma1

LENGTHS = np.array([23, 14, 30])


def empty(architecture, rows, slots, dtype=jnp.float32, **options):
    return init_cache(architecture, rows, slots, dtype, ONE_DEVICE, **options)


@partial(jax.jit, static_argnames=("backbone", "slots"))
def read_piece(params, cache, tokens, start, count, at, slot_offset=0, *, backbone, slots):
    """Logits of the tokens [P, T] at `start` and after, and the cache with them; `slots` 0: nothing was read before."""
    places = jnp.arange(tokens.shape[1])
    positions = jnp.where(places < count[:, None], start[:, None] + places, -1)
    context = Context(length=start, cache=cache.take(at, slots, slot_offset) if slots else None)
    hidden, new_keys_values = forward(backbone, params, tokens, positions, context=context)
    return logits(backbone, params, hidden), cache.write(new_keys_values, start, count, at, slot_offset)


def read(architecture, params, tokens, pieces, *, slots=40, rows=5, dtype=jnp.float32):
    """Logits of rows that are read piece by piece into the rows 4, 0 and 2 of a cache."""
    backbone = build_backbone(architecture, "float32")
    cache, at = empty(architecture, rows, slots, dtype), np.array([4, 0, 2])
    values = []
    for first, last in pieces:
        start, count = np.minimum(first, LENGTHS), np.clip(LENGTHS - first, 0, last - first)
        found, cache = read_piece(
            params, cache, tokens[:, first:last], start, count, at, backbone=backbone, slots=slots if first else 0
        )
        values.append(found)
    return np.concatenate(values, axis=1), cache


@partial(jax.jit, static_argnames="backbone")
def run(params, tokens, positions, *, backbone, segments=None, context=None):
    """Logits, and with a context what the cache is written from."""
    result = forward(backbone, params, tokens, positions, segments, context=context)
    hidden, new_keys_values = result if context is not None else (result, None)
    return logits(backbone, params, hidden), new_keys_values


def full(architecture, params, tokens):
    """Logits of one forward pass without a cache."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    backbone = build_backbone(architecture, "float32")
    return np.asarray(run(params, tokens, positions, backbone=backbone, segments=np.ones_like(tokens))[0])


PIECES = {
    "at once": [(0, 30)],
    "two": [(0, 17), (17, 30)],
    "one by one": [(0, 9), *((place, place + 1) for place in range(9, 30))],
    "beyond the window": [(0, 25), (25, 27), (27, 30)],
}


@pytest.mark.parametrize(
    ("architecture", "pieces"), [*((small(), pieces) for pieces in PIECES), (small_gemma1(), "two")]
)
def test_pieces_equal_the_whole(architecture, pieces, rng):
    params, tokens = lively_params(architecture, gain=1), rng.integers(0, 97, (3, 30))
    expected = full(architecture, params, tokens)
    found, cache = read(architecture, params, tokens, PIECES[pieces])
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=1e-5, rtol=0)
    assert not np.asarray(cache.keys[1])[[1, 3]].any()  # the rows of others
    assert cache.slots(0) == min(40, architecture.layers[0].window or 40) and cache.slots(1) == 40


def test_eight_bits_are_close(rng):
    architecture = small()
    params, tokens = lively_params(architecture, gain=1), rng.integers(0, 97, (3, 30))
    exact, _ = read(architecture, params, tokens, PIECES["two"])
    rounded, cache = read(architecture, params, tokens, PIECES["two"], dtype="int8")
    assert isinstance(cache.keys[0], Int8)
    for row, length in enumerate(LENGTHS):
        difference = np.abs(exact[row, 17:length] - rounded[row, 17:length])
        assert length <= 17 or 0 < difference.mean() < 0.05 * np.abs(exact).mean()


def test_a_chunk_of_recent_tokens_is_seen(rng):
    """The cache, 5 tokens that are not in it yet, and the next one."""
    architecture = small()
    backbone, params = build_backbone(architecture, "float32"), lively_params(architecture, gain=1)
    tokens = rng.integers(0, 97, (3, 40))
    _, cache = read(architecture, params, tokens, PIECES["at once"])
    cache = cache.take(jnp.array([4, 0, 2]), 40)
    recent = empty(architecture, 3, 8, ring=False)
    told = [np.concatenate([tokens[row, :length], tokens[row, 30:36]]) for row, length in enumerate(LENGTHS)]
    for step in range(6):
        new = np.array([row[length + step] for row, length in zip(told, LENGTHS, strict=True)])
        context = Context(length=jnp.asarray(LENGTHS), cache=cache, recent=recent, step=jnp.int32(step))
        found, new_keys_values = run(
            params, new[:, None], (LENGTHS + step)[:, None], backbone=backbone, context=context
        )
        recent = jax.jit(KVCache.append)(recent, new_keys_values, np.int32(step))
    for row, length in enumerate(LENGTHS):
        expected = full(architecture, params, told[row][None])[0, length + 5]
        np.testing.assert_allclose(found[row, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_of_different_lengths_write_the_same_slot(dtype, rng):
    """Prompts that are read in pieces into rows with slot offsets, then 12 tokens, each in one slot of all rows."""
    architecture = small()
    backbone, params = build_backbone(architecture, "float32"), lively_params(architecture, gain=1)
    tokens = rng.integers(0, 97, (3, 42))
    clock, at = 101, np.array([4, 0, 2])
    slot_offset = jnp.asarray(clock - LENGTHS)
    cache = empty(architecture, 5, 44, dtype)
    for first, last in PIECES["beyond the window"]:
        start, count = np.minimum(first, LENGTHS), np.clip(LENGTHS - first, 0, last - first)
        _, cache = read_piece(
            params,
            cache,
            tokens[:, first:last],
            start,
            count,
            at,
            slot_offset,
            backbone=backbone,
            slots=44 if first else 0,
        )
    cache = jax.tree.map(lambda x: x[at], cache)
    told = [np.concatenate([tokens[row, :length], tokens[row, 30:42]]) for row, length in enumerate(LENGTHS)]
    expected = [full(architecture, params, row[None])[0] for row in told]
    for step in range(12):
        new = np.array([row[length + step] for row, length in zip(told, LENGTHS, strict=True)])
        length, slot = jnp.asarray(LENGTHS + step), jnp.int32(clock + step)
        context = Context(length=length, cache=cache, slot_offset=slot_offset, slot=slot)
        found, new_keys_values = run(params, new[:, None], length[:, None], backbone=backbone, context=context)
        cache = jax.jit(KVCache.append)(cache, new_keys_values, slot)
        for row, length in enumerate(LENGTHS):
            difference = np.abs(found[row, 0] - expected[row][length + step])
            if dtype == "float32":
                assert difference.max() < 1e-5
            else:
                assert difference.mean() < 0.05 * np.abs(expected[row]).mean()


def test_what_is_taken_is_turned_back(rng):
    stored = jnp.asarray(rng.normal(size=(2, 1, 5, 2)), jnp.float32)
    cache, slot_offset = KVCache((stored,), (stored,)), jnp.array([3, -4])
    taken = cache.take(jnp.array([1, 0]), 4, slot_offset).keys[0]
    np.testing.assert_array_equal(taken[0, 0], stored[1, 0][np.array([3, 4, 0, 1])])
    np.testing.assert_array_equal(taken[1, 0], stored[0, 0][np.array([1, 2, 3, 4])])
    whole = cache.take(jnp.array([1, 0]), 9, slot_offset)
    written = cache.write(
        ((whole.keys[0], whole.keys[0]),), jnp.zeros(2, int), jnp.full(2, 5), jnp.array([1, 0]), slot_offset
    )
    np.testing.assert_array_equal(written.keys[0], stored)


def test_candidates_do_not_see_each_other(rng):
    architecture = small()
    backbone, params = build_backbone(architecture, "float32"), lively_params(architecture, gain=1)
    tokens = rng.integers(0, 97, (3, 30))
    _, cache = read(architecture, params, tokens, PIECES["at once"])
    context = Context(length=jnp.asarray(LENGTHS), cache=cache.take(jnp.array([4, 0, 2]), 40), alone=True)
    candidates = rng.integers(0, 97, (3, 4))
    found, _ = run(params, candidates, np.repeat(LENGTHS[:, None], 4, axis=1), backbone=backbone, context=context)
    for row, length in enumerate(LENGTHS):
        ends = np.stack([np.append(tokens[row, :length], candidate) for candidate in candidates[row]])
        np.testing.assert_allclose(found[row], full(architecture, params, ends)[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("slots", [1, 7, 50])
def test_a_slot_holds_the_last_position_that_fell_on_it(slots):
    for length in (0, 1, 6, 7, 8, 23):
        expected = np.full(slots, -1)
        expected[np.arange(length) % slots] = np.arange(length)  # the last one wins
        found = np.asarray(held_positions(jnp.array([length]), slots)[0])
        np.testing.assert_array_equal(np.where(found < 0, -1, found), expected)
        turned = np.asarray(held_positions(jnp.array([length]), slots, jnp.array([3 * slots + 2]))[0])
        np.testing.assert_array_equal(turned, np.roll(found, 2))


def test_writing_beyond_a_ring_keeps_the_last_tokens(rng):
    cache = KVCache((jnp.zeros((2, 1, 4, 2)),), (jnp.zeros((2, 1, 4, 2)),))
    new = jnp.asarray(rng.normal(size=(2, 1, 9, 2)), jnp.float32)
    written = cache.write(((new, -new),), jnp.array([0, 3]), jnp.array([9, 2]))
    order = [8, 5, 6, 7]  # positions 5 to 8 at slots 1, 2, 3, 0
    np.testing.assert_array_equal(written.keys[0][0, 0], new[0, 0][np.array(order)])
    np.testing.assert_array_equal(written.values[0][1, 0], [-new[1, 0, 1], [0, 0], [0, 0], -new[1, 0, 0]])


def test_slots_without_a_token_are_emptied(rng):
    """NaN that an earlier sequence left would outlive it: times a weight of 0 it is NaN."""
    broken = jnp.full((3, 1, 6, 2), jnp.nan)
    new = jnp.asarray(rng.normal(size=(2, 1, 4, 2)), jnp.float32)
    count, rows, slot_offset = jnp.array([3, 0]), jnp.array([2, 0]), jnp.array([5, 0])
    written = KVCache((broken,), (broken,)).write(((new, -new),), jnp.zeros(2, int), count, rows, slot_offset)
    expected = np.full(broken.shape, np.nan)
    expected[[2, 0]] = 0
    expected[2, 0, [5, 0, 1]] = new[0, 0, :3]
    np.testing.assert_array_equal(written.keys[0], expected)
    np.testing.assert_array_equal(written.values[0], -expected)
