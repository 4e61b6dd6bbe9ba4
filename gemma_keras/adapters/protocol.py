"""What an adapter is: the protocol that wrapping, merging, training and export ask, and no more.

Axes: B batch, T time, d_in flattened input features, d_out flattened output features.
"""

import math
from typing import Any

import jax
import keras

from gemma_keras.adapters.einsum_axes import EinsumAxes


class Adapter(keras.layers.Layer):
    """A layer beside one projection, whose output it changes by weights of its own, named in `weight_names`.

    What `initial_values` and `disabled` give cannot depend on the projection's kernel, which `apply` and `merge` alone are
    shown: a weight that is measured by the kernel, such as DoRA's magnitudes, is kept relative to it.

    Weights are float32 whatever the projection's dtype. Functions that take them get arrays by weight name.
    """

    weight_names: tuple[str, ...] = ()

    def __init__(self, axes: EinsumAxes, *, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.axes = axes
        self.dropout_rate = dropout
        self.dropout_seed: keras.random.SeedGenerator | None = None

    @property
    def d_in(self) -> int:
        return math.prod(self.axes.input_dims)

    @property
    def d_out(self) -> int:
        return math.prod(self.axes.output_dims)

    def build(self, input_shape) -> None:
        if self.dropout_rate > 0:  # made here, inside the layer's name scope, for a path of its own
            self.dropout_seed = keras.random.SeedGenerator(name="dropout_seed")
        self.built = True

    def initial_values(self, key: jax.Array) -> dict[str, jax.Array]:
        """Weights by name that leave the projection as it is."""
        raise NotImplementedError

    def apply(self, base: keras.layers.Layer, x: jax.Array, training: bool = False) -> jax.Array:
        """What the adapted projection gives for `x` [B, T, *input_dims]: [B, T, *output_dims].

        `base` is the projection, to be called, and `base.kernel` its kernel; `training`: whether to drop out.
        """
        raise NotImplementedError

    def merge(self, kernel: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        """The kernel of a plain projection that does what `apply` does, computed in float32, in the dtype of `kernel`."""
        raise NotImplementedError

    def disabled(self, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Weights with which the projection is as it would be without the adapter; `weights` may be stacks [L, ...]."""
        raise NotImplementedError

    def reach(self, rates: float) -> float:
        """About the most that one triplet's part of the change to the projection's matrix can come to, as a spectral norm, once
        Adam has moved every weight by `rates`, the sum of the learning rates of all steps, in one direction."""
        raise NotImplementedError

    def peft_config(self) -> dict[str, Any]:
        """The fields of PEFT's `adapter_config.json` that the adapter fixes: its type and what its scaling follows from.

        Modules, base model and schedule are not known here.
        """
        raise NotImplementedError
