"""Where arrays lie on a mesh, as a function of the letters of their dimensions.

Axes: B batch, T time, V vocabulary, D model dim, N query heads, K KV heads, H head dim, F ffn dim, r rank.
Mesh axes: "data", "model".
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gemma_keras.config.errors import UserError
from gemma_keras.models.compute_plan import DATA, GATHERED, MODEL, ComputePlan
from gemma_keras.models.layout import kind_of
from gemma_keras.models.stacking import STACKS

Axes = tuple[str | tuple[str, ...] | None, ...]
ALL = (MODEL, DATA)
_DIVIDED: dict[str, str | tuple[str, ...]] = {
    "N": MODEL,
    "K": MODEL,
    "F": MODEL,
    "V": ALL,
}  # by the first letter of a dimension


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


def used_axes(axes: Sequence[str]) -> Axes:
    """The mesh axes of each dimension of a weight in use, whose dimensions have these letters (`layout`).

    Heads, ffn and vocabulary are divided by "model": each device multiplies with what it holds. The vocabulary is divided by
    all devices and never gathered.

    >>> used_axes("FD"), used_axes("VD")
    (('model', None), (('model', 'data'), None))
    """
    return tuple(_DIVIDED.get(axis[0]) for axis in axes)


def stored_axes(axes: Sequence[str]) -> Axes:
    """The same as it is stored: matrices in pieces over "data" besides, which are gathered before use.

    Factors of adapters are small to use but, with optimizer moments and importance averages, large to keep: all devices
    divide their long side.

    >>> stored_axes("FD"), stored_axes(("r", "NH"))
    (('model', 'data'), (None, ('model', 'data')))
    """
    used = used_axes(axes)
    if len(axes) == 1 or ALL in used:
        return used
    if "r" in axes:
        return tuple(None if axis == "r" else ALL for axis in axes)
    return tuple(DATA if axis == "D" else mesh_axis for axis, mesh_axis in zip(axes, used, strict=True))


@functools.cache
def variable_axes(path: str) -> tuple[Axes, Axes]:
    """The mesh axes of each dimension of a variable, stored and in use.

    >>> variable_axes("decoder_block_3/ffw_linear/kernel")
    (('model', 'data'), ('model', None))

    Raises:
        ValueError: the table of weights has no row for it.
    """
    axes = kind_of(path).axes
    return stored_axes(axes), used_axes(axes)


def _fitting(mesh: Mesh, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
    """`axes` without those that do not divide their dimension, such as 4 KV heads over 8 devices."""
    assert len(axes) == len(shape), (axes, shape)
    return PartitionSpec(
        *(axis if size % axis_size(mesh, axis) == 0 else None for axis, size in zip(axes, shape, strict=True))
    )


def axis_size(mesh: Mesh, axis: str | tuple[str, ...] | None) -> int:
    """Devices along an axis, or along several taken together."""
    names = axis if isinstance(axis, tuple) else (axis,)
    return math.prod(mesh.shape[name] for name in names if name is not None)


def param_sharding(mesh: Mesh, path: str, shape: tuple[int, ...], *, in_use: bool = False) -> NamedSharding:
    """Where a weight or a stack [L, ...] is stored, and every optimizer moment or average of its shape.

    Inference stores weights as they are used (`in_use`), for gathering them would take longer than all else in a step.
    """
    stored = variable_axes(path)[1 if in_use else 0]
    return NamedSharding(mesh, _fitting(mesh, (None, *stored) if path.startswith(STACKS) else stored, shape))


def gathered(plan: ComputePlan, path: str, value: jax.Array) -> jax.Array:
    """A variable as its use wants it; under another name for `plan.remat`, so that the backward pass gathers it again."""
    if plan.mesh is None:
        return value
    stored, used = variable_axes(path)
    specs = [_fitting(plan.mesh, axes, value.shape) for axes in (stored, used)]
    if specs[0] == specs[1]:
        return value
    return checkpoint_name(plan.constrain(value, *specs[1]), GATHERED)


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


def vocabulary_lookup(table: jax.Array, tokens: jax.Array, plan: ComputePlan) -> jax.Array:
    """Rows [B, T, D] of a table [V, D] that is divided over all devices, none of which ever holds the whole of it.

    Each device looks up the tokens that it has, all others are 0, and the sum over devices leaves rows where they belong.
    """
    mesh = plan.mesh
    if mesh is None or mesh.size == 1 or table.shape[0] % mesh.size:
        return jnp.take(table, tokens, axis=0)
    scatter_time = plan.shard_sequence and tokens.shape[1] % mesh.shape[MODEL] == 0

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        places = tokens - jax.lax.axis_index(ALL) * table.shape[0]
        mine = (places >= 0) & (places < table.shape[0])
        rows = jnp.take(table, jnp.where(mine, places, 0), axis=0) * mine[..., None].astype(table.dtype)
        rows = jax.lax.psum_scatter(rows, DATA, scatter_dimension=0, tiled=True)
        if scatter_time:
            return jax.lax.psum_scatter(rows, MODEL, scatter_dimension=1, tiled=True)
        return jax.lax.psum(rows, MODEL)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(ALL, None), PartitionSpec()),
        out_specs=PartitionSpec(DATA, MODEL if scatter_time else None, None),
    )(table, tokens)  # fmt: skip
