"""Streamed files, read by safetensors' own readers."""

import errno
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from gemma_keras.export.safetensors_writer import TensorEntry, write_safetensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "b.weight": RNG.normal(size=(5, 3)).astype(np.float32),
    "a.weight": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),  # 14 bytes: what follows is not aligned to 4
    "中.weight": RNG.normal(size=(2, 3, 4)).astype(np.float16),
    "scalar": np.float32(3).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
}


def entry(name, array, blocks=None):
    return TensorEntry(name, array.shape, array.dtype.name, lambda: blocks or [array])


def test_their_readers_read_it(tmp_path):
    file = tmp_path / "a.safetensors"
    write_safetensors(file, [entry(*item) for item in ARRAYS.items()], {"format": "pt"})
    read = load_file(file)
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
    for name, tensor in safetensors.torch.load_file(file).items():
        assert tensor.dtype == getattr(torch, ARRAYS[name].dtype.name)
        np.testing.assert_array_equal(tensor.float().numpy(), ARRAYS[name].astype(np.float32))
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


def test_blocks_and_strides_make_no_difference(tmp_path):
    array = np.ascontiguousarray(RNG.normal(size=(6, 4)).astype(np.float32))
    column_major = np.asfortranarray(array)
    for number, blocks in enumerate(([array], [array[:1], array[1:5], array[5:]], [column_major])):
        write_safetensors(tmp_path / str(number), [entry("x", array, blocks)], {"format": "pt"})
    files = [(tmp_path / str(number)).read_bytes() for number in range(3)]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([np.zeros((1, 4), np.float32)], "have 16 bytes; expected 32"),
        ([np.zeros((3, 4), np.float32)], "have 48 bytes; expected 32"),
        ([np.zeros((2, 4), np.float64)], "is float64; expected float32"),
    ],
)
def test_wrong_blocks_are_an_error(blocks, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x", [entry("x", np.zeros((2, 4), np.float32), blocks)], {})


def test_two_tensors_of_one_name_are_an_error(tmp_path):
    array = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="two tensors are called x"):
        write_safetensors(tmp_path / "x", [entry("x", array), entry("x", array)], {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_names_the_file():
    array = np.zeros(10**6, np.float32)
    with pytest.raises(OSError) as caught:
        write_safetensors(Path("/dev/full"), [entry("x", array)], {})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "/dev/full"
