"""The splash kernel: interpreted on CPU against the reference, and through the TPU compiler."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.models.attention_kernels import splash as splash_attention
from tests import tpu
from tests.models.test_attention_kernels import (
    arrays_of,
    assert_equal,
    output_and_gradients,
    packed,
)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(splash_attention, "INTERPRET", True)


@pytest.mark.parametrize(
    "time, heads, key_heads, options",
    [
        (256, 2, 2, {}),
        (128, 8, 1, {"window": 50}),
        (1024, 4, 2, {"window": 300}),  # windows and segments over several blocks of the kernel
        (384, 4, 1, {"logit_soft_cap": None, "window": 200}),  # three blocks: the separate backward kernels
        (384, 2, 2, {"window": 5000}),
    ],
)
def test_splash_equals_the_reference(time, heads, key_heads, options, rng, interpreted):
    arrays = arrays_of(rng, 2, time, heads, key_heads, 8)
    segments = packed(rng, 2, time, longest=400, padding=30)[1]
    expected = output_and_gradients(arrays, segments, "reference", **options)
    assert_equal(output_and_gradients(arrays, segments, "splash", **options), expected)


def test_cap_window_and_segments_matter(rng, interpreted):
    arrays = arrays_of(rng, 1, 128, 2, 1, 8)
    segments = packed(rng, 1, 128)[1]

    def run(segments=segments, **options):
        options = {"scale": 0.7, "logit_soft_cap": 3.0, "window": 20, **options}
        return np.asarray(splash_attention.splash_attention(*arrays[:3], jnp.asarray(segments), **options))

    base = run()
    for other in (run(logit_soft_cap=None), run(window=19), run(np.where(segments > 0, 1, 0))):
        assert np.abs(other - base).max() > 1e-2


COMPILE = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from gemma_keras.models.attention_kernels.grouped_query import packed_attention
from gemma_keras.parallel.plan import RESIDUALS

def compile(topology, data, model, heads, key_heads, time, head_dim, kernel, saved=None):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.asarray(devices[: data * model]).reshape(data, model), ("data", "model"))
    shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
        sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec("data")))
    arrays = [shape(data, time, n, head_dim) for n in (heads, key_heads, key_heads)]
    run = partial(packed_attention, scale=0.0625, logit_soft_cap=50.0, window=512, kernel=kernel, mesh=mesh)
    if saved is not None:
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(*saved))
    total = lambda arrays, segments: jnp.sum(run(*arrays, segments).astype(jnp.float32) ** 2)
    text = jax.jit(jax.grad(total)).lower(arrays, shape(data, time, dtype=jnp.int32)).compile().as_text()
    print(topology, data, str(model) + ":", text.count('custom_call_target="tpu_custom_call"'), flush=True)

compile("v5e:2x4", 1, 8, 8, 4, 1024, 256, "splash")
compile("v5e:2x4", 8, 1, 4, 2, 2048, 256, "splash")
compile("v5e:2x4", 1, 8, 8, 4, 1024, 256, "splash", [RESIDUALS])
compile("v5e:2x4", 1, 8, 8, 4, 1024, 256, "splash", [])
compile("v6e:2x4", 8, 1, 4, 2, 1024, 128, "splash")
compile("v3:2x2", 1, 8, 8, 4, 1024, 256, "blockwise")
"""
# Forward and fused backward kernel, or forward, dk and dv, and dq; the second forward pass only where nothing is saved.
KERNELS = ["v5e:2x4 1 8: 2", "v5e:2x4 8 1: 3", "v5e:2x4 1 8: 2", "v5e:2x4 1 8: 3", "v6e:2x4 8 1: 2", "v3:2x2 1 8: 0"]


def test_tpu_compiler_takes_forward_and_backward_pass():
    done = tpu.run(["-c", COMPILE])
    assert done.stdout.splitlines() == KERNELS, done.stdout + done.stderr
