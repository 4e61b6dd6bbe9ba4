"""Prompts into the cache: in pieces, several of like lengths together, what is kept of their beginnings not at all.

Axes: B rows of a state, P rows at work, T prompt tokens.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import Backbone

from gemma_keras.inference.buckets import bucket, power_of_two, slot_bucket
from gemma_keras.inference.decode_state import DecodeState, copied, empty_state, placed
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.models.forward import Params, forward
from gemma_keras.models.kv_cache import Context, KVCache, NewLayers
from gemma_keras.parallel.plan import ComputePlan

PREFILL_TOKENS = 512  # read in one call, of one prompt or of several of like lengths


class Prompt(NamedTuple):
    """A prompt, all but the last of whose `tokens` go into a row with a slot offset, where the first `start` are already.

    `keys` are those of its blocks, where beginnings are kept.
    """

    tokens: tuple[int, ...]
    row: int
    slot_offset: int
    start: int = 0
    keys: tuple[bytes, ...] = ()

    @property
    def left(self) -> int:
        """Tokens that are still to be read."""
        return len(self.tokens) - 1 - self.start


def divided_rows(rounded: Callable[[int], int], count: int, plan: ComputePlan) -> int:
    """Rows for `count` sequences, `rounded` up on each device of the mesh's data axis."""
    return plan.data_devices * rounded(-(-count // plan.data_devices))


class PromptReader:
    """Reads prompts with one backbone."""

    def __init__(self, backbone: Backbone, plan: ComputePlan):
        self._backbone, self._plan = backbone, plan

    def read(
        self, params: Params, state: DecodeState, prompts: Sequence[Prompt], prefixes: PrefixCache | None, slots: int
    ) -> DecodeState:
        """The state with the prompts in their rows, which have `slots` slots where no window is shorter."""
        for wave in _waves(prompts, prefixes):
            work: list[Prompt] = []
            for prompt in wave:
                if prefixes is not None:
                    keys = tuple(prefixes.keys(prompt.tokens))
                    state, start = prefixes.restore(state, prompt.row, keys, prompt.slot_offset)
                    prompt = prompt._replace(start=start, keys=keys)
                work.append(prompt)
            while work := sorted((prompt for prompt in work if prompt.left > 0), key=lambda p: p.left, reverse=True):
                count = group_size(work[0].left, len(work), self._plan)
                state, new = self._prefill(params, state, work[:count], slots, keep=prefixes is not None)
                if prefixes is not None:
                    ends = [prompt.start + min(prompt.left, PREFILL_TOKENS) for prompt in work[:count]]
                    prefixes.save(new, [(p.keys, p.start, end) for p, end in zip(work[:count], ends, strict=True)])
                work = work[count:] + [p._replace(start=p.start + PREFILL_TOKENS) for p in work[:count]]
        return state

    def _prefill(
        self, params: Params, state: DecodeState, group: Sequence[Prompt], slots: int, *, keep: bool
    ) -> tuple[DecodeState, NewLayers]:
        pieces = [prompt.tokens[prompt.start : prompt.start + min(prompt.left, PREFILL_TOKENS)] for prompt in group]
        size = divided_rows(power_of_two, len(group), self._plan)
        tokens = np.zeros((size, bucket(max(map(len, pieces)))), np.int32)
        start, count, slot_offset = np.zeros((3, size), np.int32)
        at = np.full(size, state.size, np.int32)
        for index, (prompt, piece) in enumerate(zip(group, pieces, strict=True)):
            tokens[index, : len(piece)] = piece
            at[index], slot_offset[index] = prompt.row, prompt.slot_offset
            start[index], count[index] = prompt.start, len(piece)
        return prefill(
            params, state, tokens, start, count, at, slot_offset, backbone=self._backbone, plan=self._plan,
            prefix=earlier_slots(start, slots), keep=keep,
        )  # fmt: skip

    def cache_of(
        self, params: Params, prompts: Sequence[Sequence[int]], copies: int, cache_dtype: str,
        prefixes: PrefixCache | None,
    ) -> KVCache:  # fmt: skip
        """A cache with all but the last token of each prompt in `copies` rows."""
        rows = divided_rows(power_of_two, len(prompts) * copies, self._plan)
        slots = slot_bucket(max(map(len, prompts)))
        state = empty_state(self._backbone, self._plan, rows, slots, 0, cache_dtype)
        leaders: dict[tuple[int, ...], Prompt] = {}
        moved: list[tuple[int, int]] = []
        for number, prompt in enumerate(prompts):
            leader = leaders.setdefault(tuple(prompt), Prompt(tuple(prompt), number * copies, 0))
            moved += [(leader.row, row) for row in range(number * copies, (number + 1) * copies)]
        state = self.read(params, state, list(leaders.values()), prefixes, slots)
        return copied(state, moved, self._plan).cache


def _waves(prompts: Sequence[Prompt], prefixes: PrefixCache | None) -> Iterator[list[Prompt]]:
    """Prompts that are read together; one whose beginning is just being read for another one comes later."""
    waiting = list(prompts)
    while waiting:
        under_way: set[bytes] = set()
        wave: list[Prompt] = []
        later: list[Prompt] = []
        for prompt in waiting:
            unknown: set[bytes] = prefixes.first_unknown(prompt.tokens) if prefixes is not None else set()
            (later if under_way & unknown else wave).append(prompt)
            under_way |= unknown
        yield wave
        waiting = later


def group_size(longest: int, count: int, plan: ComputePlan) -> int:
    """How many of `count` pieces of like lengths are read together: a power of two, so that few rows are padding."""
    size = bucket(min(PREFILL_TOKENS, longest))
    fitting = power_of_two(min(count, PREFILL_TOKENS // size) + 1) // 2
    return max(fitting, plan.data_devices)


def earlier_slots(start: np.ndarray, slots: int) -> int:
    """Up to where rows of which `start` i32[P] tokens are read hold something, rounded up."""
    earlier = int(start.max())
    return min(bucket(earlier), slots) if earlier else 0


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "prefix", "keep"), donate_argnames="state")
def prefill(
    params: Params,
    state: DecodeState,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    at: jax.Array,
    slot_offset: jax.Array,
    *,
    backbone: Backbone,
    plan: ComputePlan,
    prefix: int,
    keep: bool,
) -> tuple[DecodeState, NewLayers]:
    """Puts the first `count` i32[P] of `tokens` i32[P, T] into the rows `at` i32[P], at positions `start` i32[P] and after.

    Rows beyond the state are padding. `slot_offset` i32[P] is what the rows will have. `prefix` says up to where there are
    earlier tokens of these rows (0: nowhere). With `keep`, their keys and values come second, else nothing does.
    """
    places = jnp.arange(tokens.shape[1])
    positions = jnp.where(places < count[:, None], start[:, None] + places, -1)
    earlier = state.cache.take(at, prefix, slot_offset) if prefix else None
    _, new = forward(backbone, params, tokens, positions, context=Context(length=start, cache=earlier), plan=plan)
    written = state._replace(cache=state.cache.write(new, start, count, at, slot_offset))
    return placed(written, plan), new if keep else ()
