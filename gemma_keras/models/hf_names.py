"""Keras variable paths and Hugging Face tensor names, with the change of layout both ways.

Keras kernels have the axes that the table of weights (`weight_table.py`) says; PyTorch's are [out, in] with heads flattened.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.weight_table import BLOCK, WeightKind, model_kinds


@dataclasses.dataclass(frozen=True, slots=True)
class HfTensor:
    """One weight: its Keras path and shape, its Hugging Face name and layer (0 outside of blocks), and the change of layout."""

    path: str
    name: str
    kind: WeightKind
    shape: tuple[int, ...]
    layer: int = 0

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """[out, in], or [D] of a norm."""
        sides = (self.kind.outs, self.kind.ins)
        return tuple(math.prod(self.shape[axis] for axis in side) for side in sides if side)

    @property
    def same_layout(self) -> bool:
        """Whether both changes of layout leave the array as it is."""
        return self.hf_shape == self.shape and self._order == tuple(range(len(self.shape)))

    @property
    def _order(self) -> tuple[int, ...]:
        return self.kind.outs + self.kind.ins

    def from_hf(self, array: np.ndarray) -> np.ndarray:
        """The array in Keras' layout; of a contiguous array a view, so that what is written into it lands in the other."""
        back = [self._order.index(axis) for axis in range(len(self.shape))]
        return array.reshape([self.shape[axis] for axis in self._order]).transpose(back)


def hf_tensors(architecture: Architecture) -> Iterator[HfTensor]:
    """Every tensor of a Hugging Face Gemma checkpoint of this shape, in the order of the forward pass."""

    def tensor(kind: WeightKind, layer: int = 0) -> HfTensor:
        path = kind.path.replace(BLOCK, f"decoder_block_{layer}/")
        return HfTensor(path, kind.hf_name(architecture.family, layer), kind, kind.shape(architecture), layer)

    embeddings, *blocks, final = model_kinds(architecture.family)
    yield tensor(embeddings)
    yield from (tensor(kind, layer) for layer in range(architecture.num_layers) for kind in blocks)
    yield tensor(final)
