"""Why attention is ours: keras-hub's program for TPU drops the soft cap of the attention logits, and ours has it.

No TPU is needed, but keras chooses kernels by `jax.devices()`: so `jax.devices` is replaced, while the
program is traced, by a function that answers with one TPU v5e; nothing else of keras, keras-hub or jax is changed. The
programs are then compiled by the real TPU compiler, in a process of their own, or run on the CPU.

Axes: B batch, T time, D model dim.
"""

import sys
import types
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras_hub.models import GemmaBackbone

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import build_backbone, forward, variable_shapes
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.preflight import hlo
from gemma_keras.preflight.kernels import find_kernels
from gemma_keras.preflight.topologies import prepare_environment, topology_devices
from tests import tpu

ROWS, LENGTH, CAP = 2, 256, 5.0
TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def small(cap: float | None) -> Architecture:
    return get_architecture("gemma2_9b").replace(
        num_layers=2, hidden_dim=256, intermediate_dim=512, num_query_heads=2, num_key_value_heads=2, head_dim=128,
        query_pre_attn_scalar=128, vocabulary_size=512, attention_logit_soft_cap=cap,
    )  # fmt: skip


def keras_hub_program(cap: float | None, dtype: str, device: object | None):
    """keras-hub's own model, (params, tokens) -> hidden [B, T, D], as keras traces it where `device` is."""
    shape = small(cap)
    backbone = GemmaBackbone(
        vocabulary_size=shape.vocabulary_size, num_layers=shape.num_layers, num_query_heads=shape.num_query_heads,
        num_key_value_heads=shape.num_key_value_heads, hidden_dim=shape.hidden_dim,
        intermediate_dim=2 * shape.intermediate_dim, head_dim=shape.head_dim, use_post_ffw_norm=True,
        use_post_attention_norm=True, attention_logit_soft_cap=cap, final_logit_soft_cap=30.0,
        use_sliding_window_attention=True, sliding_window_size=4096, dtype=dtype,
    )  # fmt: skip

    def program(params, tokens):
        inputs = {"token_ids": tokens, "padding_mask": jnp.ones_like(tokens)}
        real = jax.devices
        jax.devices = real if device is None else lambda *_: [device]
        try:
            with keras.StatelessScope(state_mapping=[(v, params[v.path]) for v in backbone.weights]):
                return backbone(inputs, training=False)
        finally:
            jax.devices = real

    return backbone, program


def our_program(cap: float | None, dtype: str):
    backbone = build_backbone(small(cap), dtype)

    def program(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
        return forward(backbone, params, tokens, positions, jnp.ones_like(tokens), plan=ComputePlan(attention="splash"))

    return backbone, program


def write_programs(folder: Path) -> None:
    """Compiles for v5e and writes each program."""
    to = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x4")[0])
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=to)
    programs = {
        "keras_hub": keras_hub_program(CAP, "bfloat16", TPU),
        "keras_hub without cap": keras_hub_program(None, "bfloat16", TPU),
        "keras_hub as traced for CPU": keras_hub_program(CAP, "bfloat16", None),
        "ours": our_program(CAP, "bfloat16"),
        "ours without cap": our_program(None, "bfloat16"),
    }
    for name, (backbone, program) in programs.items():
        params = {
            path: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to) for path, s in variable_shapes(backbone).items()
        }
        compiled = jax.jit(program).lower(params, tokens).compile()
        (folder / name).write_bytes(hlo.message_of(compiled))


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> dict[str, hlo.Module]:
    folder = tmp_path_factory.mktemp("programs")
    result = tpu.run(["-m", "tests.preflight.test_keras_hub_cap", str(folder)])
    assert result.returncode == 0, result.stderr[-3000:]
    return {path.name: hlo.Module(path.read_bytes()) for path in folder.iterdir()}


def tanh_of_scores(module: hlo.Module) -> int:
    """How many tanh there are over arrays of attention scores, whose last two axes are both T."""
    found = 0
    for execution in module.executions():
        if execution.instruction.opcode == "tanh":
            found += any(array.dims.count(LENGTH) == 2 for array in hlo.arrays(execution.instruction))
    return found


def operations(module: hlo.Module) -> Counter:
    """What a program does, by operation and shape."""
    return Counter((e.instruction.opcode, *hlo.arrays(e.instruction)) for e in module.executions())


def test_keras_hub_for_tpu_has_no_cap(modules):
    assert find_kernels(modules["keras_hub"]) == []  # not splash either
    assert tanh_of_scores(modules["keras_hub"]) == 0
    assert operations(modules["keras_hub"]) == operations(modules["keras_hub without cap"])


def test_elsewhere_it_has(modules):
    """So the check above would see a cap."""
    assert tanh_of_scores(modules["keras_hub as traced for CPU"]) == 2
    assert operations(modules["keras_hub as traced for CPU"]) != operations(modules["keras_hub"])


def test_ours_has_the_cap_in_the_kernel_of_every_layer(modules):
    assert [kernel.soft_cap for kernel in find_kernels(modules["ours"])] == [True, True]
    assert [kernel.soft_cap for kernel in find_kernels(modules["ours without cap"])] == [False, False]


def test_what_keras_hub_computes_for_tpu_is_what_it_computes_without_cap():
    """The same choice of path, run on the CPU in float32: equal bit for bit, and not by chance, since the cap matters."""
    rng = np.random.default_rng(0)
    backbone, capped = keras_hub_program(CAP, "float32", TPU)
    params = {path: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype) for path, s in variable_shapes(backbone).items()}
    tokens = jnp.asarray(rng.integers(0, 512, (ROWS, LENGTH)), jnp.int32)
    uncapped = keras_hub_program(None, "float32", TPU)[1]
    right = keras_hub_program(CAP, "float32", None)[1]
    for_tpu, without, with_cap = (np.asarray(jax.jit(program)(params, tokens)) for program in (capped, uncapped, right))
    np.testing.assert_array_equal(for_tpu, without)
    assert np.abs(for_tpu - with_cap).max() > 1e-2


if __name__ == "__main__":
    prepare_environment()
    write_programs(Path(sys.argv[1]))
