"""Kernels as matrices [out, in], for the XLA compiler of CPUs, which multiplies them two to three times as fast.

A decoding step multiplies all weights by few rows. XLA:CPU packs the right operand of a product at every call, so the weights
have to be the left one; and it copies kernels whose axes are not those of a matrix product ([N, D, H] of query, [N, H, D] of
the output projection). Neither holds for TPU and GPU.

Axes: R rows, N heads, H head dim, D model dim, F ffn dim, V vocabulary.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# (path, axes of the kernel in the order out, in; how many of them are out)
_ORDERS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    (r"token_embedding/embeddings", (0, 1), 1),  # [V, D]
    (r"decoder_block_\d+/attention/(query|key|value)/kernel", (0, 2, 1), 2),  # [N, D, H]
    (r"decoder_block_\d+/attention/attention_output/kernel", (2, 0, 1), 1),  # [N, H, D]
    (r"decoder_block_\d+/ffw_(gating|gating_2|linear)/kernel", (1, 0), 1),  # [D, F], [F, D]
)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("matrix",), meta_fields=("order", "outs", "shape"))
@dataclasses.dataclass(frozen=True, slots=True)
class OutputMajor:
    """A kernel of `shape` as `matrix` [out, in]; its axes in `order`, of which the first `outs` are out."""

    matrix: jax.Array
    order: tuple[int, ...]
    outs: int
    shape: tuple[int, ...]

    def astype(self, dtype: Any) -> jax.Array:
        """The kernel itself. XLA sees through the transposition where a product follows."""
        sizes = [self.shape[axis] for axis in self.order]
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return self.matrix.reshape(sizes).transpose(back).astype(dtype)

    def project(self, x: jax.Array, dtype: Any = None) -> jax.Array:
        """`x` [..., in axes] by the kernel: [..., out axes], as `dtype`, which is by default that of `x`."""
        ins = len(self.shape) - self.outs
        lead = x.shape[: x.ndim - ins]
        rows = x.reshape(math.prod(lead), -1)
        # Without the barriers XLA turns the product round, and copies the matrix.
        columns = jax.lax.optimization_barrier(rows.T)
        product = jnp.matmul(self.matrix.astype(x.dtype), columns, preferred_element_type=jnp.float32)
        product = jax.lax.optimization_barrier(product).T
        shape = (*lead, *(self.shape[axis] for axis in self.order[: self.outs]))
        return product.reshape(shape).astype(dtype or x.dtype)


def output_major(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with their matrices in this form, which costs a copy of all but the embeddings."""

    def turned(path: str, kernel: Any) -> Any:
        if not isinstance(kernel, jax.Array):
            return kernel
        for pattern, order, outs in _ORDERS:
            if re.fullmatch(pattern, path):
                out = math.prod(kernel.shape[axis] for axis in order[:outs])
                same = order == tuple(range(kernel.ndim))
                matrix = kernel if same else kernel.transpose(order).reshape(out, -1)
                return OutputMajor(matrix, order, outs, kernel.shape)
        return kernel

    return {path: turned(path, kernel) for path, kernel in params.items()}
