"""Merged kernels, all at once and one by one."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemma_keras.adapters.inject import TARGETS, MergedParams, add_adapters, initial_adapter_params, merge
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.forward import build_backbone, initial_params
from tests.models.conftest import small

# Where the features of each projection's [d_out, d_in] stand in its kernel; sizes of `small()`: N 4, K 2, H 16.
KERNELS = {
    "query": lambda delta: delta.reshape(4, 16, -1).transpose(0, 2, 1),
    "key": lambda delta: delta.reshape(2, 16, -1).transpose(0, 2, 1),
    "value": lambda delta: delta.reshape(2, 16, -1).transpose(0, 2, 1),
    "attention_output": lambda delta: delta.T.reshape(4, 16, -1),
    "ffw_gating": np.transpose,
    "ffw_gating_2": np.transpose,
    "ffw_linear": np.transpose,
}


def adapted(method, dtype):
    backbone = build_backbone(small(num_layers=2), dtype)
    base = initial_params(backbone, 0)
    matrices = add_adapters(backbone, AdapterConfig(method=method, init_r=4, alpha=8.0, targets=TARGETS))
    rng = np.random.default_rng(1)
    # Small integers: their products and sums are exact in float32, in whatever order they are taken.
    adapters = {
        path: jnp.asarray(rng.integers(-3, 4, value.shape), jnp.float32)
        for path, value in initial_adapter_params(matrices, 0).items()
    }
    return matrices, base, adapters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_every_kernel_is_the_base_plus_the_update(method, dtype):
    matrices, base, adapters = adapted(method, dtype)
    merged = MergedParams(matrices, base | adapters)
    assert list(merged) == list(base) and len(merged) == len(base)
    assert len(matrices) == 2 * len(TARGETS)
    changed = set()
    for matrix in matrices:
        update = {name: np.asarray(adapters[matrix.path(name)]) for name in matrix.adapter.weight_names}
        product = (update["lora_B"] * update.get("lora_E", np.float32(1))) @ update["lora_A"]
        delta = KERNELS[matrix.name.rsplit("/", 1)[1]](product * np.float32(matrix.adapter.scaling))
        kernel = np.asarray(base[matrix.kernel])
        expected = (kernel.astype(np.float32) + delta).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        got = merged[matrix.kernel]
        assert got.dtype == dtype and np.asarray(got).tobytes() == expected.tobytes(), matrix.name
        changed.add(matrix.kernel)
    assert all(merged[path] is value for path, value in base.items() if path not in changed)


def test_merge_gives_the_same_all_at_once():
    matrices, base, adapters = adapted("adalora", "bfloat16")
    at_once, lazily = merge(matrices, base | adapters), MergedParams(matrices, base | adapters)
    assert type(at_once) is dict and list(at_once) == list(lazily)
    for path, value in at_once.items():
        assert np.asarray(value).tobytes() == np.asarray(lazily[path]).tobytes(), path


def test_adapters_are_hidden_and_nothing_is_kept():
    matrices, base, adapters = adapted("lora", "float32")
    merged = MergedParams(matrices, base | adapters)
    hidden = next(iter(adapters))
    assert hidden not in merged
    with pytest.raises(KeyError):
        merged[hidden]
    kernel = matrices[0].kernel
    assert isinstance(merged[kernel], jax.Array) and merged[kernel] is not merged[kernel]
