"""What every adapter of the registry does, and one that is no sum of projection and delta."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import peft
import pytest
import torch

from gemma_keras.adapters import registry
from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.inject import TARGETS, MergedParams, add_adapters, disable_adapters, initial_adapter_params
from gemma_keras.adapters.protocol import Adapter
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.forward import build_backbone, forward
from tests.models.conftest import lively_params, small

MODEL = small(num_layers=2)


class OutputNorm(Adapter):
    """Divides every output feature by its kernel column's norm and multiplies it by a weight, as DoRA does."""

    weight_names = ("gain",)

    @classmethod
    def of(cls, axes, config, dtype):
        return cls(axes, name="lora", dtype=dtype)

    def build(self, input_shape):
        self.gain = self.add_weight(name="gain", shape=self.axes.output_dims, dtype="float32")
        super().build(input_shape)

    def initial_values(self, key):
        return {"gain": jnp.ones(self.axes.output_dims)}

    def scales(self, kernel, gain):
        """1 where the gain is; norms over the inputs, in the layout of the outputs."""
        inputs = tuple(self.axes.kernel.index(axis) for axis in self.axes.inputs)
        return 1 + (gain - 1) * jnp.sqrt(jnp.sum(jnp.square(kernel), axis=inputs))

    def apply(self, base, x, training=False):
        return base(x) * self.scales(jnp.asarray(base.kernel.value), jnp.asarray(self.gain.value))

    def merge(self, kernel, weights):
        outputs, scales = self.axes.outputs, self.scales(kernel, weights["gain"])
        return jnp.einsum(f"{self.axes.kernel},{outputs}->{self.axes.kernel}", kernel, scales)

    def disabled(self, weights):
        return {"gain": jnp.ones_like(weights["gain"])}


@pytest.mark.parametrize("method", ["lora", "adalora", "output_norm"])
def test_merged_and_disabled_adapters(method, monkeypatch):
    """A merged model computes what the adapted one does, a disabled adapter nothing, a fresh one nothing either."""
    monkeypatch.setitem(registry.ADAPTERS, "output_norm", OutputNorm.of)
    backbone, plain = build_backbone(MODEL, "float32"), build_backbone(MODEL, "float32")
    matrices = add_adapters(backbone, AdapterConfig(method=method, init_r=4, alpha=8.0, targets=TARGETS, dropout=0.0))
    base, fresh = lively_params(MODEL), initial_adapter_params(matrices, 0)
    rng = np.random.default_rng(0)
    tuned = base | {path: value + rng.normal(0, 0.2, value.shape).astype(np.float32) for path, value in fresh.items()}
    tokens = jnp.asarray(rng.integers(0, MODEL.vocabulary_size, (2, 12)), jnp.int32)
    positions, segments = jnp.tile(jnp.arange(12), (2, 1)), jnp.ones_like(tokens)

    def hidden(backbone, params):
        return np.asarray(jax.jit(lambda params: forward(backbone, params, tokens, positions, segments))(params))

    expected = hidden(plain, base)
    np.testing.assert_allclose(hidden(backbone, base | fresh), expected, atol=1e-5)
    np.testing.assert_allclose(hidden(backbone, disable_adapters(matrices, tuned)), expected, atol=1e-5)
    adapted = hidden(backbone, tuned)
    np.testing.assert_allclose(hidden(plain, dict(MergedParams(matrices, tuned))), adapted, atol=1e-3)
    assert np.abs(adapted - expected).max() > 0.1


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_peft_reads_the_configuration_and_scales_alike(method):
    config = AdapterConfig(method=method, init_r=6, alpha=20.0, dropout=0.25)
    axes = EinsumAxes.of("btd,df->btf", (8, 10))
    with keras.StatelessScope():
        ours = registry.ADAPTERS[method](axes, config, "float32")
    fields = ours.peft_config() | {"target_modules": ["0"]} | ({"total_step": 10} if method == "adalora" else {})
    theirs = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 10, bias=False)), peft.get_peft_config(fields)
    ).base_model.model[0]
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weights = {}
    for name in ours.weight_names:
        weight = theirs.get_parameter(f"{name}.default.weight" if method == "lora" else f"{name}.default")
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(weights)))
        weights[name] = jnp.asarray(
            weight.detach().numpy().reshape(-1) if name == "lora_E" else weight.detach().numpy()
        )
    kernel = theirs.base_layer.weight.detach().numpy().T
    got = np.asarray(jnp.asarray(x.numpy()) @ ours.merge(jnp.asarray(kernel), weights))
    np.testing.assert_allclose(got, theirs.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-4)
