"""A product with a matrix of low rank, with dropout on its input: what every adapter computes.

Axes: B batch, T time, r rank, d_in input features, d_out output features.

The backward pass makes the dropout mask again from its seed, so neither the mask nor a dropped copy of the input is kept; and
it multiplies so that only arrays of width r are ever transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def low_rank_product(x: jax.Array, down: jax.Array, up: jax.Array, seed: jax.Array | None, rate: float) -> jax.Array:
    """dropout(x) downᵀ upᵀ, [B, T, d_out].

    Args:
        x: [B, T, d_in].
        down: [r, d_in], in the dtype of `x`.
        up: [d_out, r], in the dtype of `x`.
        seed: u32[2], which fixes the mask; None: no dropout.
        rate: share of entries of `x` that become 0; the others are divided by 1 - rate.
    """
    if seed is None or rate == 0.0:
        return jnp.einsum("btr,or->bto", jnp.einsum("btd,rd->btr", x, down), up)
    return _with_dropout(rate, x, down * (1 / (1 - rate)), up, seed)


def exact_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """left · right in full float32: by default TPUs round the operands of a float32 product to bfloat16."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def keep_mask(shape: tuple[int, ...], seed: jax.Array, rate: float) -> jax.Array:
    """bool[B, T, d]: False for a share `rate` of the entries, by a hash of the entry's place and `seed` u32[2].

    The mixing steps are those of MurmurHash3's finaliser. Bits of JAX's own generator (threefry) took longer than the matrix
    products here, and the places make the mask independent of how the array is divided over devices.
    """
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        place = place * np.uint32(shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    bits = (place ^ seed[0]) * np.uint32(0x9E3779B1)
    bits = ((bits ^ (bits >> 16)) ^ seed[1]) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return (bits ^ (bits >> 16)) >= np.uint32(rate * 2**32)


def _with_dropout_primal(rate: float, x: jax.Array, down: jax.Array, up: jax.Array, seed: jax.Array) -> jax.Array:
    return _forward(rate, x, down, up, seed)[0]


def _forward(rate: float, x: jax.Array, down: jax.Array, up: jax.Array, seed: jax.Array) -> tuple[jax.Array, Any]:
    inner = jnp.einsum("btd,rd->btr", _dropped(x, seed, rate), down)
    return jnp.einsum("btr,or->bto", inner, up), (x, down, up, seed, inner)


def _backward(rate: float, residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
    x, down, up, seed, inner = residuals
    d_inner = jnp.einsum("bto,or->btr", gradient, up)
    d_x = _dropped(jnp.einsum("btr,rd->btd", d_inner, down), seed, rate)
    d_down = jnp.einsum("btr,btd->rd", d_inner, _dropped(x, seed, rate))
    d_up = jnp.einsum("btr,bto->ro", inner, gradient).T
    return d_x, d_down, d_up, np.zeros(seed.shape, jax.dtypes.float0)


def _dropped(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    return jnp.where(keep_mask(x.shape, seed, rate), x, jnp.zeros((), x.dtype))


_with_dropout = jax.custom_vjp(_with_dropout_primal, nondiff_argnums=(0,))
_with_dropout.defvjp(_forward, _backward)
