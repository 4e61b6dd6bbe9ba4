"""Where a weight lies on a mesh, as a function of the letters of its dimensions.

Axes: B batch, T time, V vocabulary, D model dim, N query heads, K KV heads, H head dim, F ffn dim, r rank.
Mesh axes: "data", "model".
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from gemma_keras.parallel.mesh import ALL, DATA, MODEL, axis_size
from gemma_keras.parallel.plan import ALL_GATHERED, ComputePlan

Axes = tuple[str | tuple[str, ...] | None, ...]
# By the first letter of a dimension.
_DIVIDED: dict[str, str | tuple[str, ...]] = {"N": MODEL, "K": MODEL, "F": MODEL, "V": ALL}


def used_axes(axes: Sequence[str]) -> Axes:
    """The mesh axes of each dimension of a weight in use, whose dimensions have these letters (`models.weight_table`).

    Heads, ffn and vocabulary are divided by "model": each device multiplies with what it holds. The vocabulary is divided by
    all devices and never all-gathered.

    >>> used_axes("FD"), used_axes("VD")
    (('model', None), (('model', 'data'), None))
    """
    return tuple(_DIVIDED.get(axis[0]) for axis in axes)


def stored_axes(axes: Sequence[str]) -> Axes:
    """The same as it is stored: matrices in pieces over "data" besides, which are all-gathered before use.

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


def fitting(mesh: Mesh, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
    """`axes` without those that do not divide their dimension, such as 4 KV heads over 8 devices."""
    assert len(axes) == len(shape), (axes, shape)
    return PartitionSpec(
        *(axis if size % axis_size(mesh, axis) == 0 else None for axis, size in zip(axes, shape, strict=True))
    )


def all_gathered(plan: ComputePlan, stored: Axes, used: Axes, value: jax.Array) -> jax.Array:
    """A weight as its use wants it; under another name for `plan.remat`, so that the backward pass all-gathers it again."""
    if plan.mesh is None:
        return value
    specs = [fitting(plan.mesh, axes, value.shape) for axes in (stored, used)]
    if specs[0] == specs[1]:
        return value
    return checkpoint_name(plan.constrain(value, *specs[1]), ALL_GATHERED)


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
