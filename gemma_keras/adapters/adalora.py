"""AdaLoRA: an adaptive-rank low-rank update in singular-value form (arXiv 2303.10512).

Axes: r rank, d_in flattened input features, d_out flattened output features.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.lora import Lora
from gemma_keras.adapters.low_rank_base import exact_product
from gemma_keras.config.sections import AdapterConfig


class AdaLora(Lora):
    """Adds scaling · lora_B · diag(lora_E) · lora_A · x, numerically as `peft/tuners/adalora/layer.py`.

    Triplet i is row i of `lora_A` [r, d_in], entry i of `lora_E` [r] and column i of `lora_B` [d_out, r]; the rank
    allocator prunes a triplet by setting its entry of `lora_E` to 0. The scaling alpha / (init_r + 1e-5) stays as it is.
    """

    weight_names = ("lora_A", "lora_E", "lora_B")

    def __init__(self, axes: EinsumAxes, config: AdapterConfig, dtype: str):
        super().__init__(axes, config, dtype, name="adalora")
        self.start, self.penalised = config.start, config.orth_reg_weight > 0
        self.scaling = self.alpha / (self.rank + 1e-5)

    def build(self, input_shape) -> None:
        self.lora_E = self.add_weight(name="lora_E", shape=(self.rank,), dtype="float32")
        super().build(input_shape)

    def initial_values(self, key: jax.Array) -> dict[str, jax.Array]:
        """By `adapter.start`. noise, as PEFT: lora_A and lora_B normal with deviation 0.02, lora_E zero. zero_B: as LoRA, with
        lora_E one."""
        if self.start == "zero_B":
            return super().initial_values(key) | {"lora_E": jnp.ones((self.rank,))}
        key_A, key_B = jax.random.split(key)
        return {
            "lora_A": 0.02 * jax.random.normal(key_A, (self.rank, self.d_in), jnp.float32),
            "lora_E": jnp.zeros((self.rank,)),
            "lora_B": 0.02 * jax.random.normal(key_B, (self.d_out, self.rank), jnp.float32),
        }

    def reach(self, rates: float) -> float:
        """From noise, lora_E grows from 0 by the rate a step, between rows and columns that the penalty holds near norm 1; where
        it has no weight they have the norms that they are drawn with."""
        if self.start == "zero_B":
            return super().reach(rates)
        norms = 1.0 if self.penalised else 0.02**2 * math.sqrt(self.d_in * self.d_out)
        return self.scaling * rates * norms

    def peft_config(self) -> dict[str, Any]:
        return {
            "peft_type": "ADALORA", "init_r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout_rate
        }  # fmt: skip

    def _kernel_delta(self, weights: dict[str, jax.Array]) -> jax.Array:
        return self.axes.to_kernel(
            exact_product(weights["lora_B"] * weights["lora_E"], weights["lora_A"]) * self.scaling
        )

    def _rank_scales(self):
        return jnp.asarray(self.lora_E.value)[:, None] * self.scaling
