"""Other places for triplets to start at than noise: leading singular vectors, of the loss's gradient or of the kernels.

Axes: L blocks, r triplets of one matrix, d_in input features, d_out output features.

`benchmarks.adapter_quality` tunes from these to see what they are worth. The vectors are found by subspace iteration (Halko et
al., arXiv 0909.4061, algorithm 4.4), which takes products with the matrix only: of the gradient these are the gradients of
`lora_B` and of `lora_A`, so that nothing of the size of the matrices is kept. The model starts as it is: where AdaLoRA starts
from noise, `lora_E` is 0; where it starts as LoRA does, `lora_B`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gemma_keras.adapters.inject import AdapterStack
from gemma_keras.data.pipeline import batches
from gemma_keras.models.forward import Params
from gemma_keras.stages.running.training_run import TrainingRun

ROUNDS, STEPS = 2, 8  # of the iteration; and the batches whose gradient counts, those of the first steps


def gradient_start(run: TrainingRun) -> Params:
    """The trainable weights of a run that is compiled, with directions from the loss of its first batches."""
    config, program = run.config, run.program
    rows = list(
        batches(
            run.splits["train"], start_step=0, steps=STEPS, batch_rows=config.train.batch_rows, seed=config.train.seed,
            loss_on=config.data.loss_on,
        )
    )  # fmt: skip

    @jax.jit
    def gradient(trainable: Params, frozen: Params, batch: dict[str, jax.Array]) -> Params:
        return jax.grad(lambda weights: program.objective.sums(weights, frozen, batch, jax.random.key(0)).loss)(
            trainable
        )

    def products(trainable: Params) -> Params:
        found = (gradient(trainable, run.frozen, program.place(batch)) for batch in rows)
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), found)

    return directions(_stacks(run), run.trainable, products, config.train.seed)


def kernel_start(run: TrainingRun) -> Params:
    """The same with directions of the frozen kernels themselves, as PiSSA (arXiv 2404.02948) takes them."""
    kernels = {}
    for s in _stacks(run):
        axes, kernel = s.adapter.axes, run.frozen[f"{s.name}/kernel"]
        matrix = jnp.einsum(f"L{axes.kernel}->L{axes.outputs}{axes.inputs}", kernel)
        kernels[s] = matrix.reshape(len(s.matrices), s.adapter.d_out, s.adapter.d_in)

    def products(trainable: Params) -> Params:
        found = {}
        for s, matrix in kernels.items():
            found[s.path("lora_B")] = jnp.einsum("loi,lri->lor", matrix, trainable[s.path("lora_A")])
            found[s.path("lora_A")] = jnp.einsum("loi,lor->lri", matrix, trainable[s.path("lora_B")])
        return found

    return directions(list(kernels), run.trainable, products, run.config.train.seed)


def directions(
    stacks: list[AdapterStack], trainable: Params, products: Callable[[Params], Params], seed: int
) -> Params:
    """`trainable` with lora_A [L, r, d_in] and lora_B [L, d_out, r] at leading right and left singular vectors of G, the
    strongest first.

    Args:
        products: from weights to lora_B's G lora_Aᵀ where lora_B is 0, and lora_A's lora_Bᵀ G where lora_A is 0, by path; a
            factor by triplet changes nothing.
    """
    params = dict(trainable)
    for number, s in enumerate(stacks):
        key = jax.random.fold_in(jax.random.key(seed), number)
        params[s.path("lora_A")] = jax.random.normal(key, s.shape("lora_A"))
        params[s.path("lora_E")] = jnp.ones(s.shape("lora_E"))
    for _ in range(ROUNDS):
        params |= {s.path("lora_B"): jnp.zeros(s.shape("lora_B")) for s in stacks}
        found = products(params)
        params |= {s.path("lora_B"): jnp.linalg.qr(found[s.path("lora_B")])[0] for s in stacks}
        params |= {s.path("lora_A"): jnp.zeros(s.shape("lora_A")) for s in stacks}
        found = products(params)
        for s in stacks:
            rotation, _, rows = jnp.linalg.svd(found[s.path("lora_A")], full_matrices=False)
            params[s.path("lora_A")], params[s.path("lora_B")] = rows, params[s.path("lora_B")] @ rotation
    for s in stacks:
        off = "lora_E" if s.adapter.start == "noise" else "lora_B"
        params[s.path(off)] = jnp.zeros(s.shape(off))
    return params


def _stacks(run: TrainingRun) -> list[AdapterStack]:
    assert run.program.allocator is not None, "for AdaLoRA"
    return run.program.allocator.stacks
