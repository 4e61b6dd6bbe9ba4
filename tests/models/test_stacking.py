"""Stacks over the blocks: back and forth, and the same model either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.adapters.inject import add_adapters
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.architecture import LayerSpec
from gemma_keras.models.forward import build_backbone, forward, logits, variable_shapes
from gemma_keras.models.quantization import Int8, quantize_params
from gemma_keras.models.stacking import UnstackedParams, is_stacked, stack_params, stacked_shapes
from gemma_keras.parallel.plan import ONE_DEVICE, REMAT_POLICIES, ComputePlan
from tests.models.conftest import lively_params, small, small_gemma1

SHAPES = {
    "Gemma 2, odd": small(num_layers=3),
    "Gemma 2, even": small(num_layers=4),
    "Gemma 2, one block": small(num_layers=1),
    "Gemma 1, odd": small_gemma1(num_layers=3),
    "Gemma 1, even": small_gemma1(num_layers=2),
    "Gemma 1, one block": small_gemma1(num_layers=1),
}
# Five local blocks, then one that sees everything, with angles of its own; two blocks are left over.
PERIOD_OF_SIX = small(
    num_layers=26,
    pattern=(*[LayerSpec(window=8)] * 5, LayerSpec(rope_base=1_000_000.0, rope_scaling=8.0)),
)


def gentle(architecture):
    """Weights at which gradients keep their digits through all blocks."""
    return lively_params(architecture, gain=1.0)


def batch(rows=2, length=20):
    """Two segments and padding; longer than the window of 8."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (rows, length)), jnp.int32)
    segments = jnp.broadcast_to(jnp.asarray([1] * 12 + [2] * 6 + [0] * 2, jnp.int32), tokens.shape)
    positions = jnp.broadcast_to(jnp.asarray([*range(12), *range(6), 0, 0], jnp.int32), tokens.shape)
    return tokens, positions, segments


