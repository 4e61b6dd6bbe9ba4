"""A mesh of devices, and how the rows of a batch lie on it.

Axes: B batch, T time. Mesh axes: "data" over B, "model" over heads, ffn width and, with "data", the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gemma_keras.config.errors import UserError

DATA, MODEL = "data", "model"
ALL = (MODEL, DATA)


def make_mesh(devices: Sequence[Any], data: int, model: int) -> Mesh:
    """A mesh (data, model) of the first data·model devices.

    Raises:
        UserError: there are fewer devices.
    """
    if data * model > len(devices):
        raise UserError(
            f"config.parallel asks for a mesh of {data}x{model} = {data * model} devices, but there are {len(devices)}; "
            "lower parallel.data or parallel.model, or set both to 0."
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def axis_size(mesh: Mesh, axis: str | tuple[str, ...] | None) -> int:
    """Devices along an axis, or along several taken together."""
    names = axis if isinstance(axis, tuple) else (axis,)
    return math.prod(mesh.shape[name] for name in names if name is not None)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, pairs: bool = False) -> NamedSharding:
    """Rows [B, ...] over "data"; of `pairs`, [2, B, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, DATA) if pairs else PartitionSpec(DATA))


def row_share(mesh: Mesh | None) -> tuple[int, int]:
    """(index, count): this process gives the index-th of count equal parts of every batch's rows.

    Where the mesh has fewer pieces along "data" than there are processes, each process gives all rows.
    """
    processes = jax.process_count()
    if mesh is None or processes == 1 or mesh.shape[DATA] % processes:
        return 0, 1
    return jax.process_index(), processes


def place_batch(mesh: Mesh | None, batch: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """The named arrays [B, T] or, of pairs, [2, B, T] of a batch, of which this process has its `row_share`, over all
    devices.
    """
    arrays = {name: batch[name] for name in names}
    if mesh is None:
        return arrays
    _, parts = row_share(mesh)

    def place(array: np.ndarray) -> jax.Array:
        *sides, rows, time = array.shape
        to = batch_sharding(mesh, pairs=bool(sides))
        return jax.make_array_from_process_local_data(to, array, (*sides, rows * parts, time))

    return {name: place(array) for name, array in arrays.items()}
