"""Keys and values of earlier tokens: a row of slots for every sequence, read by the forward pass.

Position p of a row lies in slot (p + offset) mod S, with a slot offset of its own for every row: 0 for rows that are read
once, and for rows that decode side by side such that the next token of each goes to one and the same slot, whatever their
lengths. So a step writes one slice of each array, in place. Layers with a window keep no more slots than the window has, and
there a new token takes the slot of the one that just went out of sight.

A forward pass returns the keys and values of its own tokens; only those of a `Context` with a slot are written before.

Axes: B rows of the cache, P rows at work, S slots, T new tokens, C tokens of a chunk, K KV heads, H head dim, L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.attention_kernels.grouped_query import Source
from gemma_keras.models.quantization import Int8, stored_like
from gemma_keras.parallel.mesh import DATA, MODEL
from gemma_keras.parallel.plan import ComputePlan

Stored: TypeAlias = jax.Array | Int8
SlotOffset: TypeAlias = jax.Array | int  # i32[P], or the same for all rows
NewLayers: TypeAlias = tuple[tuple[Stored, Stored], ...]  # keys and values [P, K, T, H] of new tokens, a pair a layer


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

    def take(self, rows: jax.Array, slots: int, slot_offset: SlotOffset = 0) -> "KVCache":
        """The first `slots` positions (all of a ring) of the rows i32[P], whose slot offset is 0 then."""

        def taken(stored: jax.Array) -> jax.Array:
            return in_positions(stored[rows], jnp.arange(min(slots, stored.shape[2])), slot_offset)

        return jax.tree.map(taken, self)

    def write(
        self,
        layers: NewLayers,
        start: jax.Array,
        count: jax.Array,
        rows: jax.Array | None = None,
        slot_offset: SlotOffset = 0,
    ) -> "KVCache":
        """The cache with the first `count` i32[P] tokens of `layers` at positions `start` i32[P] and after.

        `rows` i32[P] are rows of the cache, those that it does not have are left out; None: all rows in order. Of more
        tokens than a layer has slots, the last ones stay.
        """
        whole = self if rows is None else jax.tree.map(lambda x: x[jnp.minimum(rows, self.rows - 1)], self)

        def written(old: Stored, new: Stored) -> Stored:
            return jax.tree.map(merged, old, stored_like(old, new))

        def merged(old: jax.Array, new: jax.Array) -> jax.Array:
            # Which token each slot holds in the end; a gather, for scattering tokens one by one is slow everywhere.
            held = held_positions(start + count, old.shape[2], slot_offset)
            tokens = _taken(new, held - start[:, None])
            kept = jnp.where((held >= start[:, None])[:, None, :, None], tokens, old)
            # Whatever an earlier sequence left: nobody looks at it, but NaN times a weight of 0 is NaN.
            return jnp.where((held >= 0)[:, None, :, None], kept, 0)

        result = whole.changed(written, layers)
        if rows is None:
            return result
        return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), self, result)

    def append(self, layers: NewLayers, slot: jax.Array) -> "KVCache":
        """The cache with the one token of `layers` in slot `slot` mod S of every row."""
        return self.changed(lambda stored, new: put(stored, new, slot), layers)

    def changed(self, change: Callable[[Stored, Stored], Stored], layers: NewLayers) -> "KVCache":
        """The cache that `change` makes of what is stored of each layer's keys, and of its values, and what is new of them."""
        keys, values = zip(*layers, strict=True)
        return KVCache(tuple(map(change, self.keys, keys)), tuple(map(change, self.values, values)))


def put(stored: Stored, new: Stored, slot: jax.Array) -> Stored:
    """`stored` [B, K, S, H] with `new` [B, K, T, H] from slot `slot` mod S on; they must not reach beyond the last one."""
    place = slot % stored.shape[2]
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=2), stored, stored_like(stored, new)
    )


def in_positions(stored: jax.Array, positions: jax.Array, slot_offset: SlotOffset) -> jax.Array:
    """What the rows [P, K, S, ...] hold at `positions` i32[P, n], or i32[n] of all rows: [P, K, n, ...]."""
    slots = (positions + jnp.reshape(slot_offset, (-1, 1))) % stored.shape[2]
    return _taken(stored, jnp.broadcast_to(slots, (len(stored), slots.shape[-1])))


def _taken(x: jax.Array, places: jax.Array) -> jax.Array:
    """[P, K, n, ...] of `x` [P, K, T, ...] at `places` i32[P, n], the nearest for those beyond it."""
    return jax.vmap(lambda row, at: jnp.take(row, at, axis=1, mode="clip"))(x, places)


def held_positions(length: jax.Array, slots: int, slot_offset: SlotOffset = 0) -> jax.Array:
    """The position i32[P, S] that each of `slots` slots holds after `length` i32[P] tokens; negative: none.

    >>> held_positions(jnp.array([2, 5]), 3).tolist()
    [[0, 1, -1], [3, 4, 2]]
    >>> held_positions(jnp.array([2, 5]), 3, jnp.array([1, -1])).tolist()
    [[-1, 0, 1], [4, 2, 3]]
    """
    last = length[:, None] - 1
    return last - (last + jnp.reshape(slot_offset, (-1, 1)) - jnp.arange(slots)) % slots


def init_cache(
    architecture: Architecture, rows: int, slots: int, dtype: Any, plan: ComputePlan, *, ring: bool = True
) -> KVCache:
    """An empty cache for sequences of up to `slots` tokens.

    Args:
        dtype: of keys and values; "int8" keeps them as `Int8`.
        ring: whether layers with a window keep its slots only.
    """

    def empty(layer: int) -> Stored:
        window = architecture.layers[layer].window if ring else None
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What new tokens [P, T] see besides themselves.

    Attributes:
        cache: P rows, of which the first `length` i32[P] positions are filled; None: nothing is cached.
        slot_offset: of the rows of the cache.
        slot: where the cache takes the one new token of every row; None: it takes none.
        recent: a chunk [P, K, C, H] a layer, of which the first `step` tokens follow those of `cache`.
        alone: whether a new token sees none of the others, such as candidates for one place; else it sees earlier ones.
    """

    length: jax.Array
    cache: KVCache | None = None
    slot_offset: SlotOffset = 0
    slot: jax.Array | None = None
    recent: KVCache | None = None
    step: jax.Array | None = None
    alone: bool = dataclasses.field(default=False, metadata={"static": True})

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
            keys, values, length = self.cache.keys[layer], self.cache.values[layer], self.length
            if self.slot is not None:
                # Written first and read after, the cache is changed in place.
                keys, values, length = put(keys, key, self.slot), put(values, value, self.slot), length + 1
            held = held_positions(length, self.cache.slots(layer), self.slot_offset)
            sources.append(Source(keys, values, visible(held)))
            if self.slot is not None:
                return sources
        if self.recent is not None:
            places = jnp.arange(self.recent.slots(layer))
            held = jnp.where(places < self.step, self.length[:, None] + places, -1)
            sources.append(Source(self.recent.keys[layer], self.recent.values[layer], visible(held)))
        own = visible(positions)
        if self.alone:
            own &= jnp.eye(positions.shape[1], dtype=bool)
        return [*sources, Source(key, value, own)]
