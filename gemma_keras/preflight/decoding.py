"""One decoding step over a mesh: every row's next token, with a cache of all earlier ones.

Axes: B rows, S slots of the cache, K KV heads, H head dim, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from keras_hub.models import GemmaBackbone

from gemma_keras.config.schema import Config
from gemma_keras.models.architectures import Architecture
from gemma_keras.models.compute_plan import DATA, MODEL, ComputePlan
from gemma_keras.models.forward import Cache, build_backbone, forward, init_cache, logits, variable_shapes
from gemma_keras.models.sharding import param_sharding


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """A decoding step and the shapes of its arguments."""

    backbone: GemmaBackbone
    step: Callable[..., Any]
    arguments: tuple[Any, ...]


def decode_program(config: Config, architecture: Architecture, plan: ComputePlan) -> DecodeProgram:
    """A step for `train.batch_rows` rows, with room for a prompt of `data.sequence_length` and its answer."""
    backbone = build_backbone(architecture, config.model.dtype)
    rows, slots = config.train.batch_rows, config.data.sequence_length + config.sampling.max_new_tokens

    def step(params, cache: Cache, tokens, positions):
        ones = jnp.ones_like(tokens)
        hidden, cache = forward(backbone, params, tokens, positions, ones, cache=cache, plan=plan)
        values = logits(backbone, params, hidden[:, 0])
        return jnp.argmax(values, axis=-1).astype(jnp.int32), cache

    params = {path: _placed(spec, _weight_place(plan, path, spec)) for path, spec in variable_shapes(backbone).items()}
    cache = jax.eval_shape(lambda: init_cache(backbone, rows, slots))
    cache = jax.tree.map(lambda spec: _placed(spec, _cache_place(plan, spec)), cache)
    tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    tokens = _placed(tokens, _cache_place(plan, tokens))
    return DecodeProgram(backbone, jax.jit(step, donate_argnums=1), (params, cache, tokens, tokens))


def _placed(spec: jax.ShapeDtypeStruct, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)


def _weight_place(plan: ComputePlan, path: str, spec: jax.ShapeDtypeStruct) -> NamedSharding | None:
    return param_sharding(plan.mesh, path, spec.shape) if plan.mesh is not None else None


def _cache_place(plan: ComputePlan, spec: jax.ShapeDtypeStruct) -> NamedSharding | None:
    """Keys and values [B, S, K, H] by rows and heads, everything else by rows, where they divide."""
    if plan.mesh is None:
        return None
    axes = (DATA, None, MODEL, None)[: spec.ndim]
    fitting = (axis if axis and size % plan.mesh.shape[axis] == 0 else None for axis, size in zip(axes, spec.shape))
    return NamedSharding(plan.mesh, PartitionSpec(*fitting))
