"""LoRA: a low-rank update of fixed rank (arXiv 2106.09685), on the flattened kernel as in `peft/tuners/lora`.

Axes: B batch, T time, r rank, d_in flattened input features, d_out flattened output features.
"""

import math

import jax
import jax.numpy as jnp
import keras

from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.low_rank import exact_product, low_rank_product


class Lora(keras.layers.Layer):
    """Computes only the delta that an adapter adds to the output of one projection: scaling · lora_B · lora_A · x.

    Variables: `lora_A` [r, d_in] and `lora_B` [d_out, r], float32 whatever the projection's dtype.
    """

    weight_names: tuple[str, ...] = ("lora_A", "lora_B")

    def __init__(
        self, axes: EinsumAxes, *, rank: int, alpha: float, dropout: float = 0.0, name: str = "lora", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.axes = axes
        self.rank = rank
        self.scaling = alpha / rank
        self.dropout_rate = dropout
        self.dropout_seed: keras.random.SeedGenerator | None = None

    @property
    def d_in(self) -> int:
        return math.prod(self.axes.input_dims)

    @property
    def d_out(self) -> int:
        return math.prod(self.axes.output_dims)

    def build(self, input_shape) -> None:
        self.lora_A = self.add_weight(name="lora_A", shape=(self.rank, self.d_in), dtype="float32")
        self.lora_B = self.add_weight(name="lora_B", shape=(self.d_out, self.rank), dtype="float32")
        if self.dropout_rate > 0:  # made here, inside the layer's name scope, for a path of its own
            self.dropout_seed = keras.random.SeedGenerator(name="dropout_seed")
        self.built = True

    def initial_values(self, key: jax.Array) -> dict[str, jax.Array]:
        """By weight name; the delta is 0: lora_A uniform in ±1/sqrt(d_in) as in PEFT, lora_B zero."""
        bound = 1 / math.sqrt(self.d_in)
        lora_A = jax.random.uniform(key, (self.rank, self.d_in), jnp.float32, -bound, bound)
        return {"lora_A": lora_A, "lora_B": jnp.zeros((self.d_out, self.rank))}

    def call(self, x, training: bool = False):
        """[B, T, *input_dims] -> [B, T, *output_dims]."""
        batch, time = x.shape[:2]
        x = jnp.reshape(x, (batch, time, self.d_in))
        # Scaling and E, in float32, go into the small factor.
        down = (jnp.asarray(self.lora_A.value) * self._rank_scales()).astype(x.dtype)
        up = jnp.asarray(self.lora_B.value).astype(x.dtype)
        seed = self.dropout_seed.state.value if training and self.dropout_seed is not None else None
        delta = low_rank_product(x, down, up, seed, self.dropout_rate)
        return jnp.reshape(delta, (batch, time, *self.axes.output_dims))

    def kernel_delta(self, weights: dict[str, jax.Array]) -> jax.Array:
        """The update in the layout of the projection's own kernel, from arrays by weight name."""
        return self.axes.to_kernel(exact_product(weights["lora_B"], weights["lora_A"]) * self.scaling)

    def _rank_scales(self):
        """What multiplies lora_B · lora_A, for all ranks alike or by rank [r, 1]."""
        return self.scaling
