"""AdaLoRA's budget of ranks: which triplets of which matrices survive (arXiv 2303.10512, section 3.2 and 3.3).

Axes: r triplets of one matrix, R triplets of all matrices together.

Numerically as `peft/tuners/adalora/layer.py`, except for what `peft_compatible=False` mends: equal scores cannot
over-prune, target_r may equal init_r, and once the pattern is fixed pruned triplets leave the penalty and get neither
updates nor moments, so that dropping them physically changes nothing for the survivors.

`t` is the number of optimizer steps completed. Everything but the schedule runs inside the jitted train step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_keras.adapters.inject import AdaptedMatrix, Params
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import AdapterConfig

Masks = dict[str, jax.Array]


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
        """The step after which the pattern is fixed; `tfinal` is a duration counted from the end."""
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

    def allocates(self, t):
        """Whether triplets are chosen anew after step t; `t` may be traced."""
        return (t > self.tinit) & (t <= self.fixed_at) & ((t % self.delta_t == 0) | (t == self.fixed_at))

    def describe(self) -> str:
        """One line for the log: the phases in steps and the budgets in triplets."""
        return (
            f"AdaLoRA: steps 1-{self.tinit} at {self.initial_budget} ranks, then every {self.delta_t} steps down to "
            f"{self.target_budget} at step {self.fixed_at}, fixed for the last {self.tfinal} steps"
        )


def resolve_schedule(config: AdapterConfig, total_steps: int, matrices: int) -> RankSchedule:
    """Turns fractions of the run into steps.

    Raises:
        UserError: the phases do not leave a step for budgeting, or target_r is above init_r.
    """
    tinit, tfinal = (
        int(value * total_steps) if 0 < value < 1 else int(value) for value in (config.tinit, config.tfinal)
    )
    if tinit + tfinal >= total_steps:
        raise UserError(
            f"adapter.tinit={config.tinit} and adapter.tfinal={config.tfinal} take {tinit} + {tfinal} of {total_steps} "
            "steps; expected less than all of them: lower both, give them as fractions, or train for longer."
        )
    if config.target_r > config.init_r:
        raise UserError(f"adapter.target_r={config.target_r} is above adapter.init_r={config.init_r}; lower it.")
    budgets = (config.init_r * matrices, config.target_r * matrices)
    return RankSchedule(total_steps, tinit, tfinal, config.delta_t, *budgets)


class AllocatorState(NamedTuple):
    """Averages of every adapter weight by path, and the surviving triplets [r] of every matrix by name."""

    importance: Params
    uncertainty: Params
    alive: Masks


class RankAllocator:
    """Scores triplets after every optimizer step and prunes them by the schedule, all as pure functions of arrays."""

    def __init__(self, matrices: list[AdaptedMatrix], config: AdapterConfig, total_steps: int):
        self.matrices = matrices
        self.config = config
        self.schedule = resolve_schedule(config, total_steps, len(matrices))
        # Computed in double precision beforehand, so that truncation agrees with PEFT at every step.
        self._budgets = np.array([self.schedule.budget(t) for t in range(self.schedule.fixed_at + 1)], np.int32)

    def init(self) -> AllocatorState:
        """Nothing scored yet, every triplet alive."""
        shapes = {
            m.path(weight): jnp.zeros(getattr(m.adapter, weight).shape)
            for m in self.matrices
            for weight in m.adapter.weight_names
        }
        alive = {m.name: jnp.ones(m.adapter.rank, bool) for m in self.matrices}
        return AllocatorState(shapes, jax.tree.map(jnp.copy, shapes), alive)

    def active(self, state: AllocatorState, t: jax.Array) -> Masks:
        """Per matrix f32[r]: the triplets that the step after t trains; all of them until the pattern is fixed."""
        if self.config.peft_compatible:
            return {name: jnp.ones(alive.shape) for name, alive in state.alive.items()}
        fixed = t >= self.schedule.fixed_at
        return {name: jnp.where(fixed, alive, True).astype(jnp.float32) for name, alive in state.alive.items()}

    def weight_masks(self, active: Masks) -> Params:
        """`active` by weight path, shaped to multiply the weight, its gradient, its update or its moments."""
        masks: Params = {}
        for m in self.matrices:
            mask = active[m.name]
            masks |= {m.path("lora_A"): mask[:, None], m.path("lora_E"): mask, m.path("lora_B"): mask[None, :]}
        return masks

    def penalty(self, params: Params, active: Masks) -> jax.Array:
        """Mean over all 2n factors of ‖lora_A lora_Aᵀ − I‖ and ‖lora_Bᵀ lora_B − I‖ (Frobenius, not squared).

        Factors of equal shape are stacked, so that few kernels run; inactive triplets count for nothing.
        """
        stacks: dict[tuple[int, ...], list[tuple[jax.Array, jax.Array]]] = {}
        for m in self.matrices:
            for factor in (params[m.path("lora_A")], params[m.path("lora_B")].T):
                stacks.setdefault(factor.shape, []).append((factor, active[m.name]))
        total = sum(_departure_from_orthogonality(*map(jnp.stack, zip(*s, strict=True))) for s in stacks.values())
        return jnp.asarray(total / (2 * len(self.matrices)))

    def update(
        self, state: AllocatorState, params: Params, grads: Params, t: jax.Array
    ) -> tuple[AllocatorState, Params]:
        """After optimizer step t: scores `params` (already updated) with `grads` (as the optimizer saw them), prunes.

        Returns the new state and `params` with `lora_E` of pruned triplets set to 0. Until the pattern is fixed
        `lora_E` keeps its gradient and moments, so that a triplet may grow back before the next allocation.
        """
        schedule = self.schedule
        state = jax.lax.cond(t < schedule.fixed_at, self._score, lambda state, *_: state, state, params, grads)
        allocates = schedule.allocates(t)
        budget = jnp.asarray(self._budgets)[jnp.minimum(t, schedule.fixed_at)]
        alive = jax.lax.cond(allocates, self._survivors, lambda state, _: state.alive, state, budget)
        prunes = allocates | (t > schedule.fixed_at)
        params = dict(params)
        for m in self.matrices:
            path = m.path("lora_E")
            params[path] = jnp.where(prunes & ~alive[m.name], 0.0, params[path])
        return state._replace(alive=alive), params

    def ranks(self, state: AllocatorState) -> jax.Array:
        """Surviving triplets per matrix, i32[n], in the order of `matrices`."""
        return jnp.stack([jnp.sum(state.alive[m.name]) for m in self.matrices])

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
        """S_i of all triplets, f32[R], matrix after matrix: score of lora_E plus mean scores of its row and column."""

        def element(path: str) -> jax.Array:
            return state.importance[path] * state.uncertainty[path]

        scores = [
            element(m.path("lora_E"))
            + jnp.mean(element(m.path("lora_A")), axis=1)
            + jnp.mean(element(m.path("lora_B")), axis=0)
            for m in self.matrices
        ]
        return jnp.concatenate(scores)

    def _survivors(self, state: AllocatorState, budget: jax.Array) -> Masks:
        scores = self.triplet_scores(state)
        place = jnp.argsort(jnp.argsort(-scores, stable=True), stable=True)
        alive = place < budget
        edges = np.cumsum([m.adapter.rank for m in self.matrices])[:-1]
        parts = jnp.split(alive, edges)
        return {m.name: part for m, part in zip(self.matrices, parts, strict=True)}


def _departure_from_orthogonality(factors: jax.Array, active: jax.Array) -> jax.Array:
    """Sum over matrices m of ‖F Fᵀ − I‖ on active triplets; factors [m, r, d], active [m, r]."""
    gram = jnp.einsum("mrd,msd->mrs", factors, factors)
    difference = (gram - jnp.eye(gram.shape[-1])) * active[:, :, None] * active[:, None, :]
    squares = jnp.sum(jnp.square(difference), axis=(1, 2))
    # The root has no gradient at 0, which a matrix without active triplets reaches.
    positive = squares > 0
    return jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0))
