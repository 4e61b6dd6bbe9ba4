"""Grouped-query attention with soft cap, sliding window and packed segments, and the choice of its kernel.

Axes: B batch, T query time, S key time, N query heads, K KV heads, G = N/K query heads per KV head, M = G·T,
H head dim. Mesh axes: "data" over B, "model" over N.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gemma_keras.config.errors import UserError
from gemma_keras.models.blockwise_attention import MASKED, RESIDUALS, blockwise_attention
from gemma_keras.models.splash_attention import splash_attention

__all__ = ["KERNELS", "RESIDUALS", "attention", "attention_mask", "choose_kernel", "packed_attention"]

KERNELS = ("reference", "blockwise", "splash")


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
    kernels: dict[str, Callable[..., jax.Array]] = {
        "reference": _reference,
        "blockwise": blockwise_attention,
        "splash": splash_attention,
    }
    compute: Callable[..., jax.Array] = partial(
        kernels[kernel], scale=scale, logit_soft_cap=logit_soft_cap, window=window
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
    slots = jnp.broadcast_to(jnp.arange(query.shape[1]), segment_ids.shape)
    mask = attention_mask(slots, slots, segment_ids, segment_ids, window)
    output = _attend(query, key, value, mask, scale, logit_soft_cap)
    return jnp.where((segment_ids != 0)[:, :, None, None], output, 0)


def attention_mask(
    query_positions: jax.Array,
    key_positions: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    window: int | None,
) -> jax.Array:
    """bool[B, T, S]: may query t see key s?

    Yes if both belong to the same segment other than 0 (padding, empty cache slots) and 0 <= distance < window, the
    distance being that of positions, not of slots.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] != 0)
    visible &= distance >= 0
    return visible if window is None else visible & (distance < window)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_positions: jax.Array,
    key_positions: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    scale: float,
    logit_soft_cap: float | None,
    window: int | None,
) -> jax.Array:
    """Attention output [B, T, N, H] in the dtype of `value`, for queries and keys that lie anywhere (caches).

    `query` [B, T, N, H], `key` and `value` [B, S, K, H]; positions and segments i32 [B, T] and [B, S]. Head n reads KV head
    n // G, as in transformers' eager attention for Gemma 2; logits and softmax are float32, the soft cap comes before the
    mask. A query of segment 0 sees nothing and gets a finite, meaningless output.
    """
    mask = attention_mask(query_positions, key_positions, query_segments, key_segments, window)
    with jax.named_scope("attention"):
        return _attend(query, key, value, mask, scale, logit_soft_cap)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, scale: float, logit_soft_cap: float | None
) -> jax.Array:
    """Attention of [B, T, N, H] to [B, S, K, H] under `mask` [B, T, S].

    Heads come before time, and the G heads of a KV head are rows of one matrix product. Dividing by the softmax's
    denominator after the product with the values touches H numbers a row in place of S.
    """
    batch, query_time, query_heads, head_dim = query.shape
    key_heads = key.shape[2]
    rows = query.reshape(batch, query_time, key_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    groups = rows.shape[2]
    rows = rows.reshape(batch, key_heads, groups * query_time, head_dim)
    logits = jnp.einsum("bkmh,bskh->bkms", rows, key, preferred_element_type=jnp.float32) * scale
    if logit_soft_cap is not None:
        logits = logit_soft_cap * jnp.tanh(logits / logit_soft_cap)
    logits = logits.reshape(batch, key_heads, groups, query_time, -1)
    logits = jnp.where(mask[:, None, None], logits, MASKED)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)[..., None]
    weights = weights.astype(value.dtype).reshape(batch, key_heads, groups * query_time, -1)
    sums = jnp.einsum("bkms,bskh->bkmh", weights, value, preferred_element_type=jnp.float32)
    output = sums.reshape(batch, key_heads, groups, query_time, head_dim) / total
    return output.transpose(0, 3, 1, 2, 4).reshape(batch, query_time, query_heads, head_dim).astype(value.dtype)
