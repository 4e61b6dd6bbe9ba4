"""The same training on one device and divided over eight virtual ones, by every mesh and rematerialisation policy."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cpu_devices import environment_of

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # relative, float32
GROUPS = {
    "meshes": ("1x8", "2x4", "8x1"),
    "policies": ("2x4 projections", "2x4 matmul", "2x4 attention", "2x4 full"),
    "Gemma 3": ("2x4 Gemma 3",),
}
CASES = [
    pytest.param(group, name, id=name, marks=[pytest.mark.long] if group != "meshes" else [])
    for group, names in GROUPS.items()
    for name in names
]


@functools.cache
def runs(group: str) -> dict[str, dict]:
    """What `mesh_runs` finds, by run; the first one is on one device."""
    program = ROOT / "tests" / "training" / "mesh_runs.py"
    done = subprocess.run(
        [sys.executable, program, group], cwd=ROOT, env=environment_of(devices=8), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {run["name"]: run for run in found}


def one_device(group: str) -> dict:
    return next(iter(runs(group).values()))


@pytest.mark.parametrize(("group", "name"), CASES)
def test_ten_steps_equal_those_of_one_device(group, name):
    for figure in ("loss", "grad_norm"):
        assert len(runs(group)[name][figure]) == 10
        np.testing.assert_allclose(runs(group)[name][figure], one_device(group)[figure], rtol=TOLERANCE, err_msg=figure)


@pytest.mark.parametrize(("group", "name"), CASES)
def test_final_weights_equal_those_of_one_device(group, name):
    assert max(runs(group)[name]["weights"].values()) < TOLERANCE


@pytest.mark.parametrize(("group", "name"), CASES)
def test_the_same_triplets_survive(group, name):
    assert runs(group)[name]["alive"] == one_device(group)["alive"]


def test_triplets_are_pruned_within_these_steps():
    alive = [sum(np.sum(mask) for mask in masks.values()) for masks in one_device("meshes")["alive"]]
    assert alive[0] == pytest.approx(2 * alive[-1], rel=0.1) and len(set(alive)) > 2  # half of the weights


@pytest.mark.long
def test_dropout_makes_a_difference():
    """Else the comparisons above would show less than they say: masks are drawn a microbatch."""
    assert not np.allclose(one_device("meshes")["grad_norm"], one_device("policies")["grad_norm"], rtol=TOLERANCE)
