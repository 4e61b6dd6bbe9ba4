"""Keys and values of prompts' beginnings, kept for prompts that begin alike: system prompts, few-shot blocks, conversations.

Prompts are cut into blocks of `BLOCK` tokens. A block is found by its tokens and all tokens before it, so that what is kept
for one prompt serves every other one as far as the two agree. The least recently used blocks make room for new ones.

Axes: E blocks of the pool, P rows, n blocks of a prompt, S slots, K KV heads, H head dim.
"""

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import Backbone

from gemma_keras.inference.buckets import power_of_two
from gemma_keras.inference.decode_state import DecodeState, layers, placed
from gemma_keras.models.kv_cache import KVCache, in_positions, init_cache, placed_cache
from gemma_keras.parallel.plan import ComputePlan

BLOCK = 64


class PrefixCache:
    """A pool of blocks in device memory, for `tokens` tokens in all."""

    def __init__(self, backbone: Backbone, plan: ComputePlan, tokens: int, cache_dtype: str):
        self._plan, self._most = plan, tokens // BLOCK
        dtype = backbone.token_embedding.compute_dtype if cache_dtype == "auto" else cache_dtype
        make = functools.partial(init_cache, backbone.architecture, self._most, BLOCK, dtype, plan, ring=False)
        self._empty = jax.jit(make)
        self.hits = 0  # tokens found
        self.clear()

    def clear(self) -> None:
        """Forgets everything. For after a failure, which may have lost the pool."""
        self._pool: KVCache = self._empty()
        self._places: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._free = list(range(self._most))

    def keys(self, prompt: Sequence[int]) -> list[bytes]:
        """A key for each whole block of a prompt. Its last token is not among them, for it has to be computed anyway."""
        digest, keys = hashlib.blake2b(digest_size=16), []
        ids = np.asarray(prompt[:-1], np.int32)
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            digest.update(ids[start : start + BLOCK].tobytes())
            keys.append(digest.digest())
        return keys

    def known(self, keys: Sequence[bytes]) -> int:
        """How many of the first blocks are kept."""
        return next((number for number, key in enumerate(keys) if key not in self._places), len(keys))

    def first_unknown(self, prompt: Sequence[int]) -> set[bytes]:
        """The key of the first block of a prompt that is not kept, if there is one."""
        keys = self.keys(prompt)
        return set(keys[self.known(keys) :][:1])

    def restore(self, state: DecodeState, row: int, keys: Sequence[bytes], slot_offset: int) -> tuple[DecodeState, int]:
        """Puts the known blocks into a row that will have this slot offset; returns their tokens, too."""
        count = self.known(keys)
        if not count:
            return state, 0
        self.hits += count * BLOCK
        blocks = np.zeros(power_of_two(count), np.int32)
        self._touch(keys[:count])
        blocks[:count] = [self._places[key] for key in keys[:count]]
        tokens = np.array([count * BLOCK], np.int32)
        at, slot_offsets = np.array([[row], [slot_offset]], np.int32)
        return _restored(state, self._pool, blocks, tokens, at, slot_offsets, plan=self._plan), count * BLOCK

    def save(self, state: DecodeState, row: int, keys: Sequence[bytes], length: int, slot_offset: int) -> None:
        """Keeps the blocks of a row of `length` tokens, with this slot offset, that are not kept yet."""
        if length > min(map(state.cache.slots, range(len(state.cache.keys)))):
            return  # a ring has lost its beginning
        keys = keys[: self._most]
        missing = [number for number, key in enumerate(keys) if key not in self._places]
        if not missing:
            return
        self._touch(keys)  # so that room is made at the cost of others
        places = np.full(power_of_two(len(missing)), self._most, np.int32)
        numbers = np.zeros_like(places)
        numbers[: len(missing)] = missing
        for index, number in enumerate(missing):
            places[index] = self._place()
            self._places[keys[number]] = int(places[index])
        self._touch(keys)
        self._pool = _saved(
            self._pool, state.cache, np.int32(row), np.int32(slot_offset), numbers, places, plan=self._plan
        )

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Marks blocks as used, the first last: without its beginning, the rest of a prompt is of no use."""
        for key in reversed(keys):
            if key in self._places:
                self._places.move_to_end(key)

    def _place(self) -> int:
        return self._free.pop() if self._free else self._places.popitem(last=False)[1]


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _restored(
    state: DecodeState,
    pool: KVCache,
    blocks: jax.Array,
    count: jax.Array,
    row: jax.Array,
    slot_offset: jax.Array,
    *,
    plan: ComputePlan,
) -> DecodeState:
    """The state with `count` i32[1] tokens of `blocks` i32[n] at the start of `row` i32[1], with this slot offset i32[1]."""

    def joined(x: jax.Array) -> jax.Array:
        """[n, K, 64, H] as [1, K, 64 n, H]."""
        return x[blocks].swapaxes(0, 1).reshape(1, x.shape[1], -1, x.shape[3])

    new = layers(jax.tree.map(joined, pool))
    return placed(state._replace(cache=state.cache.write(new, jnp.zeros_like(count), count, row, slot_offset)), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="pool")
def _saved(
    pool: KVCache,
    cache: KVCache,
    row: jax.Array,
    slot_offset: jax.Array,
    numbers: jax.Array,
    places: jax.Array,
    *,
    plan: ComputePlan,
) -> KVCache:
    """The pool with the blocks `numbers` i32[n] of a row, which has `slot_offset` i32[], at `places` i32[n]; places beyond the
    pool are left out."""

    def put(old: jax.Array, stored: jax.Array) -> jax.Array:
        whole = stored.shape[2] // BLOCK * BLOCK
        own = in_positions(stored[row][None], jnp.arange(whole), slot_offset[None])[0]
        own = own.reshape(stored.shape[1], -1, BLOCK, stored.shape[3]).swapaxes(0, 1)
        return old.at[places].set(own[jnp.minimum(numbers, len(own) - 1)], mode="drop")

    return placed_cache(jax.tree.map(put, pool, cache), plan)
