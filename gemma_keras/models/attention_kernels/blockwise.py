"""Attention of packed rows in blocks, by XLA alone: flash attention's forward and backward pass for any device.

The forward pass keeps query, key, value, output and log-sum-exp; the backward pass computes the weights of a block again.
Short rows are unrolled: every block of queries meets all keys that any of them may see. Long rows run one loop over the
pairs of query and key blocks of which some may see each other, so that only one pair's logits exist at a time.

Axes: B batch, T query time, S key time, N query heads, K KV heads, G = N/K query heads per KV head, H head dim, C tokens in
a block, I blocks, M = G·C rows of one matrix product, P pairs of blocks.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from gemma_keras.parallel.plan import RESIDUALS

MASKED = -1e30  # finite, so that a row without a single visible key never gives NaN
LOOP_FROM, LOOP_BLOCK = 2048, 512  # rows of this length run a loop over pairs of blocks of so many tokens
SHORT_BLOCK, SHORT_BLOCKS = 128, 8  # least tokens in an unrolled block, most unrolled blocks

Arrays = tuple[jax.Array, ...]


def blockwise_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    logit_soft_cap: float | None,
    window: int | None,
) -> jax.Array:
    """Attention output [B, T, N, H] of `query` [B, T, N, H] to `key`, `value` [B, T, K, H] under i32[B, T] segments.

    The same numbers as the reference of `packed_attention`, which says what is seen by what.
    """
    time = query.shape[1]
    missing = -time % _block_size(time)
    if missing:
        query, key, value = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (query, key, value))
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, missing)))
    return _attend(query, key, value, segment_ids, scale, logit_soft_cap, window)[:, :time]


def _block_size(time: int) -> int:
    """Tokens in a block, for rows of `time` tokens before or after padding.

    >>> _block_size(512), _block_size(150), _block_size(1100), _block_size(8192)
    (128, 75, 138, 512)
    """
    if time >= LOOP_FROM:
        return LOOP_BLOCK
    return -(-time // min(SHORT_BLOCKS, -(-time // SHORT_BLOCK)))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, scale: float, cap: float | None, window: int | None
) -> jax.Array:
    """`blockwise_attention` of T = I·C tokens."""
    return _forward(q, k, v, segments, scale, cap, window)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, scale: float, cap: float | None, window: int | None
) -> tuple[jax.Array, Arrays]:
    run = _looped_forward if q.shape[1] >= LOOP_FROM else _unrolled_forward
    rows, (keys, values) = _rows(q, k.shape[2]), (x.transpose(0, 2, 1, 3) for x in (k, v))
    outputs, log_totals = run(rows, keys, values, segments, partial(_block_forward, scale=scale, cap=cap), window)
    output, log_total = _tokens(outputs, q.shape).astype(v.dtype), jnp.stack(list(log_totals))
    output, log_total = checkpoint_name(output, RESIDUALS), checkpoint_name(log_total, RESIDUALS)
    return output, (q, k, v, segments, output, log_total)


def _backward(
    scale: float, cap: float | None, window: int | None, saved: Arrays, upstream: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments, output, log_total = saved
    run = _looped_backward if q.shape[1] >= LOOP_FROM else _unrolled_backward
    rows = [_rows(x, k.shape[2]) for x in (q, upstream, output)] + [list(log_total)]
    keys, values = (x.transpose(0, 2, 1, 3) for x in (k, v))
    dqs, dk, dv = run(rows, keys, values, segments, partial(_block_backward, scale=scale, cap=cap), window)
    dk, dv = (x.transpose(0, 2, 1, 3) for x in (dk, dv))
    return _tokens(dqs, q.shape).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _rows(x: jax.Array, key_heads: int) -> list[jax.Array]:
    """I blocks [B, K, M, H] of `x` [B, T, N, H]; a block's slice and transposition are one copy."""
    batch, time, _, head_dim = x.shape
    size = _block_size(time)
    blocks = (x[:, start : start + size] for start in range(0, time, size))
    grouped = (y.reshape(batch, size, key_heads, -1, head_dim).transpose(0, 2, 3, 1, 4) for y in blocks)
    return [y.reshape(batch, key_heads, -1, head_dim) for y in grouped]


