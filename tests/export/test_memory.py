"""Peak memory of loading and exporting: the weights once and little more, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemma_keras.export.huggingface import INDEX
from gemma_keras.export.safetensors_writer import TensorEntry, write_safetensors
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import get_architecture, to_hf_config
from gemma_keras.models.hf_names import HfTensor, hf_tensors
from gemma_keras.models.loading import SAFETENSORS_DTYPES
from tests.conftest import REPOSITORY

ALLOWANCE = 1.5e9  # bytes beside the weights, for Python, JAX, Keras and whatever is held meanwhile
BLOCK = 2**25  # weights drawn at a time

# Loads the folder argv[1] onto 8 devices, exports it to argv[2], and prints the peak of RssAnon [bytes] of both.
CHILD = """
import json, sys, threading, time

peak, phase = {"load": 0, "export": 0}, "load"

def sample():
    while True:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("RssAnon"))
        peak[phase] = max(peak[phase], 1024 * int(line.split()[1]))
        time.sleep(0.004)

threading.Thread(target=sample, daemon=True).start()

import jax
from gemma_keras import builtin
from gemma_keras.export.huggingface import export_hf
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.parallel.mesh import make_mesh
from gemma_keras.models.weight_sharding import param_sharding
from gemma_keras.text.tokenizer import Tokenizer

source, out = sys.argv[1:]
architecture = describe_weights(source)
mesh = make_mesh(jax.devices(), 2, 4)
seconds = [time.monotonic()]
params = load_params(
    build_backbone(architecture, "bfloat16"), architecture, source, "bfloat16",
    shardings=lambda path, shape: param_sharding(mesh, path, shape),
)
time.sleep(0.05)
assert all(len(array.sharding.device_set) == 8 for array in params.values())
seconds.append(time.monotonic())
phase = "export"
tokenizer = Tokenizer(builtin.TOKENIZER)
tokenizer.vocabulary_size = architecture.vocabulary_size  # its files are no matter here
export_hf(params, architecture, tokenizer, out)
seconds.append(time.monotonic())
print(json.dumps(peak | {"load_seconds": seconds[1] - seconds[0], "export_seconds": seconds[2] - seconds[1]}))
"""


def finite_bits(seed: int, count: int):
    """Random bfloat16 of magnitude below 2 (the exponent's highest bit is 0, so there is neither infinity nor NaN)."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        bits = rng.integers(0, 2**16, min(BLOCK, count - start), np.uint16)
        yield (bits & 0xBFFF).view(SAFETENSORS_DTYPES["BF16"])


def make_folder(architecture: Architecture, folder: Path) -> int:
    """A Hugging Face folder of random weights in two files; its size in bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_hf_config(architecture, "bfloat16")))
    tensors = list(hf_tensors(architecture))

    def entry(seed: int, tensor: HfTensor) -> TensorEntry:
        return TensorEntry(tensor.name, tensor.hf_shape, "bfloat16", lambda: finite_bits(seed, tensor.size))

    weight_map = {}
    for number, part in enumerate((tensors[: len(tensors) // 3], tensors[len(tensors) // 3 :])):
        file = f"model-{number}.safetensors"
        entries = [entry(1000 * number + seed, tensor) for seed, tensor in enumerate(part)]
        write_safetensors(folder / file, entries, {"format": "pt"})
        weight_map |= {tensor.name: file for tensor in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return sum(file.stat().st_size for file in folder.iterdir())


def mapped_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The bits of every tensor as views of the files, by the format's own definition."""
    found = {}
    for file in folder.glob("*.safetensors"):
        data = np.memmap(file, np.uint8, "r")
        length = int(data[:8].view(np.uint64)[0])
        for name, entry in json.loads(data[8 : 8 + length].tobytes()).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[name] = data[8 + length + start : 8 + length + end]
    return found


def run_child(source: Path, out: Path) -> dict[str, float]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, source, out], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.long
def test_gemma2_2b_is_loaded_and_exported_within_its_size(tmp_path):
    """Nothing less would show it: the embeddings alone are 1.2 GB."""
    size = make_folder(get_architecture("gemma2_2b"), tmp_path / "source")
    assert size > 5e9
    try:
        figures = run_child(tmp_path / "source", tmp_path / "out")
        print(json.dumps({"size": size, **figures}))
        assert size < figures["load"] < size + ALLOWANCE
        assert figures["export"] < size + ALLOWANCE
        before, after = mapped_tensors(tmp_path / "source"), mapped_tensors(tmp_path / "out")
        assert before.keys() == after.keys()
        for name, bits in before.items():
            assert np.array_equal(bits, after[name]), name
    finally:
        for file in (*tmp_path.glob("*/*.safetensors"), *tmp_path.glob(".*/*.safetensors")):
            file.unlink()  # pytest would keep them
