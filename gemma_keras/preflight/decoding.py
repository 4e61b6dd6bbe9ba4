"""The engine's own program of decoding, for a batch whose cache is full.

Axes: B rows, S slots of the cache, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemma_keras.config.stages import PreflightConfig
from gemma_keras.inference.decode import decode
from gemma_keras.inference.decode_state import DecodeState, empty_state, state_shardings
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.forward import build_backbone, variable_shapes
from gemma_keras.models.quantization import quantized, summed_axes
from gemma_keras.models.weight_sharding import param_sharding
from gemma_keras.parallel.plan import ComputePlan


def decode_program(config: PreflightConfig, architecture: Architecture, plan: ComputePlan) -> tuple[Any, int, int]:
    """The traced program, its tokens, and the bytes on one device that each step has to read: weights and cache.

    It decodes for `inference.max_rows` rows, with slots for a prompt of `prompt_tokens` and its answer. Its loop has no fixed
    length, so what is counted of it is one step.
    """
    backbone = build_backbone(architecture, config.model.dtype)
    rows, slots = config.inference.max_rows, config.prompt_tokens + config.sampling.max_new_tokens
    state: DecodeState = jax.eval_shape(lambda: empty_state(backbone, plan, rows, slots, 0, config.inference.cache))
    params = {
        path: _weight(plan, path, spec, config.inference.weights) for path, spec in variable_shapes(backbone).items()
    }
    if plan.mesh is not None:
        state = jax.tree.map(_placed, state, state_shardings(state, plan.mesh))
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    step: Any = decode
    trace = step.trace(params, state, steps, None, backbone=backbone, plan=plan, alternatives=None)
    return trace, rows, _bytes_on_a_device(params) + _bytes_on_a_device(state.cache)


def _placed(spec: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)


def _weight(plan: ComputePlan, path: str, spec: jax.ShapeDtypeStruct, kept: str) -> Any:
    """A weight as inference holds it."""
    axes = summed_axes(path) if kept == "int8" else None
    weight = spec if axes is None else jax.eval_shape(lambda x: quantized(x, axes), spec)
    if plan.mesh is None:
        return weight
    mesh: Mesh = plan.mesh
    return jax.tree.map(lambda part: _placed(part, param_sharding(mesh, path, part.shape, in_use=True)), weight)


def _bytes_on_a_device(tree: Any) -> int:
    total = 0
    for spec in jax.tree.leaves(tree):
        shape = spec.sharding.shard_shape(spec.shape) if spec.sharding is not None else spec.shape
        total += math.prod(shape) * spec.dtype.itemsize
    return total