def _tokens(blocks: Sequence[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """[B, T, N, H] of I blocks [B, K, M, H], undoing `_rows`."""
    batch, time, heads, head_dim = shape
    size, key_heads = time // len(blocks), blocks[0].shape[1]
    grouped = (y.reshape(batch, key_heads, -1, size, head_dim).transpose(0, 3, 1, 2, 4) for y in blocks)
    return jnp.concatenate([y.reshape(batch, size, heads, head_dim) for y in grouped], axis=1)


# The mathematics of one block: C queries of every head, as M rows, against S keys.


def _logits(q: jax.Array, k: jax.Array, scale: float, cap: float | None) -> tuple[jax.Array, jax.Array | None]:
    """(logits f32[B, K, M, S] before the mask, tanh of the soft cap for its derivative)."""
    logits = jnp.einsum("bkmh,bksh->bkms", q, k, preferred_element_type=jnp.float32)
    if cap is None:
        return logits * scale, None
    bent = jnp.tanh(logits * (scale / cap))
    return bent * cap, bent


def _masked(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """`logits` [B, K, M, S] where `mask` [B, C, S] allows."""
    batch, key_heads, _, keys = logits.shape
    grouped = logits.reshape(batch, key_heads, -1, mask.shape[1], keys)
    return jnp.where(mask[:, None, None], grouped, MASKED).reshape(logits.shape)


def _block_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float, cap: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the softmax of `q` [B, K, M, H]: maximum and total f32[B, K, M], weighted sum of values f32[B, K, M, H]."""
    logits = _masked(_logits(q, k, scale, cap)[0], mask)
    highest = jnp.maximum(logits.max(axis=-1), MASKED / 2)  # a row that sees nothing gets weights of 0, not of 1
    weights = jnp.exp(logits - highest[..., None])
    sums = jnp.einsum("bkms,bksh->bkmh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return highest, weights.sum(axis=-1), sums


def _block_backward(
    rows: Arrays, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float, cap: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This block's part of the gradients: dq f32[B, K, M, H], dk and dv f32[B, K, S, H].

    `rows`: query, upstream gradient and output [B, K, M, H], log-sum-exp f32[B, K, M].
    """
    q, upstream, output, log_total = rows
    inner = jnp.sum(upstream.astype(jnp.float32) * output.astype(jnp.float32), axis=-1)
    logits, bent = _logits(q, k, scale, cap)
    weights = jnp.exp(_masked(logits, mask) - jnp.maximum(log_total, MASKED / 4)[..., None])
    dv = jnp.einsum("bkms,bkmh->bksh", weights.astype(v.dtype), upstream, preferred_element_type=jnp.float32)
    dweights = jnp.einsum("bkmh,bksh->bkms", upstream, v, preferred_element_type=jnp.float32)
    slope = scale if bent is None else scale * (1 - bent * bent)
    dlogits = (weights * (dweights - inner[..., None]) * slope).astype(q.dtype)
    dq = jnp.einsum("bkms,bksh->bkmh", dlogits, k, preferred_element_type=jnp.float32)
    dk = jnp.einsum("bkms,bkmh->bksh", dlogits, q, preferred_element_type=jnp.float32)
    return dq, dk, dv


def _finish(highest: jax.Array, total: jax.Array, sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(output, log-sum-exp). A row that sees nothing has a total of 0: its output is 0, and so are its gradients."""
    total = jnp.where(total > 0, total, 1)
    return sums / total[..., None], highest + jnp.log(total)


def _mask(segments: jax.Array, key_segments: jax.Array, distance: jax.Array, window: int | None) -> jax.Array:
    """bool[B, C, S] of segments [B, C], [B, S] and the distance of slots [C, S]."""
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    same = (segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] != 0)
    return same & near


# Short rows: all blocks one after another in the program.


def _unrolled_blocks(blocks: int, segments: jax.Array, window: int | None) -> Iterator[tuple[int, slice, jax.Array]]:
    """(block of queries, the keys that any of them may see, mask)."""
    size = segments.shape[1] // blocks
    for index in range(blocks):
        start, stop = index * size, (index + 1) * size
        keys = slice(0 if window is None else max(0, start - window + 1), stop)
        distance = jnp.arange(start, stop)[:, None] - jnp.arange(keys.start, stop)
        yield index, keys, _mask(segments[:, start:stop], segments[:, keys], distance, window)


def _unrolled_forward(q, k, v, segments, block, window):  # type: ignore[no-untyped-def]
    blocks = _unrolled_blocks(len(q), segments, window)
    parts = (block(q[index], k[:, :, keys], v[:, :, keys], mask) for index, keys, mask in blocks)
    return zip(*(_finish(*part) for part in parts), strict=True)


def _unrolled_backward(rows, k, v, segments, block, window):  # type: ignore[no-untyped-def]
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for index, keys, mask in _unrolled_blocks(len(rows[0]), segments, window):
        dq, dk_part, dv_part = block(tuple(x[index] for x in rows), k[:, :, keys], v[:, :, keys], mask)
        dqs.append(dq)
        dk, dv = dk.at[:, :, keys].add(dk_part), dv.at[:, :, keys].add(dv_part)
    return dqs, dk, dv


# Long rows: a loop over pairs of blocks.


def _pairs(blocks: int, size: int, window: int | None) -> np.ndarray:
    """i32[P, 2]: the blocks of queries and keys of which some may see each other, by rising block of queries.

    >>> _pairs(3, 512, window=514).tolist(), len(_pairs(3, 512, window=None))
    ([[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]], 6)
    >>> _pairs(3, 512, window=513).tolist()
    [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2]]
    """
    reach = blocks if window is None else (window + size - 2) // size
    return np.asarray([(i, j) for i in range(blocks) for j in range(max(0, i - reach), i + 1)], np.int32)


def _pair_mask(segments: jax.Array, size: int, pair: jax.Array, window: int | None) -> jax.Array:
    offsets = jnp.arange(size)
    distance = (pair[0] - pair[1]) * size + offsets[:, None] - offsets
    queries, keys = (jax.lax.dynamic_slice_in_dim(segments, block * size, size, 1) for block in pair)
    return _mask(queries, keys, distance, window)


def _looped_forward(q, k, v, segments, block, window):  # type: ignore[no-untyped-def]
    q, size = jnp.stack(q), segments.shape[1] // len(q)

    def step(carry, pair):  # type: ignore[no-untyped-def]
        i, j = pair
        keys, values = (jax.lax.dynamic_slice_in_dim(x, j * size, size, 2) for x in (k, v))
        highest, total, sums = block(q[i], keys, values, _pair_mask(segments, size, pair, window))
        old_highest, old_total, old_sums = (x[i] for x in carry)
        top = jnp.maximum(old_highest, highest)
        old, new = jnp.exp(old_highest - top), jnp.exp(highest - top)
        merged = top, old_total * old + total * new, old_sums * old[..., None] + sums * new[..., None]
        return tuple(x.at[i].set(y) for x, y in zip(carry, merged, strict=True)), None

    rows = q.shape[:-1]
    start = jnp.full(rows, MASKED / 2, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(q.shape, jnp.float32)
    return _finish(*jax.lax.scan(step, start, _pairs(len(q), size, window))[0])


def _looped_backward(rows, k, v, segments, block, window):  # type: ignore[no-untyped-def]
    rows, size = [jnp.stack(x) for x in rows], segments.shape[1] // len(rows[0])

    def step(carry, pair):  # type: ignore[no-untyped-def]
        i, j = pair
        keys, values = (jax.lax.dynamic_slice_in_dim(x, j * size, size, 2) for x in (k, v))
        dq, dk, dv = block(tuple(x[i] for x in rows), keys, values, _pair_mask(segments, size, pair, window))
        return (carry[0].at[i].add(dq), _add(carry[1], dk, j * size), _add(carry[2], dv, j * size)), None

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (rows[0], k, v))
    return jax.lax.scan(step, start, _pairs(len(rows[0]), size, window))[0]


def _add(total: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    """`total` [B, K, T, H] with `part` [B, K, C, H] added from token `start` on."""
    old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[2], 2)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, 2)
