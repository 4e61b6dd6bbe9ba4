"""Attention of packed rows by JAX's Pallas kernel for TPU v4 and later.

Axes: B batch, T time, N query heads, K KV heads, H head dim.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from gemma_keras.config.errors import UserError
from gemma_keras.parallel.plan import RESIDUALS

LANES = 128  # the kernel's blocks are multiples of this
INTERPRET = False  # run the kernel's program step by step, on any device and slowly: for tests


def splash_attention(
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

    The kernel knows no scale, so queries are scaled first; in bfloat16 that is exact where the scale is a power of two (all
    of Gemma 2 but 27b).

    Raises:
        UserError: T is no multiple of 128.
    """
    time, heads = query.shape[1:3]
    if time % LANES:
        raise UserError(
            f"Rows of {time} tokens do not suit the splash kernel, which takes multiples of {LANES}; change the length of "
            "rows, or use the attention kernel blockwise."
        )
    kernel = _kernel(time, heads, logit_soft_cap, None if window is None or window >= time else window, INTERPRET)
    scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (scaled, key, value))
    output = jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=segment_ids, kv=segment_ids)).transpose(0, 2, 1, 3)
    return jnp.where((segment_ids != 0)[:, :, None, None], output, 0)


@lru_cache(maxsize=16)
def _kernel(
    time: int, heads: int, cap: float | None, window: int | None, interpret: bool
) -> splash.SplashAttentionKernel:
    """The kernel for [N, T, H] queries and [K, T, H] keys and values; masks are built once for all layers."""
    shape = (time, time)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), offset=0)
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=_block_sizes(time),
            attn_logits_soft_cap=cap,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=RESIDUALS,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def _block_sizes(time: int) -> splash.BlockSizes:
    """Blocks of 512 tokens where they divide the row; 1024 need more than the 16 MiB of fast memory that a v5e kernel has.

    The fused backward pass takes 5 matrix products a block where the two separate ones take 7, but writes one dq for every
    block of keys: at 8192 tokens that is 16 times the memory of dq, at 1024 twice.
    """
    block = max(size for size in (128, 256, 512) if time % size == 0)
    fused = time <= 2 * block
    return splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
