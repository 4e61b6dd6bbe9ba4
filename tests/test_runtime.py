import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_keras import runtime
from tests import tpu

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )


def test_importing_it_imports_no_framework():
    result = run_python(
        "import sys; from gemma_keras import runtime; assert not {'jax', 'keras', 'tensorflow'} & sys.modules.keys()"
    )
    assert result.returncode == 0, result.stderr


def test_keras_runs_on_jax_whatever_the_shell_says(tmp_path):
    code = (
        "from gemma_keras import runtime; runtime.configure(); import keras, jax\n"
        "print(keras.backend.backend(), jax.config.jax_compilation_cache_dir)"
    )
    result = run_python(code, KERAS_BACKEND="numpy", XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["jax", str(tmp_path / "gemma_keras" / "jax")]


def test_keras_on_another_backend_is_a_users_mistake():
    result = run_python("import keras; import gemma_keras", KERAS_BACKEND="numpy")
    last_line = result.stderr.strip().splitlines()[-1]
    assert "UserError: keras was imported on the numpy backend, but gemma_keras needs jax" in last_line, result.stderr


def test_the_cache_falls_back_to_the_workdir(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert runtime._cache_folder(tmp_path / "run") == tmp_path / "run" / "compile_cache"
    assert runtime._cache_folder(None) is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "given"))
    assert runtime._cache_folder(None) == tmp_path / "given"


def test_hiding_accelerators_may_be_repeated_and_needs_no_tensorflow(monkeypatch):
    code = (
        "from gemma_keras import runtime\nruntime.hide_accelerators_from_tensorflow()\n"
        "import tensorflow as tf; tf.constant(1)\nruntime.hide_accelerators_from_tensorflow()\n"
        "assert {d.device_type for d in tf.config.get_visible_devices()} == {'CPU'}"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    runtime.hide_accelerators_from_tensorflow()


def test_starting_a_stage_prints_nothing():
    result = run_python("from gemma_keras import runtime; runtime.configure(); import keras_hub, tensorflow")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def machine(root: Path, files: tuple[str, ...] = (), **devices: tuple[str, str]) -> Path:
    """A root folder with PCI devices (vendor, class) and other files."""
    for name, texts in devices.items():
        folder = root / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        for file, text in zip(("vendor", "class"), texts, strict=True):
            (folder / file).write_text(f"{text}\n", encoding="ascii")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_only_a_machine_that_shows_no_sign_of_a_tpu_has_none(tmp_path, monkeypatch):
    for name in [name for name in os.environ if "TPU" in name]:
        monkeypatch.delenv(name)
    others = {"disk": ("0x1ae0", "0x010802"), "network": ("0x1ae0", "0x020000"), "gpu": ("0x10de", "0x030200")}
    plain = machine(tmp_path / "plain", **others)
    assert not runtime._may_have_tpu(plain)
    assert runtime._may_have_tpu(machine(tmp_path / "pci", **others, chip=("0x1ae0", "0x00ff00")))
    assert runtime._may_have_tpu(machine(tmp_path / "v4", ("dev/accel0",), **others))
    assert runtime._may_have_tpu(machine(tmp_path / "v5e", ("dev/vfio/0",), **others))
    assert runtime._may_have_tpu(tmp_path / "nothing to see")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert runtime._may_have_tpu(plain)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    (plain / "sys/bus/pci/devices/gpu/class").unlink()
    assert runtime._may_have_tpu(plain)


@pytest.mark.skipif(runtime._may_have_tpu() or runtime._has_jax_plugins(), reason="JAX has more than the CPU here")
def test_libtpu_is_not_heard_without_a_tpu_but_where_it_is_asked_for():
    code = "from gemma_keras import runtime\nruntime.configure()\nprint(runtime.device_summary())"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", code]
    tpu.require_compiler()
    quiet = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    wanted = run_python(code, JAX_PLATFORMS="tpu")
    assert quiet.returncode == 0 and quiet.stderr == "" and "(cpu)" in quiet.stdout, quiet.stderr
    assert wanted.returncode != 0 and "Unable to initialize backend 'tpu'" in wanted.stderr


def test_versions_name_what_results_depend_on():
    found = runtime.versions()
    assert {"python", "jax", "keras", "keras-hub", "datasets"} <= found.keys()
    assert all(isinstance(version, str) for version in found.values())


def test_device_summary():
    assert ", jax " in runtime.device_summary()


def test_programs_are_forgotten_before_their_mappings_run_out():
    code = """
from pathlib import Path
from gemma_keras import runtime
import jax, jax.numpy as jnp
double = jax.jit(lambda x: jnp.sin(x) * 2)
double(jnp.ones(3))
assert not runtime.limit_programs() and double._cache_size() == 1
linux = Path("/proc/self/maps").exists()
assert runtime.limit_programs(share=1e-6) == linux and double._cache_size() == (not linux)
assert double(jnp.zeros(3))[0] == 0
"""
    result = run_python(code, JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr
