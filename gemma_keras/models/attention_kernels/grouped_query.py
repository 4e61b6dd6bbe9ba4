"""Grouped-query attention with soft cap, sliding window and packed segments, and the choice of its kernel.

Axes: B batch, T query time, S key time, N query heads, K KV heads, G = N/K query heads per KV head, M = G·T,
H head dim. Mesh axes: "data" over B, "model" over N.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gemma_keras.config.errors import UserError
from gemma_keras.models.attention_kernels.blockwise import MASKED, blockwise_attention
from gemma_keras.models.attention_kernels.splash import splash_attention
from gemma_keras.models.quantization import Int8

FEW_ROWS = 16  # of a product, for which its right operand should not be packed


def choose_kernel(device_kind: str) -> str:
    """The kernel for a device by JAX's name of its kind.

    >>> choose_kernel("TPU v5 lite"), choose_kernel("TPU v3"), choose_kernel("NVIDIA H200")
    ('splash', 'blockwise', 'blockwise')
    """
    # The splash kernel multiplies bfloat16 matrices, which the compiler of kernels refuses for TPU v2 and v3.
    return "splash" if device_kind.startswith("TPU") and device_kind[4:6] not in ("v2", "v3") else "blockwise"


def packed_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    logit_soft_cap: float | None,
    window: int | None,
    kernel: str = "blockwise",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Attention output [B, T, N, H] of packed rows, in the dtype of `value`.

    `query` [B, T, N, H], `key` and `value` [B, T, K, H], `segment_ids` i32[B, T]. The tokens of a segment are neighbours, so
    the distance of slots is that of positions: slot t sees slot s if both are of the same segment other than 0 and
    0 <= t - s < window. Slots of segment 0 get zeros and give no gradient. Numbers are as in `attention`.

    `kernel` changes speed and memory only. reference: the whole logits [B, N, T, T]. blockwise: blocks of them, any device.
    splash: the Pallas kernel for TPU v4 and later. With a mesh, B is divided by "data" and heads by "model"; KV heads that
    cannot be divided by "model" are given to all, and each device takes the one that its query heads read.

    Raises:
        UserError: the kernel is unknown, T does not suit it, or B or the heads cannot be divided by the mesh.
    """
    if kernel not in KERNELS:
        raise UserError(f"{kernel!r} is not an attention kernel; choose one of {', '.join(KERNELS)}.")
    compute: Callable[..., jax.Array] = functools.partial(
        KERNELS[kernel], scale=scale, logit_soft_cap=logit_soft_cap, window=window
    )
    if mesh is not None:
        compute = _over_mesh(compute, mesh, query.shape, key.shape[2])
    with jax.named_scope("attention"):
        return compute(query, key, value, segment_ids)


def _over_mesh(
    compute: Callable[..., jax.Array], mesh: Mesh, query_shape: tuple[int, ...], key_heads: int
) -> Callable[..., jax.Array]:
    """`compute` on every device's own rows and heads."""
    batch, _, query_heads, _ = query_shape
    data, model = mesh.shape["data"], mesh.shape["model"]
    local, groups = query_heads // model, query_heads // key_heads
    if batch % data:
        raise UserError(
            f"A batch of {batch} rows cannot be divided by the mesh's data axis of {data}; use a multiple of it."
        )
    divided = key_heads % model == 0
    if query_heads % model or not (divided or groups % local == 0):
        raise UserError(
            f"{query_heads} query heads with {key_heads} KV heads cannot be divided by the mesh's model axis of {model}; "
            "choose a parallel.model that divides the query heads, and divides the KV heads or is a multiple of them."
        )

    def local_heads(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
        if not divided:
            head = jax.lax.axis_index("model") * local // groups
            key, value = (jax.lax.dynamic_slice_in_dim(x, head, 1, axis=2) for x in (key, value))
        return compute(query, key, value, segment_ids)

    heads = PartitionSpec("data", None, "model", None)
    key_spec = heads if divided else PartitionSpec("data", None, None, None)
    in_specs = (heads, key_spec, key_spec, PartitionSpec("data", None))
    # Pallas kernels do not say over which axes their outputs vary, so that cannot be checked.
    return jax.shard_map(local_heads, mesh=mesh, in_specs=in_specs, out_specs=heads, check_vma=False)


def _reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    logit_soft_cap: float | None,
    window: int | None,
) -> jax.Array:
    mask = attention_mask(segment_ids, window)
    source = Source(key.swapaxes(1, 2), value.swapaxes(1, 2), mask)
    output = attention(query, [source], scale=scale, logit_soft_cap=logit_soft_cap)
    return jnp.where((segment_ids != 0)[:, :, None, None], output, 0)


