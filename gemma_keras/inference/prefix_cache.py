"""Keys and values of prompts' beginnings, kept for prompts that begin alike: system prompts, few-shot blocks, conversations.

Prompts are cut into blocks of `BLOCK` tokens. A block is found by its tokens and all tokens before it, so that what is kept
for one prompt serves every other one as far as the two agree. The least recently used blocks make room for new ones.

Of layers with a window all positions are kept, too: then every block that is found can be the last one.

Axes: E blocks of the pool, P rows, n blocks of a prompt, T tokens of a piece, K KV heads, H head dim.
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
from gemma_keras.inference.decode_state import DecodeState, placed
from gemma_keras.models.kv_cache import KVCache, NewLayers, Stored, init_cache, placed_cache
from gemma_keras.models.quantization import stored_like
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

    def save(self, new: NewLayers, pieces: Sequence[tuple[Sequence[bytes], int, int]]) -> None:
        """Keeps the blocks of pieces of prompts that are not kept yet.

        `new`: keys and values [P, K, T, H] that have just been computed, a piece a row. It has to be these: a ring loses them
        as the prompt goes on. `pieces`: of each the keys of its whole prompt, and where it starts and ends; starts are those of
        blocks.
        """
        rows, _, time, _ = new[0][0].shape
        places = np.full((rows, time // BLOCK), self._most, np.int32)
        missing: list[tuple[int, int, bytes]] = []
        for row, (keys, start, end) in enumerate(pieces):
            first, keys = start // BLOCK, keys[: min(end // BLOCK, self._most)]
            self._touch(keys)  # so that room is made at the cost of others
            if self.known(keys[:first]) == first:  # else nobody would find them
                fresh = [(row, at, key) for at, key in enumerate(keys[first:]) if key not in self._places]
                self._places |= {key: self._place() for _, _, key in fresh}
                missing += fresh
                self._touch(keys)
        for row, at, key in missing:
            # Others of these pieces may have taken its place already.
            places[row, at] = self._places.get(key, self._most)
        if (places < self._most).any():
            self._pool = _saved(self._pool, new, places, plan=self._plan)

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

    new = jax.tree.map(joined, tuple(zip(pool.keys, pool.values, strict=True)))
    return placed(state._replace(cache=state.cache.write(new, jnp.zeros_like(count), count, row, slot_offset)), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="pool")
def _saved(pool: KVCache, new: NewLayers, places: jax.Array, *, plan: ComputePlan) -> KVCache:
    """The pool with the blocks of `new` [P, K, T, H] at `places` i32[P, T / 64]; places beyond the pool are left out."""

    def put(old: Stored, new: Stored) -> Stored:
        return jax.tree.map(
            lambda old, x: old.at[places.ravel()].set(blocks(x), mode="drop"), old, stored_like(old, new)
        )

    def blocks(x: jax.Array) -> jax.Array:
        rows, heads, _, width = x.shape
        whole = x[:, :, : places.shape[1] * BLOCK].reshape(rows, heads, -1, BLOCK, width)
        return whole.swapaxes(1, 2).reshape(-1, heads, BLOCK, width)

    return placed_cache(pool.changed(put, new), plan)
