"""Optimizers and learning-rate schedules, all of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemma_keras.config.sections import OptimConfig, in_steps
from gemma_keras.models.weight_table import kind_of


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine to 0 at `total_steps` or a constant; step 0 is the first step.

    As transformers' `get_cosine_schedule_with_warmup`: the first step of a warm-up has rate 0.
    """
    warmup = in_steps(config.warmup, total_steps)
    decay_steps = max(total_steps - warmup, 1)
    after = (
        optax.cosine_decay_schedule(config.learning_rate, decay_steps)
        if config.schedule == "cosine"
        else optax.constant_schedule(config.learning_rate)
    )
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), after], [warmup])


def learning_rates(config: OptimConfig, total_steps: int) -> np.ndarray:
    """The rate of every step of a run, f32[total_steps]."""
    return np.asarray(jax.vmap(learning_rate_schedule(config, total_steps))(jnp.arange(total_steps)), np.float32)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW or plain SGD, before the learning rate: the update is minus the rate times what this returns.

    The rate comes from the host step by step, so that one compiled program serves a run of any length. Clipping is a step
    of its own, too, since the rank allocator scores the clipped gradient.
    """
    if config.name == "sgd":
        return optax.identity()
    return optax.chain(
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: {path: kind_of(path).decays for path in params}
        ),
    )


def clip_by_global_norm(grads, clip_norm: float):
    """(clipped gradients, global norm before clipping); `clip_norm` 0 clips nothing."""
    norm = optax.tree.norm(grads)
    if clip_norm > 0:
        scale = clip_norm / jnp.maximum(norm, clip_norm)
        grads = jax.tree.map(lambda g: g * scale, grads)
    return grads, norm
