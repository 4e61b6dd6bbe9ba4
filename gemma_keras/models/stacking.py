"""The blocks of a model as one array a kind of weight, for training: L block weights [...] against a stack [L, ...].

A train step scans over the stacks, so that XLA compiles one or two blocks in place of 42: compiling takes a minute in place of
ten, the program a gigabyte less of each device's memory, and the optimizer some large kernels in place of thousands of small
ones. Everything else, inference among it, has a weight a path: `decoder_block_7/ffw_linear/kernel` is row 7 of
`decoder_blocks/ffw_linear/kernel`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp

from gemma_keras.models.weight_protocol import row as row_of

STACKS = "decoder_blocks/"
_BLOCK = re.compile(r"decoder_block_(\d+)/(.+)")


def stack_path(path: str) -> tuple[str, int | None]:
    """The path of a weight's stack and its row there; weights outside of the blocks stay as they are.

    >>> stack_path("decoder_block_7/ffw_linear/kernel")
    ('decoder_blocks/ffw_linear/kernel', 7)
    >>> stack_path("final_normalization/scale")
    ('final_normalization/scale', None)
    """
    found = _BLOCK.fullmatch(path)
    return (STACKS + found[2], int(found[1])) if found else (path, None)


def is_stacked(params: Mapping[str, Any]) -> bool:
    """Whether the blocks of these parameters are stacks."""
    return any(path.startswith(STACKS) for path in params)


def stacked_shapes(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes after `stack_params`."""
    return jax.eval_shape(lambda params: stack_params(dict(params)), dict(shapes))


def stack_params(
    params: MutableMapping[str, jax.Array], place: Callable[[str, tuple[int, ...]], Any] | None = None
) -> dict[str, jax.Array]:
    """Takes the weights out of `params`, kind by kind, so that no more than one kind is there twice.

    Args:
        params: weights by path; empty afterwards.
        place: from a stack's path and shape to its sharding.
    """
    rows: dict[str, dict[int | None, str]] = {}
    for path in params:
        name, row = stack_path(path)
        rows.setdefault(name, {})[row] = path
    stacks: dict[str, jax.Array] = {}
    for name, paths in rows.items():
        if None in paths:
            stacks[name] = params.pop(paths[None])
            continue
        weights = [params.pop(paths[row]) for row in range(len(paths))]
        sharding = place(name, (len(weights), *weights[0].shape)) if place else None
        stacks[name] = jax.jit(lambda *arrays: jnp.stack(arrays), out_shardings=sharding)(*weights)
    return stacks


class UnstackedParams(Mapping[str, Any]):
    """Stacks seen as a weight a path; a row is taken when it is asked for."""

    def __init__(self, stacks: Mapping[str, Any]):
        self._stacks = stacks

    def __getitem__(self, path: str) -> Any:
        name, row = stack_path(path)
        return self._stacks[name] if row is None else row_of(self._stacks[name], row)

    def __iter__(self) -> Iterator[str]:
        for name, stack in self._stacks.items():
            if name.startswith(STACKS):
                yield from (f"decoder_block_{row}/{name.removeprefix(STACKS)}" for row in range(stack.shape[0]))
            else:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)