KERNELS = {"reference": _reference, "blockwise": blockwise_attention, "splash": splash_attention}


def attention_mask(segment_ids: jax.Array, window: int | None) -> jax.Array:
    """bool[B, T, T]: may slot t of a packed row see slot s?"""
    slots = jnp.arange(segment_ids.shape[1])
    distance = slots[:, None] - slots
    near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return near & (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] != 0)


class Source(NamedTuple):
    """`keys` and `values` [B, K, S, H], and `mask` bool[B, T, S]: which of them each query sees."""

    keys: jax.Array | Int8
    values: jax.Array | Int8
    mask: jax.Array


@jax.named_scope("attention")
def attention(query: jax.Array, sources: Sequence[Source], *, scale: float, logit_soft_cap: float | None) -> jax.Array:
    """Attention output [B, T, N, H] in the dtype of `query` [B, T, N, H], to keys and values that lie in several places.

    Head n reads KV head n // G, as in transformers' eager attention for Gemma 2; logits and softmax are float32, the soft cap
    comes before the mask. A query that sees nothing gets a finite, meaningless output.

    Logits of all sources lie side by side, with one softmax over them. Heads come before time, and the G heads of a KV head
    are rows of one matrix product. Dividing by the softmax's denominator after the product with the values touches H numbers
    a row in place of S.
    """
    batch, query_time, query_heads, head_dim = query.shape
    key_heads = sources[0].keys.shape[1]
    rows = query.reshape(batch, query_time, key_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    groups = rows.shape[2]
    rows = rows.reshape(batch, key_heads, groups * query_time, head_dim)

    def masked(source: Source) -> jax.Array:
        logits = _dot(rows, source.keys) * scale
        if logit_soft_cap is not None:
            logits = logit_soft_cap * jnp.tanh(logits / logit_soft_cap)
        logits = logits.reshape(batch, key_heads, groups, query_time, -1)
        return jnp.where(source.mask[:, None, None], logits, MASKED)

    logits = [masked(source) for source in sources]
    most = functools.reduce(jnp.maximum, [part.max(axis=-1, keepdims=True) for part in logits])
    weights = [jnp.exp(part - jax.lax.stop_gradient(most)) for part in logits]
    total = sum(part.sum(axis=-1) for part in weights)
    sums = sum(
        _weighted(part.reshape(batch, key_heads, groups * query_time, -1), source.values, query.dtype)
        for part, source in zip(weights, sources, strict=True)
    )
    output = sums.reshape(batch, key_heads, groups, query_time, head_dim) / total[..., None]
    return output.transpose(0, 3, 1, 2, 4).reshape(batch, query_time, query_heads, head_dim).astype(query.dtype)


def _dot(rows: jax.Array, keys: jax.Array | Int8) -> jax.Array:
    """Logits f32[B, K, M, S] of `rows` [B, K, M, H]."""
    if isinstance(keys, Int8):
        # The scales go to the logits, so that no float copy of the keys is made.
        return _dot(rows, keys.values.astype(rows.dtype)) * keys.scales[..., 0][:, :, None]
    if rows.shape[2] < FEW_ROWS:
        # A decoding step. XLA:CPU packs the right operand of a product, so the keys are the left one; the barriers keep it.
        columns = jax.lax.optimization_barrier(rows.swapaxes(2, 3))
        logits = jnp.einsum("bksh,bkhm->bksm", keys, columns, preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(logits).swapaxes(2, 3)
    return jnp.einsum("bkmh,bksh->bkms", rows, keys, preferred_element_type=jnp.float32)


def _weighted(weights: jax.Array, values: jax.Array | Int8, dtype: jnp.dtype) -> jax.Array:
    """Sums f32[B, K, M, H] of values by `weights` f32[B, K, M, S]."""
    if isinstance(values, Int8):
        return _weighted(weights * values.scales[..., 0][:, :, None], values.values.astype(dtype), dtype)
    return jnp.einsum("bkms,bksh->bkmh", weights.astype(dtype), values, preferred_element_type=jnp.float32)
