"""The table of weights: a row for each weight of a model, and an error wherever there is none."""

import jax
import jax.numpy as jnp
import pytest

from gemma_keras.adapters.inject import TARGETS, add_adapters
from gemma_keras.config.sections import AdapterConfig, OptimConfig
from gemma_keras.models.cpu_matrices import output_major
from gemma_keras.models.families.registry import ARCHITECTURES, get_architecture
from gemma_keras.models.forward import build_backbone, variable_shapes
from gemma_keras.models.quantization import quantize_params
from gemma_keras.models.weight_sharding import param_sharding
from gemma_keras.models.weight_table import KINDS, Role, by_path, kind_of, model_kinds
from gemma_keras.training.optimizers import make_optimizer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_has_the_shape_of_its_row(name):
    architecture = get_architecture(name).replace(num_layers=2)
    shapes = variable_shapes(build_backbone(architecture, "float32"))
    for path, spec in shapes.items():
        assert kind_of(path).shape(architecture) == spec.shape, path
    assert {kind_of(path) for path in shapes} == set(model_kinds(architecture.family))


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_what_adapters_add_is_known(method):
    backbone = build_backbone(get_architecture("gemma2_tiny").replace(num_layers=1), "float32")
    add_adapters(backbone, AdapterConfig(method=method, targets=TARGETS, init_r=4, dropout=0.1))
    for variable in backbone.variables:
        assert len(kind_of(variable.path).axes) == len(variable.shape), variable.path


def test_scales_and_singular_values_do_not_decay():
    still = {kind.path.rsplit("/", 1)[1] for kind in KINDS if not kind.decays}
    assert still == {"scale", "lora_E"}
    assert {kind.role for kind in KINDS} == set(Role)


def placed(params):
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "model"))
    return {path: param_sharding(mesh, path, value.shape) for path, value in params.items()}


@pytest.mark.parametrize(
    "use",
    [
        placed,
        quantize_params,
        lambda params: output_major(params, halves=True),
        lambda params: make_optimizer(OptimConfig(weight_decay=0.1)).init(params),
    ],
    ids=["sharding", "quantization", "output_major", "optimizer"],
)
@pytest.mark.parametrize("path", ["decoder_block_0/attention/query/bias", "decoder_block/ffw_linear/kernel", "scale"])
def test_an_unknown_weight_is_an_error_everywhere(use, path):
    with pytest.raises(ValueError, match=f"0 rows for {path}"):
        use({path: jnp.ones((8, 8))})


def test_two_rows_for_a_weight_are_an_error():
    with pytest.raises(ValueError, match="2 rows for token_embedding/embeddings"):
        by_path([*KINDS, KINDS[0]])
