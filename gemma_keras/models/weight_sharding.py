"""Where a weight lies on a mesh, by its path.

Axes: L layers, others by the letters of `weight_table`. Mesh axes: "data", "model".
"""

import functools

from jax.sharding import Mesh, NamedSharding

from gemma_keras.models.stacking import STACKS
from gemma_keras.models.weight_table import kind_of
from gemma_keras.parallel.sharding import Axes, fitting, stored_axes, used_axes


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


def param_sharding(mesh: Mesh, path: str, shape: tuple[int, ...], *, in_use: bool = False) -> NamedSharding:
    """Where a weight or a stack [L, ...] is stored, and every optimizer moment or average of its shape.

    Inference stores weights as they are used (`in_use`), for all-gathering them would take longer than all else in a step.
    """
    stored = variable_axes(path)[1 if in_use else 0]
    return NamedSharding(mesh, fitting(mesh, (None, *stored) if path.startswith(STACKS) else stored, shape))
