"""Weights as values: what the forward pass asks of one, in whatever form it is kept.

Most weights are plain arrays. Another form is a class with the functions of `Weight` that is also a pytree of arrays
(`quantization.Int8`, `cpu_matrices.OutputMajor`). Where the arrays of a form may be stacks [L, ...], so that training can scan
over them, what is static of it says nothing of L: a scan, like `row`, takes a part of every array and leaves the rest.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gemma_keras.models.weight_table import WeightKind

Take = Callable[[jax.Array, jax.Array], jax.Array]


def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows [..., D] of a table [V, D] that lies on one device."""
    return jnp.take(table, ids, axis=0)


class Weight(Protocol):
    """What every form of a weight can do.

    `multiplies`: whether projections should call `project`; else their layers get the `dense` kernel, which XLA makes within
    the product.
    """

    multiplies: ClassVar[bool] = False

    def dense(self, dtype: Any) -> jax.Array:
        """The weight itself."""
        ...

    def project(self, x: jax.Array, kind: WeightKind, dtype: Any = None) -> jax.Array:
        """`x` [..., in axes] times the weight: [..., out axes], summed in float32, as `dtype` or that of `x`."""
        product = jnp.einsum(kind.equation, x, self.dense(x.dtype), preferred_element_type=jnp.float32)
        return product.astype(dtype or x.dtype)

    def lookup(self, ids: jax.Array, dtype: Any, take: Take = take_rows) -> jax.Array:
        """Rows [..., D] of a table [V, D] as `dtype`; `take` is asked for the rows of each array that holds it."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Plain(Weight):
    """A weight that is an array."""

    array: jax.Array

    def dense(self, dtype: Any) -> jax.Array:
        """The array as `dtype`."""
        return self.array.astype(dtype)

    def lookup(self, ids: jax.Array, dtype: Any, take: Take = take_rows) -> jax.Array:
        """Rows [..., D] as `dtype`."""
        return take(self.array, ids).astype(dtype)


def as_weight(value: Any) -> Weight:
    """A value of the parameters with the functions of a weight."""
    return Plain(value) if isinstance(value, jax.Array | np.ndarray) else value


def plain(value: Any, dtype: Any) -> jax.Array:
    """A value as layers and products take it: arrays as they are, other forms as arrays of `dtype`."""
    return value if isinstance(value, jax.Array | np.ndarray) else value.dense(dtype)


def row(value: Any, index: jax.Array | int) -> Any:
    """One weight of a stack [L, ...], in its form."""
    return jax.tree.map(lambda part: part[index], value)
