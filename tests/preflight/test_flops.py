"""Counts of matmul FLOPs against hand counts and XLA's own cost analysis."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from gemma_keras.config.sections import AdapterConfig, DataConfig, TrainConfig
from gemma_keras.config.stages import StepConfig
from gemma_keras.models.architecture import LayerSpec
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.weight_table import PROJECTIONS
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.preflight.flops import largest_shapes, matmul_flops
from gemma_keras.training.program import train_program

ROWS, WIDE, NARROW = 128, 512, 256
UNIT = 2 * ROWS * NARROW * WIDE  # FLOPs of one matmul between the two widths


def spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def block(x, weights):
    return jnp.tanh(x @ weights[0]) @ weights[1]


WEIGHTS = [(spec(NARROW, WIDE), spec(WIDE, NARROW))] * 2
X = spec(ROWS, NARROW)


def loss(weights, x, block=block):
    for layer in weights:
        x = block(x, layer)
    return jnp.sum(x**2)


def test_gradient_of_a_small_network_is_counted_by_hand_and_as_xla_counts_it():
    traced = jax.jit(jax.grad(loss)).trace(WEIGHTS, X)
    counted = matmul_flops(traced.jaxpr)
    # 4 matmuls forward, for each a gradient of its weight, and of its input but for the first.
    assert counted.total == (4 + 4 + 3) * UNIT
    assert counted.parts == {"rest": counted.total}
    assert counted.total == pytest.approx(traced.lower().compile().cost_analysis()["flops"], rel=0.01)


def test_what_is_computed_again_is_counted_and_what_nobody_uses_is_not():
    remat = jax.jit(jax.grad(lambda w, x: loss(w, x, jax.checkpoint(block)))).trace(WEIGHTS, X)
    # The first matmul of each block again; the second one's output is not needed for its gradients.
    assert matmul_flops(remat.jaxpr).total == (11 + 2) * UNIT

    def unused(weights, x):
        x @ weights[0][0]
        return jnp.sum(x @ weights[1][0])

    assert matmul_flops(jax.jit(unused).trace(WEIGHTS, X).jaxpr).total == UNIT


def test_a_saved_output_is_not_computed_again():
    def named(x, weights):
        return jax.ad_checkpoint.checkpoint_name(x @ weights[0], "wide").clip(0) ** 2 @ weights[1]

    policy = jax.checkpoint_policies.save_only_these_names("wide")
    saved = jax.jit(jax.grad(lambda w, x: loss(w, x, jax.checkpoint(named, policy=policy)))).trace(WEIGHTS, X)
    assert matmul_flops(saved.jaxpr).total == 11 * UNIT


def test_loops_and_branches():
    def scanned(x, weights):
        return jax.lax.scan(lambda c, w: (block(c, w), None), x, weights)[0]

    stacked = (spec(7, NARROW, WIDE), spec(7, WIDE, NARROW))
    assert matmul_flops(jax.jit(scanned).trace(X, stacked).jaxpr).total == 7 * 2 * UNIT

    def branching(x, weights, flag):
        return jax.lax.cond(flag, lambda: block(x, weights), lambda: x)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert matmul_flops(jax.jit(branching).trace(X, WEIGHTS[0], flag).jaxpr).total == 2 * UNIT

    def endless(x, weights):
        return jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: block(c, weights), x)

    counted = matmul_flops(jax.jit(endless).trace(X, WEIGHTS[0]).jaxpr)
    assert (counted.total, counted.unknown_loops) == (2 * UNIT, 1)


def test_a_shard_maps_body_counts_once_a_device():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    p = jax.sharding.PartitionSpec
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(p(), p(None, "model")), out_specs=p(None, "model"))
    abstract = jax.sharding.AbstractMesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    four = jax.shard_map(
        lambda x, w: x @ w, mesh=abstract, in_specs=(p(), p(None, "model")), out_specs=p(None, "model")
    )
    replicated = jax.shard_map(lambda x, w: x @ w, mesh=abstract, in_specs=(p(), p()), out_specs=p(), check_vma=False)
    for function, times in ((mapped, 1), (four, 1), (replicated, 4)):
        assert matmul_flops(jax.make_jaxpr(function)(X, WEIGHTS[0][0])).total == times * UNIT


@pytest.mark.parametrize("name", ["gemma2_tiny", "gemma3_tiny"])
def test_of_a_frozen_base_the_policy_projections_runs_no_projection_twice(name):
    """2 FLOPs a weight and token forward, 2 for the gradient of the input; `matmul` runs query, key and value once more."""
    config = StepConfig(
        data=DataConfig(sequence_length=128), adapter=AdapterConfig(method="lora"), train=TrainConfig(batch_rows=2)
    )
    architecture = get_architecture(name).replace(num_layers=2, pattern=(LayerSpec(window=64),))
    sizes = {kind.name: architecture.num_layers * math.prod(kind.shape(architecture)) for kind in PROJECTIONS}
    expected = {"projections": 4 * sum(sizes.values())}
    expected["matmul"] = expected["projections"] + 2 * sum(sizes[name] for name in ("query", "key", "value"))
    for policy, flops_a_token in expected.items():
        program = train_program(config, architecture, ComputePlan(remat=policy))
        trace = program.step.trace(program.state, program.frozen, program.batch, program.settings)
        assert matmul_flops(trace.jaxpr).parts["rest"] == 2 * 128 * flops_a_token


@pytest.mark.parametrize("cap", [None, 50.0])
def test_splash_kernels_count_the_blocks_that_their_mask_leaves(cap):
    heads, time, head_dim = 2, 1024, 128
    blocks = splash.BlockSizes(
        block_q=256, block_kv=256, block_q_dkv=256, block_kv_dkv=256, block_q_dq=256, block_kv_dq=256
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((time, time))] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=1,
        attn_logits_soft_cap=cap,
    )  # fmt: skip
    shapes = [spec(heads, time, head_dim)] * 3
    counted = matmul_flops(jax.make_jaxpr(kernel)(*shapes))
    block_pairs = 4 * 5 // 2  # of 4 x 4, those on and below the diagonal
    assert counted.attention == counted.total == heads * block_pairs * 2 * (2 * 256 * 256 * head_dim)
    assert counted.visits == {block_pairs: 1}

    def summed(*arrays):
        return jnp.sum(kernel(*arrays))

    backward = matmul_flops(jax.make_jaxpr(jax.grad(summed, argnums=(0, 1, 2)))(*shapes))
    # forward; keys and values; queries
    assert backward.attention == pytest.approx((2 + 4 + 3) / 2 * counted.attention, rel=0.01)
    assert backward.visits == {block_pairs: 3}


def test_masks_of_a_kernel_that_a_jitted_function_makes_are_found_too():
    """As MaxText makes it: its masks are results of a call, pinned to devices and handed to a `shard_map` in a loop."""
    heads, time, head_dim, layers = 2, 1024, 128, 3
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    p = jax.sharding.PartitionSpec

    @jax.jit
    def make() -> splash.SplashAttentionKernel:
        blocks = splash.BlockSizes(
            block_q=256, block_kv=256, block_q_dkv=256, block_kv_dkv=256, block_q_dq=256, block_kv_dq=256
        )
        mask = masks.MultiHeadMask([masks.LocalMask((time, time), (255, 0), 0)] * heads)
        return splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1)

    @jax.checkpoint
    def layer(x, _):
        pinned = jax.tree.map(
            lambda mask: jax.lax.with_sharding_constraint(mask, jax.sharding.NamedSharding(mesh, p())), make()
        )
        mapped = jax.shard_map(
            lambda kernel, x: jax.vmap(kernel)(x, x, x), mesh=mesh, in_specs=(p(), p("data")), out_specs=p("data"),
            check_vma=False,
        )  # fmt: skip
        return mapped(pinned, x), None

    def summed(x):
        return jnp.sum(jax.lax.scan(layer, x, None, length=layers)[0])

    block_pairs = 4 + 3  # of 4 x 4, those on the diagonal and below it
    x = spec(8, heads, time, head_dim)
    forward = matmul_flops(jax.make_jaxpr(summed)(x))
    assert forward.visits == {block_pairs: 4 * layers}
    assert forward.attention == layers * 8 * heads * block_pairs * 2 * (2 * 256 * 256 * head_dim)
    backward = matmul_flops(jax.make_jaxpr(jax.grad(summed))(x))
    assert backward.visits == {block_pairs: 4 * layers * 4}  # forward twice; keys and values; queries


def test_parts_are_told_by_scope():
    def scoped(x, weights):
        with jax.named_scope("attention"):
            x = x @ weights[0]
        with jax.named_scope("log_probs"):
            return x @ weights[1]

    parts = matmul_flops(jax.jit(scoped).trace(X, WEIGHTS[0]).jaxpr).parts
    assert parts == {"attention": UNIT, "log_probs": UNIT}


def test_largest_shapes_are_those_of_the_whole_program():
    def inner(x, weights):
        return jax.jit(lambda a: (a @ weights[0]).sum())(x)

    assert largest_shapes(jax.jit(inner).trace(X, WEIGHTS[0]).jaxpr, 2)[0] == (ROWS, WIDE)
