"""Chunked log-probabilities on meshes of 8 devices against one device, in a process of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.models.log_probs import token_scores
from tests.cpu_devices import environment_of
from tests.models.test_log_probs import close, gradients

MESHES = ["1x8", "2x4", "8x1", "4x2"]
SHARDED = [(mesh, True, 16) for mesh in MESHES] + [("2x4", False, 16), ("2x4", True, 9)]  # mesh, with weights, T


def sharded_case():
    rng = np.random.default_rng(7)
    hidden = jnp.asarray(rng.normal(size=(8, 16, 24)), jnp.float32)
    embeddings = jnp.asarray(rng.normal(size=(40, 24)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 40, (8, 16)), jnp.int32)
    # Rows differ in their number of scored tokens, from none to all.
    weights = jnp.asarray(rng.random((8, 16)) < np.linspace(0, 1.01, 8)[:, None], jnp.float32)
    return hidden, embeddings, targets, weights, jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)


def sharded_results(mesh, weighted, time=16):
    """(named results, compiled programs) of one mesh or, with None, of one device."""
    hidden, embeddings, targets, weights, cotangents = (
        x[:, :time] if x.shape[:2] == (8, 16) else x for x in sharded_case()
    )

    def scores(hidden, embeddings):
        return token_scores(
            hidden,
            embeddings,
            targets,
            weights if weighted else None,
            final_logit_soft_cap=30.0,
            mesh=mesh,
            chunk=5,
            parts=5,
        )

    functions = {
        "scores": scores,
        "hidden": lambda *a: gradients(scores, "hidden", cotangents, *a),
        "both": lambda *a: gradients(scores, "both", cotangents, *a),
    }
    if mesh is not None:
        spec = jax.sharding.PartitionSpec
        hidden = jax.device_put(hidden, jax.NamedSharding(mesh, spec("data")))
        embeddings = jax.device_put(embeddings, jax.NamedSharding(mesh, spec(("model", "data"))))
    results, programs = {}, []
    for name, function in functions.items():
        compiled = jax.jit(function).lower(hidden, embeddings).compile()
        programs.append(compiled.as_text())
        for index, value in enumerate(compiled(hidden, embeddings)):
            results[f"{name}_{index}"] = np.asarray(value)
    return results, programs


def child(folder: Path):
    """Writes what each mesh gives."""
    from gemma_keras.parallel.mesh import make_mesh

    gathered = {}
    for name, weighted, time in SHARDED:
        data, model = map(int, name.split("x"))
        results, programs = sharded_results(make_mesh(jax.devices(), data, model), weighted, time)
        np.savez(folder / f"{name}_{weighted}_{time}.npz", **results)
        lines = (line for program in programs for line in program.splitlines())
        gathered.setdefault(name, []).extend(
            line.split("=", 1)[1].split("all-gather")[0] for line in lines if re.search(r"= .* all-gather", line)
        )
    try:
        hidden, embeddings, targets, *_ = sharded_case()
        mesh = make_mesh(jax.devices(), 4, 2)
        token_scores(hidden, embeddings[:39], targets, final_logit_soft_cap=None, mesh=mesh)
        error = ""
    except UserError as mistake:
        error = str(mistake)
    (folder / "facts.json").write_text(json.dumps({"gathered": gathered, "error": error}))


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    # Optimised as what users run: the tolerance is that of such code.
    optimised = environment_of(devices=8) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, __file__, str(folder)], check=True, env=optimised, timeout=300)
    return folder


@pytest.mark.parametrize("mesh, weighted, time", SHARDED)
def test_a_mesh_gives_what_one_device_gives(sharded_folder, mesh, weighted, time):
    expected, _ = sharded_results(None, weighted, time)
    actual = np.load(sharded_folder / f"{mesh}_{weighted}_{time}.npz")
    assert set(actual) == set(expected) == {"scores_0", "scores_1", "hidden_0", "both_0", "both_1"}
    for name, value in expected.items():
        assert np.any(value)
        close(actual[name], value, 1e-6)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_never_gathers_the_vocabulary(sharded_folder, mesh):
    gathered = json.loads((sharded_folder / "facts.json").read_text())["gathered"][mesh]
    assert not any(re.search(r"[\[,]40[\],]", shape) for shape in gathered), gathered
    if mesh in ("2x4", "4x2", "8x1"):
        assert gathered  # of rows, over "data": the search does find something


def test_a_vocabulary_that_does_not_divide_is_a_users_mistake(sharded_folder):
    error = json.loads((sharded_folder / "facts.json").read_text())["error"]
    assert "39 tokens" in error and "8 devices" in error and "config.parallel" in error


if __name__ == "__main__":
    child(Path(sys.argv[1]))
