"""AdaLoRA's budget of ranks: which triplets of which matrices survive (arXiv 2303.10512, section 3.2 and 3.3).

Axes: L blocks, r triplets of one matrix, R triplets of all matrices together.

Numerically as `peft/tuners/adalora/layer.py`, except for what `peft_compatible=False` mends: equal scores cannot
over-prune, target_r may equal init_r, the budget counts weights rather than triplets, so that what is left is as large whichever
matrices keep it, and once the pattern is fixed pruned triplets leave the penalty and get neither updates nor moments, so that
dropping them physically changes nothing for the survivors.

`t` is the number of optimizer steps completed. The schedule runs on the host, in double precision, and hands each step its
`Phase`; everything else runs inside the jitted train step, which so is the same program for a run of any length.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_keras.adapters.inject import AdapterStack
from gemma_keras.adapters.low_rank_base import exact_product
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import AdapterConfig, in_steps
from gemma_keras.models.forward import Params

Masks = dict[str, jax.Array]


class Phase(NamedTuple):
    """What happens to ranks in one step: scalars, so that they can be traced.

    `fixed`: only survivors are trained. After the update: `scores` adds to the averages, `allocates` chooses the best
    `budget` triplets (of a matrix of mean size) anew, `prunes` sets lora_E of all others to 0.
    """

    fixed: Any
    scores: Any
    allocates: Any
    prunes: Any
    budget: Any


@dataclasses.dataclass(frozen=True)
class RankSchedule:
    """The budget over time: all triplets for t ≤ tinit, the target from t = fixed_at on, a cubic in between."""

    total_steps: int
    tinit: int
    tfinal: int
    delta_t: int
    initial_budget: int
    target_budget: int

    @property
    def fixed_at(self) -> int:
        """The step after which the pattern is fixed; `tfinal` is a duration counted from the end. Earlier steps are scored."""
        return self.total_steps - self.tfinal

    def budget(self, t: int) -> int:
        """b(t), truncated as in PEFT.

        >>> RankSchedule(100, 10, 20, 5, 64, 32).budget(45)
        36
        """
        if t <= self.tinit:
            return self.initial_budget
        if t >= self.fixed_at:
            return self.target_budget
        remaining = 1 - (t - self.tinit) / (self.fixed_at - self.tinit)
        return int((self.initial_budget - self.target_budget) * remaining**3 + self.target_budget)

    def allocates(self, t: int) -> bool:
        """Whether triplets are chosen anew after step t."""
        return self.tinit < t <= self.fixed_at and (t % self.delta_t == 0 or t == self.fixed_at)

    def phase(self, t: int) -> Phase:
        """The phase of the step that is the t-th to be completed."""
        allocates = self.allocates(t)
        return Phase(
            fixed=np.bool_(t > self.fixed_at),
            scores=np.bool_(t < self.fixed_at),
            allocates=np.bool_(allocates),
            prunes=np.bool_(allocates or t > self.fixed_at),
            budget=np.int32(self.budget(t)),
        )

    def describe(self) -> str:
        """One line for the log: the phases in steps and the budgets in triplets."""
        return (
            f"AdaLoRA: steps 1-{self.tinit} at {self.initial_budget} ranks, then every {self.delta_t} steps down to "
            f"{self.target_budget} at step {self.fixed_at}, fixed for the last {self.tfinal} steps"
        )


def resolve_schedule(config: AdapterConfig, total_steps: int, matrices: int) -> RankSchedule:
    """Turns fractions of the run into steps.

    Raises:
        UserError: the phases do not leave a step for budgeting or for a score before it, or target_r is above init_r.
    """
    tinit, tfinal, delta_t = (in_steps(value, total_steps) for value in (config.tinit, config.tfinal, config.delta_t))
    if tinit + tfinal >= total_steps:
        raise UserError(
            f"adapter.tinit={config.tinit} and adapter.tfinal={config.tfinal} take {tinit} + {tfinal} of {total_steps} "
            "steps; expected less than all of them: lower both, give them as fractions, or train for longer."
        )
    if config.target_r > config.init_r:
        raise UserError(f"adapter.target_r={config.target_r} is above adapter.init_r={config.init_r}; lower it.")
    if total_steps - tfinal < 2 and config.target_r < config.init_r:
        raise UserError(
            f"adapter.tfinal={config.tfinal} fixes the ranks after step {total_steps - tfinal} of {total_steps}, before any "
            "was scored, so that the first blocks would keep all; lower it, or train for longer."
        )
    budgets = (config.init_r * matrices, config.target_r * matrices)
    return RankSchedule(total_steps, tinit, tfinal, max(1, delta_t), *budgets)


class AllocatorState(NamedTuple):
    """Averages of every stack of adapter weights by path, and the surviving triplets [L, r] of every stack by name."""

    importance: Params
    uncertainty: Params
    alive: Masks


class RankAllocator:
    """Scores triplets after every optimizer step and prunes them by its phase, all as pure functions of arrays.

    Parameters, gradients and averages are stacks over the blocks: lora_A [L, r, d_in], lora_E [L, r], lora_B [L, d_out, r].
    """

    def __init__(self, stacks: list[AdapterStack], config: AdapterConfig):
        self.stacks = stacks
        self.config = config
        self.matrix_count = sum(len(stack.matrices) for stack in stacks)

    def init(self) -> AllocatorState:
        """Nothing scored yet, every triplet alive."""
        averages = {
            s.path(weight): jnp.zeros(s.shape(weight)) for s in self.stacks for weight in s.adapter.weight_names
        }
        alive = {s.name: jnp.ones(s.shape("lora_E"), bool) for s in self.stacks}
        return AllocatorState(averages, jax.tree.map(jnp.copy, averages), alive)

    def active(self, state: AllocatorState, phase: Phase) -> Masks:
        """Per stack f32[L, r]: the triplets that a step trains; all of them until the pattern is fixed."""
        if self.config.peft_compatible:
            return {name: jnp.ones(alive.shape) for name, alive in state.alive.items()}
        return {name: jnp.where(phase.fixed, alive, True).astype(jnp.float32) for name, alive in state.alive.items()}

    def weight_masks(self, active: Masks) -> Params:
        """`active` by weight path, shaped to multiply the stack, its gradient, its update or its moments."""
        masks: Params = {}
        for s in self.stacks:
            mask = active[s.name]
            masks |= {s.path("lora_A"): mask[:, :, None], s.path("lora_E"): mask, s.path("lora_B"): mask[:, None, :]}
        return masks

    def penalty(self, params: Params, active: Masks) -> jax.Array:
        """Mean over all 2n factors of ‖lora_A lora_Aᵀ − I‖ and ‖lora_Bᵀ lora_B − I‖ (Frobenius, not squared).

        Inactive triplets count for nothing.
        """
        total = jnp.zeros(())
        for s in self.stacks:
            for factors in (params[s.path("lora_A")], params[s.path("lora_B")].swapaxes(1, 2)):
                total += _departure_from_orthogonality(factors, active[s.name])
        return total / (2 * self.matrix_count)

    def update(
        self, state: AllocatorState, params: Params, grads: Params, phase: Phase
    ) -> tuple[AllocatorState, Params]:
        """After an optimizer step: scores `params` (already updated) with `grads` (as the optimizer saw them), prunes.

        Returns the new state and `params` with `lora_E` of pruned triplets set to 0. Until the pattern is fixed
        `lora_E` keeps its gradient and moments, so that a triplet may grow back before the next allocation.
        """
        state = jax.lax.cond(phase.scores, self._score, lambda state, *_: state, state, params, grads)
        alive = jax.lax.cond(phase.allocates, self._survivors, lambda state, _: state.alive, state, phase.budget)
        params = dict(params)
        for s in self.stacks:
            path = s.path("lora_E")
            params[path] = jnp.where(phase.prunes & ~alive[s.name], 0.0, params[path])
        return state._replace(alive=alive), params

    def ranks(self, state: AllocatorState) -> jax.Array:
        """Surviving triplets per matrix, i32[n], block after block."""
        return jnp.stack([jnp.sum(state.alive[s.name], axis=1) for s in self.stacks], axis=1).reshape(-1)

    def _score(self, state: AllocatorState, params: Params, grads: Params) -> AllocatorState:
        beta1, beta2 = self.config.beta1, self.config.beta2
        importance, uncertainty = {}, {}
        for path, average in state.importance.items():
            sensitivity = jnp.abs(params[path] * grads[path])
            importance[path] = beta1 * average + (1 - beta1) * sensitivity
            deviation = jnp.abs(sensitivity - importance[path])
            uncertainty[path] = beta2 * state.uncertainty[path] + (1 - beta2) * deviation
        return AllocatorState(importance, uncertainty, state.alive)

    def triplet_scores(self, state: AllocatorState) -> jax.Array:
        """S_i of all triplets, f32[R], block after block and matrix after matrix: score of lora_E plus mean scores of its
        row and column."""

        def element(path: str) -> jax.Array:
            return state.importance[path] * state.uncertainty[path]

        scores = [
            element(s.path("lora_E"))
            + jnp.mean(element(s.path("lora_A")), axis=2)
            + jnp.mean(element(s.path("lora_B")), axis=1)
            for s in self.stacks
        ]
        return jnp.stack(scores, axis=1).reshape(-1)

    def _survivors(self, state: AllocatorState, budget: jax.Array) -> Masks:
        order = jnp.argsort(-self.triplet_scores(state), stable=True)
        layers, rank = self.stacks[0].shape("lora_E")
        sizes = np.tile(np.repeat(self._sizes(), rank), layers)
        # A little more, for sums of so many numbers are rounded.
        within = jnp.cumsum(jnp.asarray(sizes)[order]) <= budget * sizes.mean() * (1 + 1e-5)
        alive = jnp.zeros(len(sizes), bool).at[order].set(within).reshape(layers, len(self.stacks), rank)
        return {s.name: alive[:, index] for index, s in enumerate(self.stacks)}

    def _sizes(self) -> np.ndarray:
        """What one triplet of each stack takes of the budget, f32: its weights, or 1 as in PEFT."""
        weights = [1 if self.config.peft_compatible else s.adapter.d_in + s.adapter.d_out + 1 for s in self.stacks]
        return np.array(weights, np.float32)


def _departure_from_orthogonality(factors: jax.Array, active: jax.Array) -> jax.Array:
    """Sum over matrices m of ‖F Fᵀ − I‖ on active triplets; factors [m, r, d], active [m, r]."""
    gram = exact_product(factors, factors.swapaxes(1, 2))
    difference = (gram - jnp.eye(gram.shape[-1])) * active[:, :, None] * active[:, None, :]
    squares = jnp.sum(jnp.square(difference), axis=(1, 2))
    # The root has no gradient at 0, which a matrix without active triplets reaches.
    positive = squares > 0
    return jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0))