def hidden_and_gradients(architecture, params, plan=ONE_DEVICE):
    backbone = build_backbone(architecture, "float32")
    tokens, positions, segments = batch()
    target = jnp.asarray(np.random.default_rng(1).normal(size=(*tokens.shape, 64)), jnp.float32)

    def loss(params):
        hidden = forward(backbone, params, tokens, positions, segments, plan=plan)
        return jnp.mean(jnp.where(segments[..., None] > 0, hidden * target, 0.0)), hidden

    (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(hidden[segments > 0]), grads


def assert_same(actual, expected):
    """Within 1e-6 of the largest value of each array."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", SHAPES)
def test_stacks_give_what_paths_give(name):
    architecture = SHAPES[name]
    params = gentle(architecture)
    stacks = stack_params(dict(params))
    hidden, grads = hidden_and_gradients(architecture, params)
    stacked_hidden, stacked_grads = hidden_and_gradients(architecture, stacks)
    assert_same(stacked_hidden, hidden)
    assert stacked_grads.keys() == stacks.keys()
    for path, grad in UnstackedParams(stacked_grads).items():
        assert np.abs(grads[path]).max() > 0, path
        assert_same(grad, np.asarray(grads[path]))


def test_the_order_of_blocks_matters():
    """So the comparison above would see blocks, or their windows, in another order."""
    architecture = small(num_layers=4)
    stacks = stack_params(gentle(architecture))
    other = {path: stack[::-1] if path.startswith("decoder_blocks/") else stack for path, stack in stacks.items()}
    difference = hidden_and_gradients(architecture, stacks)[0] - hidden_and_gradients(architecture, other)[0]
    assert np.abs(difference).max() > 1e-2


def test_a_pattern_of_six_with_26_layers():
    """Four whole periods are scanned and two blocks follow: logits and gradients are those of blocks one by one.

    Rounding of 26 blocks adds up: equal here is within 1e-5 of the largest value of each array.
    """
    params = gentle(PERIOD_OF_SIX)
    assert [layer for layer, spec in enumerate(PERIOD_OF_SIX.layers) if spec.window is None] == [5, 11, 17, 23]
    hidden, grads = hidden_and_gradients(PERIOD_OF_SIX, params)
    stacked_hidden, stacked_grads = hidden_and_gradients(PERIOD_OF_SIX, stack_params(dict(params)))
    backbone = build_backbone(PERIOD_OF_SIX, "float32")
    unrolled, scanned = (np.asarray(logits(backbone, params, jnp.asarray(x))) for x in (hidden, stacked_hidden))
    np.testing.assert_allclose(scanned, unrolled, rtol=0, atol=1e-5 * np.abs(unrolled).max())
    for path, grad in UnstackedParams(stacked_grads).items():
        largest = np.abs(grads[path]).max()
        assert largest > 0, path
        np.testing.assert_allclose(grad, grads[path], rtol=0, atol=1e-5 * max(1.0, largest))


def test_every_one_of_26_blocks_counts():
    """A block whose outputs are 0 leaves the stream as it is; without it, or with other angles, the result is another."""

    def run(architecture):
        backbone = build_backbone(architecture, "float32")
        return jax.jit(lambda params: forward(backbone, params, *batch()))

    stacks, whole = stack_params(gentle(PERIOD_OF_SIX)), run(PERIOD_OF_SIX)
    outputs = [f"decoder_blocks/{name}/kernel" for name in ("attention/attention_output", "ffw_linear")]
    segments = batch()[2] > 0
    expected = whole(stacks)[segments]
    for removed in range(26):
        without = stacks | {path: stacks[path].at[removed].set(0.0) for path in outputs}
        assert np.abs(whole(without)[segments] - expected).max() > 1e-2, removed
    for spec in (LayerSpec(rope_base=1_000_000.0), LayerSpec(rope_scaling=8.0)):
        other = PERIOD_OF_SIX.replace(pattern=(*PERIOD_OF_SIX.pattern[:5], spec))
        assert np.abs(run(other)(stacks)[segments] - expected).max() > 1e-3


def test_frozen_rows_of_every_round_and_of_what_is_left_over():
    """Beside adapters, where a block is left over, frozen rows come out of whole stacks, in the second round, too."""
    architecture = small(num_layers=5)
    backbone = build_backbone(architecture, "float32")
    add_adapters(backbone, AdapterConfig(method="lora", dropout=0.0))
    shapes, rng = variable_shapes(backbone), np.random.default_rng(2)
    params = gentle(architecture)
    params |= {
        path: jnp.asarray(0.2 * rng.normal(size=shapes[path].shape), jnp.float32)
        for path in sorted(shapes.keys() - params.keys())
    }
    run = jax.jit(lambda params: forward(backbone, params, *batch()))
    segments = batch()[2] > 0
    assert_same(run(stack_params(dict(params)))[segments], np.asarray(run(params)[segments]))


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_every_policy_gives_the_same(remat):
    architecture = small(num_layers=3)
    stacks = stack_params(gentle(architecture))
    hidden, grads = hidden_and_gradients(architecture, gentle(architecture))
    remat_hidden, remat_grads = hidden_and_gradients(architecture, stacks, ComputePlan(remat=remat))
    assert_same(remat_hidden, hidden)
    for path, grad in UnstackedParams(remat_grads).items():
        assert_same(grad, np.asarray(grads[path]))


@pytest.mark.parametrize("architecture", [small(num_layers=3), PERIOD_OF_SIX.replace(num_layers=8)])
def test_stacks_in_another_form_are_scanned_alike(architecture):
    """Weights of 8 bits stand for any form that is not a plain array, such as a base of 4 bits."""
    backbone = build_backbone(architecture, "float32")
    run = jax.jit(lambda params: forward(backbone, params, *batch()))
    stacks = quantize_params(stack_params(gentle(architecture)))
    expected, segments = run(quantize_params(gentle(architecture))), batch()[2] > 0
    assert isinstance(stacks["decoder_blocks/ffw_linear/kernel"], Int8)
    assert_same(run(stacks)[segments], np.asarray(expected[segments]))
    for path, value in UnstackedParams(stacks).items():
        assert value.shape == variable_shapes(backbone)[path].shape


def test_there_and_back():
    params = lively_params(small(num_layers=3))
    given = dict(params)
    stacks = stack_params(given)
    assert not given and is_stacked(stacks) and not is_stacked(params)
    assert stacks["decoder_blocks/ffw_linear/kernel"].shape == (3, 96, 64)
    back = UnstackedParams(stacks)
    assert set(back) == set(params) and len(back) == len(params)
    for path, value in params.items():
        np.testing.assert_array_equal(back[path], value)
    with pytest.raises(KeyError):
        back["decoder_block_0/nothing"]


def test_rows_are_those_of_the_blocks_beyond_the_tenth():
    """Sorted by name, block 10 would come before block 2."""
    params = {f"decoder_block_{layer}/x/scale": jnp.full(2, layer) for layer in (11, 2, 10, *range(2), *range(3, 10))}
    np.testing.assert_array_equal(stack_params(params)["decoder_blocks/x/scale"][:, 0], np.arange(12))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_arrays(name):
    shapes = variable_shapes(build_backbone(SHAPES[name], "float32"))
    stacks = stack_params(lively_params(SHAPES[name]))
    expected = {path: (spec.shape, spec.dtype) for path, spec in stacked_shapes(shapes).items()}
    assert {path: (stack.shape, stack.dtype) for path, stack in stacks.items()} == expected
