"""How a forward pass is computed: devices, attention kernel, recompute policy. Never what it computes.

Axes: B batch, T time, N heads, D model dim, F ffn dim, V vocabulary. Mesh axes: "data" over B, "model" over N, F and V.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_keras.parallel.mesh import DATA, MODEL

REMAT_POLICIES = (
    "none",
    "projections",
    "matmul",
    "attention",
    "full",
)  # from the fewest operations to the least memory

# Names by which a policy saves what a block computes; `PROJECTED` are query, key and value, `RESIDUALS` attention's output and
# log-sum-exp, `ALL_GATHERED` weights brought together from the data axis.
GATE, UP, DOWN, ATTENDED, PROJECTED = "ffw_gate", "ffw_up", "ffw_down", "attention_output", "query_key_value"
RESIDUALS, ALL_GATHERED = "attention_residuals", "gathered_weight"
_SAVED = {
    "projections": (RESIDUALS, GATE, UP, DOWN, ATTENDED, PROJECTED),
    "matmul": (RESIDUALS, GATE, UP, DOWN, ATTENDED),
    "attention": (RESIDUALS, ATTENDED),
    "full": (),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComputePlan:
    """The choices of one program.

    Attributes:
        mesh: devices with axes "data" and "model"; None: whatever single device the arrays lie on.
        shard_sequence: whether the residual stream [B, T, D] is divided over T along "model" between projections.
        attention: kernel for packed rows: reference, blockwise or splash.
        remat: what the backward pass computes again, a block at a time. none: the product of gate and up only.
            projections: the cheap parts; kept are the outputs of all projections and of attention, so that no large product
            runs twice. matmul: query, key and value besides.
            attention: all but attention and its output projection. full: everything.
    """

    mesh: Mesh | None = None
    shard_sequence: bool = False
    attention: str = "blockwise"
    remat: str = "none"

    @property
    def data_devices(self) -> int:
        """Parts into which rows are divided; 1 without a mesh."""
        return self.mesh.shape[DATA] if self.mesh is not None else 1

    def constrain(self, x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
        """`x` divided by dimension over these mesh axes; as it is without a mesh."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

    def residual(self, x: jax.Array) -> jax.Array:
        """The residual stream [B, T, D] as it lies between blocks."""
        return self.constrain(x, DATA, MODEL if self.shard_sequence else None, None)

    def features(self, x: jax.Array) -> jax.Array:
        """What a projection gives, [B, T, F] or [B, T, heads, H], with F or heads divided over "model" where they divide.

        Said outright, for else XLA gathers whole feed-forward weights, or moves times for heads between devices.
        """
        if self.mesh is None or x.shape[2] % self.mesh.shape[MODEL]:
            return x
        return self.constrain(x, DATA, None, MODEL, *(None,) * (x.ndim - 3))

    def recomputed(self, block: Callable[..., Any]) -> Callable[..., Any]:
        """`block` with this plan's policy for the backward pass."""
        policies = jax.checkpoint_policies
        if self.remat != "none":
            return jax.checkpoint(block, policy=policies.save_only_these_names(*_SAVED[self.remat]))
        if self.data_devices > 1:
            # Saved gathered weights would be a copy of the whole model on every device.
            return jax.checkpoint(block, policy=_all_but_all_gathered)
        return block


def _all_but_all_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """The policy that saves all but weights on their way from the stack to their use."""
    on_the_way = primitive.name in ("sharding_constraint", "slice", "squeeze", "dynamic_slice")
    return not on_the_way and params.get("name") != ALL_GATHERED


ONE_DEVICE = ComputePlan()
