"""Keys and values of earlier tokens: a row of slots for every sequence, read by the forward pass and written after it.

A forward pass only reads. It returns the keys and values of its own tokens, which go to the cache afterwards, many tokens at
once: a decoding step costs no copy of the cache, and what is not wanted (the candidates of contrastive search) is not kept.

Position p lies in slot p mod S. Layers with a window keep no more slots than the window has, so that there a new token
takes the slot of the one that just went out of sight.

Axes: B rows of the cache, P rows at work, S slots, T new tokens, C tokens of a chunk, K KV heads, H head dim, L layers.
"""

import dataclasses
import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_keras.models.architectures import Architecture
from gemma_keras.models.attention import Source
from gemma_keras.models.compute_plan import DATA, MODEL, ComputePlan
from gemma_keras.models.quantization import Int8, quantized

Stored: TypeAlias = jax.Array | Int8
Fresh: TypeAlias = tuple[tuple[Stored, Stored], ...]  # keys and values [P, K, T, H] of new tokens, a pair a layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class KVCache:
    """`keys` and `values`: one [B, K, S_l, H] a layer, as arrays or `Int8` with a scale a head and token."""

    keys: tuple[Stored, ...]
    values: tuple[Stored, ...]

    @property
    def rows(self) -> int:
        """B."""
        return self.keys[0].shape[0]

    def slots(self, layer: int) -> int:
        """S of a layer."""
        return self.keys[layer].shape[2]

    @property
    def most_slots(self) -> int:
        """S of the layers without a window (or with one that is longer)."""
        return max(self.slots(layer) for layer in range(len(self.keys)))

    def take(self, rows: jax.Array, slots: int) -> "KVCache":
        """The first `slots` slots (all of a ring) of the rows i32[P]."""

        def taken(stored: jax.Array) -> jax.Array:
            return stored[rows, :, : min(slots, stored.shape[2])]

        return jax.tree.map(taken, self)

    def write(self, fresh: Fresh, start: jax.Array, count: jax.Array, rows: jax.Array | None = None) -> "KVCache":
        """The cache with the first `count` i32[P] tokens of `fresh` at positions `start` i32[P] and after.

        `rows` i32[P] are rows of the cache, those that it does not have are left out; None: all rows in order. Of more
        tokens than a layer has slots, the last ones stay.
        """
        whole = self if rows is None else self.take(jnp.minimum(rows, self.rows - 1), self.most_slots)

        def written(old: Stored, new: Stored) -> Stored:
            if isinstance(old, Int8):
                small = new if isinstance(new, Int8) else quantized(new, (3,))
                return Int8(merged(old.values, small.values), merged(old.scales, small.scales))
            return merged(old, new.astype(old.dtype))

        def merged(old: jax.Array, new: jax.Array) -> jax.Array:
            # Which token each slot holds in the end; a gather, for scattering tokens one by one is slow everywhere.
            held = held_positions(start + count, old.shape[2])
            place = held - start[:, None]
            tokens = jax.vmap(lambda x, at: jnp.take(x, at, axis=1, mode="clip"))(new, place)
            return jnp.where((held >= start[:, None])[:, None, :, None], tokens, old)

        keys = [written(old, new) for old, (new, _) in zip(whole.keys, fresh, strict=True)]
        values = [written(old, new) for old, (_, new) in zip(whole.values, fresh, strict=True)]
        result = KVCache(tuple(keys), tuple(values))
        if rows is None:
            return result
        return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), self, result)


def put(buffer: jax.Array, new: jax.Array, place: jax.Array) -> jax.Array:
    """`buffer` [B, K, C, H] with `new` [B, K, T, H] from slot `place` on."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), place, axis=2)


def held_positions(length: jax.Array, slots: int) -> jax.Array:
    """The position i32[P, S] that each of `slots` slots holds after `length` i32[P] tokens; negative: none.

    >>> held_positions(jnp.array([2, 5]), 3).tolist()
    [[0, 1, -1], [3, 4, 2]]
    """
    last = length[:, None] - 1
    return last - (last - jnp.arange(slots)) % slots


def init_cache(
    architecture: Architecture, rows: int, slots: int, dtype: Any, plan: ComputePlan, *, ring: bool = True
) -> KVCache:
    """An empty cache for sequences of up to `slots` tokens.

    Args:
        dtype: of keys and values; "int8" keeps them as `Int8`.
        ring: whether layers with a window keep its slots only.
    """

    def empty(layer: int) -> Stored:
        window = architecture.window(layer) if ring else None
        shape = (rows, architecture.num_key_value_heads, min(slots, window or slots), architecture.head_dim)
        if dtype == "int8":
            return Int8(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:3], 1), jnp.float32))
        return jnp.zeros(shape, dtype)

    layers = range(architecture.num_layers)
    return placed_cache(KVCache(tuple(map(empty, layers)), tuple(map(empty, layers))), plan)


def placed_cache(cache: KVCache, plan: ComputePlan) -> KVCache:
    """Every array where `cache_sharding` wants it."""
    if plan.mesh is None:
        return cache
    wanted = jax.tree.map(lambda x: cache_sharding(plan.mesh, x.shape), cache)
    return jax.lax.with_sharding_constraint(cache, wanted)


def cache_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """An array [rows, K, ...] with rows over "data" and heads over "model", where they divide."""
    axes = (axis if length % mesh.shape[axis] == 0 else None for axis, length in zip((DATA, MODEL), shape))
    return NamedSharding(mesh, PartitionSpec(*axes))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("length", "cache", "recent", "step"), meta_fields=("alone",)
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What new tokens [P, T] see besides themselves.

    Attributes:
        cache: P rows, of which the first `length` i32[P] positions are filled; None: nothing is cached.
        recent: a chunk [P, K, C, H] a layer, of which the first `step` tokens follow those of `cache`.
        alone: whether a new token sees none of the others, such as candidates for one place; else it sees earlier ones.
    """

    length: jax.Array
    cache: KVCache | None = None
    recent: KVCache | None = None
    step: jax.Array | None = None
    alone: bool = False

    def sources(
        self, layer: int, key: jax.Array, value: jax.Array, positions: jax.Array, window: int | None
    ) -> list[Source]:
        """Where queries at `positions` i32[P, T] look: the cache, the chunk, and their own keys and values [P, K, T, H].

        New tokens at position -1 are padding.
        """

        def visible(held: jax.Array) -> jax.Array:
            distance = positions[:, :, None] - held[:, None, :]
            seen = (held >= 0)[:, None, :] & (distance >= 0)
            return seen if window is None else seen & (distance < window)

        sources = []
        if self.cache is not None:
            held = held_positions(self.length, self.cache.slots(layer))
            sources.append(Source(self.cache.keys[layer], self.cache.values[layer], visible(held)))
        if self.recent is not None:
            assert self.step is not None
            keys, values, filled = self.recent.keys[layer], self.recent.values[layer], self.step
            if not self.alone:
                # Put there first and read after, the chunk is written in place; so are its tokens one source, not two.
                keys, values = put(keys, key, filled), put(values, value, filled)
                filled = filled + positions.shape[1]
            places = jnp.arange(self.recent.slots(layer))
            held = jnp.where(places < filled, self.length[:, None] + places, -1)
            sources.append(Source(keys, values, visible(held)))
            if not self.alone:
                return sources
        own = visible(positions)
        if self.alone:
            own &= jnp.eye(positions.shape[1], dtype=bool)
        return [*sources, Source(key, value, own)]
