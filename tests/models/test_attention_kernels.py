"""Attention against its definition and torch, and every kernel against the reference, on one device and on meshes."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import ClosedJaxpr, Jaxpr

from gemma_keras.config.errors import UserError
from gemma_keras.models.attention_kernels.blockwise import LOOP_FROM
from gemma_keras.models.attention_kernels.grouped_query import Source, attention, choose_kernel, packed_attention
from gemma_keras.models.quantization import quantized
from gemma_keras.parallel.plan import RESIDUALS
from tests.cpu_devices import environment_of


def plain_attention(q, k, v, query_positions, key_positions, query_segments, key_segments, scale, cap, window):
    """The definition, one head and one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        distance = query_positions[b, t] - key_positions[b]
        seen = (query_segments[b, t] == key_segments[b]) & (key_segments[b] > 0) & (distance >= 0)
        seen &= distance < (window or 10**9)
        values = k[b, :, n // groups] @ q[b, t, n] * scale
        values = values if cap is None else cap * np.tanh(values / cap)
        weights = np.exp(values - values[seen].max()) * seen if seen.any() else np.full(len(seen), np.nan)
        out[b, t, n] = weights @ v[b, :, n // groups] / weights.sum()
    return out


def packed(rng, batch, time, longest=60, padding=5):
    """Positions and segments of rows packed from segments of random lengths, with padding at the end."""
    positions, segments = (np.zeros((batch, time), np.int32) for _ in range(2))
    for b in range(batch):
        start, segment = 0, 1
        while start < time - padding:
            stop = min(start + int(rng.integers(1, longest)), time - padding)
            positions[b, start:stop], segments[b, start:stop] = np.arange(stop - start), segment
            start, segment = stop, segment + 1
    return positions, segments


def arrays_of(rng, batch, time, heads, key_heads, head_dim):
    """query, key, value and an upstream gradient."""
    shapes = ((batch, time, n, head_dim) for n in (heads, key_heads, key_heads, heads))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def output_and_gradients(arrays, segments, kernel, **options):
    """Output, dq, dk, dv of one kernel."""
    options = {"scale": 0.7, "logit_soft_cap": 3.0, "window": None, **options}

    def run(query, key, value):
        return packed_attention(query, key, value, jnp.asarray(segments), kernel=kernel, **options)

    def both(query, key, value, upstream):
        output, pull = jax.vjp(run, query, key, value)
        return output, *pull(upstream)

    return jax.jit(both)(*arrays)


def assert_equal(actual, expected, atol=1e-5):
    for name, ours, theirs in zip(("output", "dq", "dk", "dv"), actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_equals_its_definition(kernel, window, cap, rng):
    q, k, v, _ = arrays_of(rng, 2, 150, 4, 2, 8)
    positions, segments = packed(rng, 2, 150)
    ours = packed_attention(q, k, v, jnp.asarray(segments), kernel=kernel, scale=0.5, logit_soft_cap=cap, window=window)
    expected = plain_attention(q, k, v, positions, positions, segments, segments, 0.5, cap, window)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(ours)[real], expected[real], atol=2e-6)
    assert np.isfinite(ours).all()


def test_keys_in_several_places_are_as_in_one(rng):
    """Also as 8-bit integers, within their rounding."""
    q, k, v, _ = arrays_of(rng, 2, 60, 4, 2, 8)
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    mask = jnp.asarray(rng.random((2, 60, 60)) < 0.3)
    whole = attention(q, [Source(keys, values, mask)], scale=0.5, logit_soft_cap=2.0)
    cuts = ((0, 1), (1, 37), (37, 60))
    parts = [Source(keys[:, :, a:b], values[:, :, a:b], mask[:, :, a:b]) for a, b in cuts]
    np.testing.assert_allclose(attention(q, parts, scale=0.5, logit_soft_cap=2.0), whole, atol=2e-6)
    small = Source(quantized(keys, (3,)), quantized(values, (3,)), mask)
    rounded = attention(q, [small], scale=0.5, logit_soft_cap=2.0)
    assert 1e-6 < np.abs(rounded - whole).max() < 0.05


def test_blockwise_equals_torch(rng):
    arrays = arrays_of(rng, 1, 200, 4, 2, 8)
    positions, segments = packed(rng, 1, 200, padding=0)
    distance = positions[0][:, None] - positions[0]
    visible = (segments[0][:, None] == segments[0]) & (distance >= 0) & (distance < 33)
    q, k, v, upstream = (torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_() for x in arrays)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.tensor(visible), scale=0.7, enable_gqa=True
    )
    out.backward(upstream.detach())
    expected = [x.detach().transpose(1, 2).numpy() for x in (out, q.grad, k.grad, v.grad)]
    assert_equal(output_and_gradients(arrays, segments, "blockwise", logit_soft_cap=None, window=33), expected)


@pytest.mark.parametrize(
    "heads, key_heads, options",
    [
        (2, 2, {}),
        (4, 2, {"window": 100}),
        (4, 1, {"logit_soft_cap": None}),
        (8, 1, {"logit_soft_cap": None, "window": 1}),
    ],
)
def test_blockwise_equals_the_reference(heads, key_heads, options, rng):
    arrays = arrays_of(rng, 1, 512, heads, key_heads, 8)
    segments = packed(rng, 1, 512, longest=400)[1]
    expected = output_and_gradients(arrays, segments, "reference", **options)
    assert_equal(output_and_gradients(arrays, segments, "blockwise", **options), expected)


@pytest.mark.parametrize("time, window", [(LOOP_FROM, None), (LOOP_FROM, 513), (2100, 514), (2100, 5000)])
def test_long_rows_equal_the_reference(time, window, rng):
    arrays = arrays_of(rng, 1, time, 2, 1, 4)
    segments = packed(rng, 1, time, longest=3000, padding=100)[1]
    expected = output_and_gradients(arrays, segments, "reference", window=window)
    assert_equal(output_and_gradients(arrays, segments, "blockwise", window=window), expected)


@pytest.mark.parametrize("time", [1, 128, 129, 2047])
def test_blocks_cover_every_length(time, rng):
    arrays = arrays_of(rng, 1, time, 2, 1, 4)
    segments = np.ones((1, time), np.int32)
    expected = output_and_gradients(arrays, segments, "reference", window=40)
    assert_equal(output_and_gradients(arrays, segments, "blockwise", window=40), expected)


@pytest.mark.parametrize("time", [100, LOOP_FROM])
def test_cap_window_and_segments_matter(time, rng):
    arrays = arrays_of(rng, 1, time, 2, 1, 4)
    segments = packed(rng, 1, time, longest=90)[1]
    run = partial(output_and_gradients, arrays, kernel="blockwise")
    base = run(segments=segments, window=60)
    one_segment = np.where(segments > 0, 1, 0)
    for other in (
        run(segments=segments, window=60, logit_soft_cap=None),
        run(segments=segments, window=30),
        run(segments=one_segment, window=60),
    ):
        for ours, theirs in zip(base, other, strict=True):
            assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() > 1e-2


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
@pytest.mark.parametrize("time", [200, LOOP_FROM])
def test_padding_gives_zeros_and_no_gradient(kernel, time, rng):
    arrays = arrays_of(rng, 2, time, 2, 1, 4)
    segments = packed(rng, 2, time, longest=200, padding=40)[1]
    segments[1] = 0  # a row without a token
    for x in output_and_gradients(arrays, segments, kernel):
        assert np.all(np.asarray(x)[segments == 0] == 0)
        assert np.abs(np.asarray(x)[segments > 0]).max() > 0


def test_bfloat16_equals_float32_within_its_rounding(rng):
    arrays = tuple(x.astype(jnp.bfloat16) for x in arrays_of(rng, 1, 300, 4, 2, 16))
    segments = packed(rng, 1, 300)[1]
    exact = output_and_gradients(tuple(x.astype(jnp.float32) for x in arrays), segments, "reference")
    for ours, theirs in zip(output_and_gradients(arrays, segments, "blockwise"), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours.astype(jnp.float32) - theirs).max() < 0.02 * np.abs(theirs).max()


def inner_jaxprs(jaxpr):
    """`jaxpr` and all jaxprs inside its equations."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if isinstance(parameter, ClosedJaxpr | Jaxpr):
                yield from inner_jaxprs(parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter)


def gradient_jaxpr(time, kernel, policy=None):
    arrays = [jax.ShapeDtypeStruct((2, time, heads, 4), jnp.float32) for heads in (4, 2, 2)]
    segments = jnp.ones((2, time), jnp.int32)

    def total(arrays):
        run = partial(packed_attention, scale=1.0, logit_soft_cap=5.0, window=None, kernel=kernel)
        run = run if policy is None else jax.checkpoint(run, policy=policy)
        return jnp.sum(run(*arrays, segments) ** 2)

    return jax.make_jaxpr(jax.grad(total))(arrays).jaxpr


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
def test_long_rows_have_no_logits_of_all_pairs(kernel):
    """The reference shows that the count sees them."""
    shapes = [v.aval.shape for j in inner_jaxprs(gradient_jaxpr(2048, kernel)) for e in j.eqns for v in e.outvars]
    largest = max(int(np.prod(shape)) for shape in shapes)
    assert largest >= 2 * 4 * 2048 * 4
    assert (largest >= 2 * 4 * 2048 * 2048) == (kernel == "reference")


@pytest.mark.parametrize("time", [512, LOOP_FROM])
def test_saved_residuals_spare_the_second_forward_pass(time):
    def softmaxes(policy):
        """Each block of a forward pass takes the maximum of its logits; the backward pass takes none."""
        jaxprs = inner_jaxprs(gradient_jaxpr(time, "blockwise", policy))
        return sum(equation.primitive.name == "reduce_max" for jaxpr in jaxprs for equation in jaxpr.eqns)

    names = jax.checkpoint_policies.save_only_these_names
    assert 0 < softmaxes(None) == softmaxes(names(RESIDUALS)) < softmaxes(names())


@pytest.mark.parametrize(
    "kind, kernel",
    [("TPU v5 lite", "splash"), ("TPU v6 lite", "splash"), ("TPU v4", "splash"), ("TPU v5p", "splash"), ("TPU v5", "splash"),
     ("TPU7x", "splash"), ("TPU v3", "blockwise"), ("TPU v2", "blockwise"), ("cpu", "blockwise"),
     ("NVIDIA H200", "blockwise")],
)  # fmt: skip
def test_kernel_of_a_device(kind, kernel):
    assert choose_kernel(kind) == kernel


def mesh_of(data, model):
    return jax.sharding.AbstractMesh((data, model), ("data", "model"))


@pytest.mark.parametrize(
    "batch, heads, key_heads, kernel, mesh, sentence",
    [
        (1, 2, 1, "flash", None, "'flash' is not an attention kernel"),
        (3, 8, 4, "blockwise", mesh_of(2, 4), "3 rows cannot be divided by the mesh's data axis of 2"),
        (2, 4, 4, "blockwise", mesh_of(1, 8), "4 query heads with 4 KV heads cannot be divided"),
        (2, 12, 3, "blockwise", mesh_of(1, 2), "12 query heads with 3 KV heads cannot be divided"),
        (1, 2, 1, "splash", None, "Rows of 100 tokens do not suit the splash kernel"),
    ],
)
def test_mistakes_are_told(batch, heads, key_heads, kernel, mesh, sentence, rng):
    arrays = arrays_of(rng, batch, 100, heads, key_heads, 4)
    with pytest.raises(UserError, match=sentence):
        output_and_gradients(arrays, np.ones((batch, 100), np.int32), kernel, mesh=mesh)


MESHES = """
import jax, numpy as np
from jax.sharding import Mesh
from tests.models.test_attention_kernels import arrays_of, assert_equal, output_and_gradients, packed
from gemma_keras.models.attention_kernels import splash as splash_attention
splash_attention.INTERPRET = True
rng = np.random.default_rng(0)
cases = [(1, 8, 8, 4, "blockwise"), (2, 4, 8, 4, "blockwise"), (2, 4, 8, 1, "reference"), (8, 1, 8, 4, "blockwise"),
         (1, 8, 8, 8, "reference"), (1, 8, 8, 4, "splash")]
for data, model, heads, key_heads, kernel in cases:
    mesh = Mesh(np.asarray(jax.devices()).reshape(data, model), ("data", "model"))
    arrays = arrays_of(rng, 8, 128, heads, key_heads, 8)
    segments = packed(rng, 8, 128)[1]
    expected = output_and_gradients(arrays, segments, "reference", window=30)
    assert_equal(output_and_gradients(arrays, segments, kernel, window=30, mesh=mesh), expected)
    print("equal", data, model, heads, key_heads, kernel)
print("all meshes are equal")
"""


def test_meshes_equal_one_device():
    """Also where 4 KV heads meet 8 devices. In another process, because the number of devices is fixed when JAX starts."""
    done = subprocess.run(
        [sys.executable, "-c", MESHES], env=environment_of(devices=8), capture_output=True, text=True, timeout=300
    )
    assert "all meshes are equal" in done.stdout, done.stdout + done.stderr
