"""Weights and cached keys and values as 8-bit integers with a scale a channel: half the memory of bfloat16.

Symmetric and without calibration: x = values · scale with scale = max |x| / 127 over the axes that share it, so that every
element is off by at most half a scale.
"""

import dataclasses
from collections.abc import MutableMapping
from typing import Any

import jax
import jax.numpy as jnp

from gemma_keras.models.weight_protocol import Take, Weight, as_weight, take_rows
from gemma_keras.models.weight_table import WeightKind, kind_of

LEVELS = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Int8(Weight):
    """`values` int8[...], and `scales` float32 of the same rank, 1 long along the axes that share a scale."""

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that this stands for."""
        return self.values.shape

    def dense(self, dtype: Any) -> jax.Array:
        """The array itself."""
        return self.values.astype(dtype) * self.scales.astype(dtype)

    def project(self, x: jax.Array, kind: WeightKind, dtype: Any = None) -> jax.Array:
        """`x` [..., in axes] times the weight: [..., out axes]. The scales go to the product, which is smaller."""
        product = jnp.einsum(kind.equation, x, self.values.astype(x.dtype), preferred_element_type=jnp.float32)
        return (product * self.scales.squeeze(kind.ins)).astype(dtype or x.dtype)

    def lookup(self, ids: jax.Array, dtype: Any, take: Take = take_rows) -> jax.Array:
        """Rows [..., D] of a table [V, D] as `dtype`."""
        return Int8(take(self.values, ids), take(self.scales, ids)).dense(dtype)


def quantized(x: jax.Array, axes: tuple[int, ...]) -> Int8:
    """`x` with one scale for all elements along `axes`; where they are all 0, so is the scale, and where one
    is not finite, the scale is NaN.

    >>> x = quantized(jnp.array([[1.0, -4.0], [0.0, 0.0]]), (1,))
    >>> x.values.tolist(), x.dense(jnp.float32)[0, 1].item()
    ([[32, -127], [0, 0]], -4.0)
    """
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / LEVELS
    # Said apart, for XLA:CPU loses NaN in a maximum, and as int8 it is a number.
    scales = jnp.where(jnp.isfinite(x).all(axis=axes, keepdims=True), scales, jnp.nan)
    values = jnp.round(x / jnp.where(scales == 0, 1, scales))
    return Int8(values.astype(jnp.int8), scales)


def stored_like(stored: jax.Array | Int8, new: jax.Array | Int8) -> jax.Array | Int8:
    """New keys or values [P, K, T, H] in the form in which `stored` ones are kept, of 8 bits with a scale a head and token."""
    if isinstance(stored, Int8):
        return new if isinstance(new, Int8) else quantized(new, (3,))
    return as_weight(new).dense(stored.dtype)


def summed_axes(path: str) -> tuple[int, ...] | None:
    """The axes of a weight that share a scale, counted from its last: those that a product sums over, so that each output
    channel keeps a scale of its own.

    None for weights that stay as they are (norms, adapters).
    """
    kind = kind_of(path)
    return tuple(axis - len(kind.axes) for axis in kind.ins) if kind.is_matrix else None


def quantize_params(params: MutableMapping[str, Any]) -> dict[str, Any]:
    """Weights with matrices and embeddings as `Int8`, taken out of `params` one by one, so that no two copies are kept."""
    small: dict[str, Any] = {}
    run = jax.jit(quantized, static_argnums=1)
    for path in list(params):
        weight, axes = params.pop(path), summed_axes(path)
        small[path] = weight if axes is None else run(weight, axes)
    return small
