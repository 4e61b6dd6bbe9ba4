"""Kernels as matrices [out, in], for the XLA compiler of CPUs, which multiplies them two to three times as fast.

A decoding step multiplies all weights by few rows. XLA:CPU packs the right operand of a product at every call, so the weights
have to be the left one; and it copies kernels whose axes are not those of a matrix product ([N, D, H] of query, [N, H, D] of
the output projection). Two products of half the rows, each on a core, take less time than one on which the cores meet: a
kernel whose product has no other beside it is kept in two halves. Rows of less than a page of memory are read at two thirds of
the speed: there, two neighbours count as one row, whose products with the columns, put twice on a diagonal, are those of both.
None of this holds for TPU and GPU.

Axes: R rows, N heads, H head dim, D model dim, F ffn dim, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gemma_keras.models.weight_protocol import Take, Weight, take_rows
from gemma_keras.models.weight_table import WeightKind, kind_of

FEW_ROWS = 32  # with more of them, packing the weights costs little
MOST_PAIRED, LONG_ROW = 16, 1024  # rows up to which shorter rows of a matrix are multiplied in pairs


@functools.partial(jax.tree_util.register_dataclass, data_fields=("parts",), meta_fields=("order", "outs", "shape"))
@dataclasses.dataclass(frozen=True, slots=True)
class OutputMajor(Weight):
    """A kernel of `shape` as a matrix [out, in], its axes in `order`, of which the first `outs` are out; the rows of the
    matrix lie in equal `parts`."""

    multiplies: ClassVar[bool] = True
    parts: tuple[jax.Array, ...]
    order: tuple[int, ...]
    outs: int
    shape: tuple[int, ...]

    def dense(self, dtype: Any) -> jax.Array:
        """The kernel itself."""
        sizes = [self.shape[axis] for axis in self.order]
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return jnp.concatenate(self.parts).reshape(sizes).transpose(back).astype(dtype)

    def project(self, x: jax.Array, kind: WeightKind, dtype: Any = None) -> jax.Array:
        """`x` [..., in axes] by the kernel: [..., out axes], as `dtype`, which is by default that of `x`."""
        del kind  # `order` says as much
        ins = len(self.shape) - self.outs
        lead = x.shape[: x.ndim - ins]
        rows = x.reshape(math.prod(lead), -1)
        parts = [part.astype(x.dtype) for part in self.parts]
        if len(rows) > FEW_ROWS:
            products = [jnp.matmul(rows, part.T, preferred_element_type=jnp.float32) for part in parts]
            product = jnp.concatenate(products, axis=1)
        else:
            columns = rows.T
            if 1 < len(rows) <= MOST_PAIRED and len(columns) < LONG_ROW and all(len(part) % 2 == 0 for part in parts):
                columns = _block_diagonal(columns)
            # Without the barriers XLA turns the product round, and copies the matrix.
            columns = jax.lax.optimization_barrier(columns)
            matrices = [part.reshape(-1, len(columns)) for part in parts]
            products = [jnp.matmul(matrix, columns, preferred_element_type=jnp.float32) for matrix in matrices]
            product = jnp.concatenate(jax.lax.optimization_barrier(products))
            product = product.reshape(sum(map(len, parts)), -1)[:, : len(rows)].T
        shape = (*lead, *(self.shape[axis] for axis in self.order[: self.outs]))
        return product.reshape(shape).astype(dtype or x.dtype)

    def lookup(self, ids: jax.Array, dtype: Any, take: Take = take_rows) -> jax.Array:
        """Rows [..., in] of the matrix as `dtype`; of its parts, which lie on one device, whatever `take`."""
        del take
        size = len(self.parts[0])
        found = [jnp.take(part, ids - number * size, axis=0, mode="clip") for number, part in enumerate(self.parts)]
        result = found[0]
        for number, part in enumerate(found[1:], start=1):
            result = jnp.where((ids >= number * size)[..., None], part, result)
        return result.astype(dtype)


def _block_diagonal(columns: jax.Array) -> jax.Array:
    """[2 in, 2 W] with `columns` [in, R] twice on its diagonal, R filled up to W, a power of two."""
    rows = columns.shape[1]
    columns = jnp.pad(columns, ((0, 0), (0, (1 << (rows - 1).bit_length()) - rows)))
    return jax.scipy.linalg.block_diag(columns, columns)


def output_major(params: Mapping[str, Any], *, halves: bool) -> dict[str, Any]:
    """`params` with their matrices in this form, which costs a copy of all of them.

    Without `halves` no kernel is divided, as is best for single rows, whose products XLA runs one after the other.
    """

    def turned(path: str, kernel: Any) -> Any:
        kind = kind_of(path)
        if not kind.is_matrix or not isinstance(kernel, jax.Array):
            return kernel
        order = kind.outs + kind.ins
        out = math.prod(kernel.shape[axis] for axis in kind.outs)
        matrix = kernel.transpose(order).reshape(out, -1)
        divided = jnp.split(matrix, 2 if halves and kind.halves and out % 2 == 0 else 1)
        return OutputMajor(tuple(divided), order, len(kind.outs), kernel.shape)

    return {path: turned(path, kernel) for path, kernel in params.items()}
