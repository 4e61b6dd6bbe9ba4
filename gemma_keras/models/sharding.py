"""Where arrays lie on a mesh: rules as data, every variable matched by exactly one.

Axes: B batch, T time, V vocabulary, D model dim, N query heads, K KV heads, H head dim, F ffn dim, r rank.
Mesh axes: "data", "model".
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gemma_keras.config.errors import UserError
from gemma_keras.models.compute_plan import DATA, GATHERED, MODEL, ComputePlan
from gemma_keras.models.stacking import STACKS

Axes = tuple[str | tuple[str, ...] | None, ...]
ALL = (MODEL, DATA)
_BLOCK, _ADAPTER = r"decoder_block(_\d+|s)", "(lora|adalora)"
# Projections by the side whose features are divided by "model".
_FROM_DIVIDED, _TO_DIVIDED = "(attention_output|ffw_linear)", "(query|key|value|ffw_gating|ffw_gating_2)"

# (path, how the variable is stored, how it is used). Heads, ffn and vocabulary are divided by "model": each device multiplies
# with what it holds. What is stored in pieces over "data" is gathered before use. The vocabulary is divided by all
# devices and never gathered. Adapters are small to use but, with optimizer moments and importance averages, large to keep.
RULES: tuple[tuple[str, Axes, Axes], ...] = (
    (r"token_embedding/embeddings", (ALL, None), (ALL, None)),  # [V, D]
    (rf"{_BLOCK}/attention/(query|key|value)/kernel", (MODEL, DATA, None), (MODEL, None, None)),  # [N, D, H]
    (rf"{_BLOCK}/attention/attention_output/kernel", (MODEL, None, DATA), (MODEL, None, None)),  # [N, H, D]
    (rf"{_BLOCK}/ffw_gating(_2)?/kernel", (DATA, MODEL), (None, MODEL)),  # [D, F]
    (rf"{_BLOCK}/ffw_linear/kernel", (MODEL, DATA), (MODEL, None)),  # [F, D]
    (rf"({_BLOCK}/\w+|final_normalization)/scale", (None,), (None,)),  # [D]
    (rf"{_BLOCK}/(attention/)?{_FROM_DIVIDED}/{_ADAPTER}/lora_A", (None, ALL), (None, MODEL)),  # [r, N·H], [r, F]
    (rf"{_BLOCK}/(attention/)?{_FROM_DIVIDED}/{_ADAPTER}/lora_B", (ALL, None), (None, None)),  # [D, r]
    (rf"{_BLOCK}/(attention/)?{_TO_DIVIDED}/{_ADAPTER}/lora_A", (None, ALL), (None, None)),  # [r, D]
    (rf"{_BLOCK}/(attention/)?{_TO_DIVIDED}/{_ADAPTER}/lora_B", (ALL, None), (MODEL, None)),  # [N·H, r], [F, r]
    (rf"{_BLOCK}/.+/{_ADAPTER}/lora_E", (None,), (None,)),  # [r]
)


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


@functools.cache
def variable_axes(path: str) -> tuple[Axes, Axes]:
    """The mesh axes of each dimension of a variable, stored and in use, by the one rule that its path matches.

    >>> variable_axes("decoder_block_3/ffw_linear/kernel")
    (('model', 'data'), ('model', None))

    Raises:
        ValueError: no rule matches, or several do.
    """
    matching = [(stored, used) for pattern, stored, used in RULES if re.fullmatch(pattern, path)]
    if len(matching) != 1:
        raise ValueError(f"the variable {path} is matched by {len(matching)} sharding rules; expected one")
    return matching[0]


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
    """A variable as its use wants it; under another name for `plan.remat`, so that the backward pass gathers it again.

    Variables without a rule (the states of dropout's generators) stay as they are.
    """
    if plan.mesh is None or path.endswith("seed_generator_state"):
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
