"""Where arrays lie: a rule for every variable, and lookups over devices that equal those of one."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from gemma_keras.adapters.inject import TARGETS, add_adapters, initial_adapter_params
from gemma_keras.adapters.low_rank_base import keep_mask
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.families.registry import ARCHITECTURES, get_architecture
from gemma_keras.models.forward import build_backbone, variable_shapes
from gemma_keras.models.stacking import stacked_shapes
from gemma_keras.models.weight_sharding import param_sharding, variable_axes
from gemma_keras.parallel.mesh import axis_size, make_mesh
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.parallel.sharding import vocabulary_lookup
from tests.cpu_devices import environment_of

MESHES = ((1, 8), (2, 4), (4, 2), (8, 1))


def all_shapes(name: str, method: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Every weight, adapters on all projections included, by path and as stacks; two blocks of the full width."""
    backbone = build_backbone(get_architecture(name).replace(num_layers=2), "bfloat16")
    shapes = variable_shapes(backbone)
    matrices = add_adapters(backbone, AdapterConfig(method=method, init_r=8, targets=TARGETS, dropout=0.1))
    shapes |= jax.eval_shape(lambda: initial_adapter_params(matrices, 0))
    assert len(matrices) == 2 * len(TARGETS)
    return shapes | stacked_shapes(shapes)


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variable_has_one_rule_whose_pieces_are_equal(name, method):
    for path, spec in all_shapes(name, method).items():
        stored, used = variable_axes(path)  # raises unless exactly one rule matches
        rank = len(spec.shape) - path.startswith("decoder_blocks/")
        assert len(stored) == len(used) == rank, path
        for sizes in MESHES:
            mesh = AbstractMesh(sizes, ("data", "model"))
            axes = param_sharding(mesh, path, spec.shape).spec
            assert len(axes) <= len(spec.shape), path
            for size, axis in zip(spec.shape, axes):
                assert size % axis_size(mesh, axis) == 0, (path, sizes)


def test_large_weights_are_divided_by_all_devices():
    """No variable of 9b of a million entries lies whole on a device, on any mesh that its heads allow."""
    for path, spec in all_shapes("gemma2_9b", "adalora").items():
        for sizes in MESHES:
            mesh = AbstractMesh(sizes, ("data", "model"))
            pieces = math.prod(axis_size(mesh, axis) for axis in param_sharding(mesh, path, spec.shape).spec)
            few_heads = 8 if sizes[1] <= 4 else 1  # 4 KV heads
            if math.prod(spec.shape) >= 2**20:
                assert pieces == 8 or (pieces >= few_heads and ("/key/" in path or "/value/" in path)), (path, sizes)


@pytest.mark.parametrize(
    "path",
    [
        "decoder_block_0/attention/query/bias",
        "decoder_block_x/ffw_linear/kernel",
        "decoder_block_0/ffw_linear/lora/lora_C",
        "embeddings",
    ],
)
def test_an_unknown_variable_is_an_error(path):
    with pytest.raises(ValueError, match="0 rows for"):
        variable_axes(path)


def test_too_few_devices_are_told():
    with pytest.raises(UserError, match="2x4 = 8 devices, but there are 1"):
        make_mesh(jax.devices()[:1], 2, 4)


def lookup_case():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(40, 24)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 40, (8, 16)), jnp.int32).at[0, :2].set(jnp.array([0, 39]))
    return table, tokens, jnp.asarray(rng.normal(size=(8, 16, 24)), jnp.float32)


def child() -> None:
    """Prints, by case, the largest difference from one device."""
    table, tokens, cotangents = lookup_case()
    found = {}
    for data, model in MESHES:
        mesh = make_mesh(jax.devices(), data, model)
        for shard_sequence, time, size in ((False, 16, 40), (True, 16, 40), (True, 9, 40), (True, 16, 39)):
            plan = ComputePlan(mesh=mesh, shard_sequence=shard_sequence)
            own = tokens[:, :time] % size
            place = param_sharding(mesh, "token_embedding/embeddings", (size, 24))
            stored = jax.device_put(table[:size], place)

            def weighed(table, plan=plan, own=own, time=time):
                rows = vocabulary_lookup(table, own, plan)
                return jnp.sum(rows * cotangents[:, :time]), rows

            (_, rows), grads = jax.jit(jax.value_and_grad(weighed, has_aux=True))(stored)
            expected = jnp.zeros((size, 24)).at[own].add(cotangents[:, :time])
            name = f"{data}x{model} {shard_sequence} {time} {size}"
            found[name] = [
                float(np.abs(np.asarray(rows) - np.asarray(table[own])).max()),
                float(np.abs(np.asarray(grads) - np.asarray(expected)).max()),
            ]
        seed = jnp.array([1, 2], jnp.uint32)
        to = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "model"))
        mask = jax.jit(lambda: keep_mask((8, 16, 24), seed, 0.3), out_shardings=to)()  # noqa: B023
        found[f"{data}x{model} mask"] = [
            float(np.sum(np.asarray(mask) != np.asarray(keep_mask((8, 16, 24), seed, 0.3))))
        ]
    print(json.dumps(found))


@pytest.fixture(scope="module")
def differences() -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, __file__], env=environment_of(devices=8), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_lookup_on_a_mesh_equals_take(differences, data, model):
    cases = {name: values for name, values in differences.items() if name.startswith(f"{data}x{model} ")}
    lookups = {name: values for name, values in cases.items() if not name.endswith("mask")}
    assert len(lookups) == 4
    for name, (rows, gradient) in lookups.items():
        assert rows == 0, name  # a row and zeros
        assert gradient < 1e-5, name


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_a_dropout_mask_is_the_same_however_it_is_divided(differences, data, model):
    assert differences[f"{data}x{model} mask"] == [0.0]


def test_a_plan_is_hashable():
    """It is a static argument of jitted functions."""
    assert hash(dataclasses.replace(ComputePlan(), remat="full")) != hash(ComputePlan())


if __name__ == "__main__":
    child()
