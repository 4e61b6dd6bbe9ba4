"""LoRA: a low-rank update of fixed rank (arXiv 2106.09685), on the flattened kernel as in `peft/tuners/lora`.

Axes: B batch, T time, r rank, d_in flattened input features, d_out flattened output features.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import keras

from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.low_rank_base import exact_product, low_rank_product
from gemma_keras.adapters.protocol import Adapter
from gemma_keras.config.sections import AdapterConfig


class Lora(Adapter):
    """Adds scaling · lora_B · lora_A · x to what the projection gives; the scaling is alpha / r.

    Weights: `lora_A` [r, d_in] and `lora_B` [d_out, r].
    """

    weight_names: tuple[str, ...] = ("lora_A", "lora_B")

    def __init__(self, axes: EinsumAxes, config: AdapterConfig, dtype: str, name: str = "lora"):
        super().__init__(axes, dropout=config.dropout, dtype=dtype, name=name)
        self.rank, self.alpha = config.init_r, config.alpha
        self.scaling = self.alpha / self.rank

    def build(self, input_shape) -> None:
        self.lora_A = self.add_weight(name="lora_A", shape=(self.rank, self.d_in), dtype="float32")
        self.lora_B = self.add_weight(name="lora_B", shape=(self.d_out, self.rank), dtype="float32")
        super().build(input_shape)

    def initial_values(self, key: jax.Array) -> dict[str, jax.Array]:
        """lora_A uniform in ±1/sqrt(d_in) as in PEFT, lora_B zero."""
        bound = 1 / math.sqrt(self.d_in)
        lora_A = jax.random.uniform(key, (self.rank, self.d_in), jnp.float32, -bound, bound)
        return {"lora_A": lora_A, "lora_B": jnp.zeros((self.d_out, self.rank))}

    def apply(self, base: keras.layers.Layer, x: jax.Array, training: bool = False) -> jax.Array:
        return base(x) + self(x, training=training)

    def call(self, x, training: bool = False):
        """The delta alone, [B, T, *input_dims] -> [B, T, *output_dims]."""
        batch, time = x.shape[:2]
        x = jnp.reshape(x, (batch, time, self.d_in))
        # Scaling and E, in float32, go into the small factor.
        down = (jnp.asarray(self.lora_A.value) * self._rank_scales()).astype(x.dtype)
        up = jnp.asarray(self.lora_B.value).astype(x.dtype)
        seed = self.dropout_seed.state.value if training and self.dropout_seed is not None else None
        delta = low_rank_product(x, down, up, seed, self.dropout_rate)
        return jnp.reshape(delta, (batch, time, *self.axes.output_dims))

    def merge(self, kernel: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        return (kernel.astype(jnp.float32) + self._kernel_delta(weights)).astype(kernel.dtype)

    def disabled(self, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {**weights, "lora_B": jnp.zeros_like(weights["lora_B"])}

    def reach(self, rates: float) -> float:
        """Columns of lora_B grow from 0 by the rate times sqrt(d_out) a step, rows of lora_A begin with norm 1/sqrt(3)."""
        return self.scaling * rates * math.sqrt(self.d_out / 3)

    def peft_config(self) -> dict[str, Any]:
        return {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout_rate}

    def _kernel_delta(self, weights: dict[str, jax.Array]) -> jax.Array:
        """The update in the layout of the projection's own kernel."""
        return self.axes.to_kernel(exact_product(weights["lora_B"], weights["lora_A"]) * self.scaling)

    def _rank_scales(self):
        """What multiplies lora_B · lora_A, for all ranks alike or by rank [r, 1]."""
        return self.scaling
