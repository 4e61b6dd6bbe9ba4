"""Weights from a Hugging Face safetensors folder, a Keras preset folder or a GGUF file, tensor by tensor.

A Hugging Face folder has `config.json` and `model.safetensors`, or several files with `model.safetensors.index.json`. A
Keras preset (keras-hub's `save_to_preset`) has `config.json` of class GemmaBackbone or Gemma3Backbone and `model.weights.h5`, or
several files with `model.weights.json`. Of a multimodal model the text part is read (`text_part`). A GGUF file is one in itself
(`gguf_file.py`); of its tensors each is dequantised as a whole.

Nothing is held twice: each device's shard is one copy out of the mapped file, which is let go after each tensor. With
several processes, each reads the shards of its own devices only.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from keras_hub.models import Backbone
from safetensors import safe_open

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.gemma3 import MULTIMODAL
from gemma_keras.models.families.keras_preset import from_keras_config
from gemma_keras.models.families.registry import from_hf_config
from gemma_keras.models.forward import Params, variable_shapes
from gemma_keras.models.gguf_file import gguf_architecture, open_gguf
from gemma_keras.models.hf_names import HfTensor, hf_tensors
from gemma_keras.models.keras_files import KERAS_FILE, KERAS_INDEX, datasets, files_of_groups, keras_group
from gemma_keras.models.text_part import left_out, reads_images, text_names
from gemma_keras.models.weight_checks import (
    SAFETENSORS_DTYPES,
    damaged,
    opened,
    quantized,
    read_json,
    read_weight_map,
    require_known_format,
    require_names,
    require_plain_numbers,
    require_shape,
)

HF_FILE, HF_INDEX = "model.safetensors", "model.safetensors.index.json"
BUFFER_ALIGNMENT = 64  # bytes; JAX on CPU keeps a buffer of this alignment and copies any other (XLA's own minimum)

Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
Progress = Callable[[int, int], None]
Index = tuple[slice, ...]


def describe_weights(folder: str | Path) -> Architecture:
    """The shape of the model in `folder`, from its `config.json`, or in a GGUF file, from its metadata.

    Raises:
        UserError: no such folder or file, no JSON, no model of our families, or a folder of quantized weights.
    """
    folder = Path(folder)
    if folder.is_file():
        return gguf_architecture(open_gguf(folder))
    if not folder.is_dir():
        raise UserError(
            f"there is no folder or file {folder}; give a Hugging Face folder, a Keras preset folder or a GGUF file"
        )
    config = read_json(folder / "config.json")
    if "class_name" in config:
        return from_keras_config(config, folder.name)
    require_plain_numbers(folder, config)
    return from_hf_config(config, folder.name)


def weight_files(weights: str | Path) -> Iterable[Path]:
    """The files of a model: those in its folder, or its GGUF file."""
    weights = Path(weights)
    return weights.iterdir() if weights.is_dir() else (weights,)


def load_params(
    backbone: Backbone,
    architecture: Architecture,
    folder: str | Path,
    dtype: str,
    *,
    shardings: Shardings | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Params:
    """Weights of `folder`, or of a GGUF file, by variable path, as `dtype` ("float32" or "bfloat16"), one tensor at a time.

    Variables of the backbone that no checkpoint has (adapters) are not among them. `shardings` says where a variable of
    that path and shape lies; without it, or where it says None, on the default device. `progress` is called after each
    tensor with the bytes of device memory that are filled by now and that will be, each weight counted once. `tell` gets a
    line about tensors for images that are left out.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing, unknown or of another shape or kind of number.
    """
    folder = Path(folder)
    sources: Iterator[tuple[str, _ArrayTensor | _H5Tensor]]
    if folder.is_file():
        sources = _gguf_sources(architecture, folder, np.dtype(dtype))
    elif (folder / HF_FILE).exists() or (folder / HF_INDEX).exists():
        sources = _hf_sources(architecture, folder, tell)
    elif (folder / KERAS_FILE).exists() or (folder / KERAS_INDEX).exists():
        sources = _keras_sources(architecture, folder, tell)
    else:
        require_known_format(folder, HF_FILE)
        raise UserError(
            f"{folder} has neither {HF_FILE} nor {KERAS_FILE} (nor their indexes); download the weights again"
        )
    shapes = variable_shapes(backbone)
    params: Params = {}
    done, total = 0, architecture.parameter_count * np.dtype(dtype).itemsize
    for path, source in sources:
        assert shapes[path].shape == source.shape, (path, shapes[path].shape, source.shape)
        sharding = shardings(path, source.shape) if shardings else None
        params[path] = _to_devices(source, np.dtype(dtype), sharding)
        done += params[path].nbytes
        if progress:
            progress(done, total)
    return params


class _ArrayTensor:
    """A tensor in the Keras layout, as a view of a mapped file, or of memory of its own, which then is `fresh`."""

    def __init__(self, view: np.ndarray, *, fresh: bool = False):
        self._view, self.shape, self._fresh = view, view.shape, fresh

    def read(self, index: Index, dtype: np.dtype) -> np.ndarray:
        """A slice as `dtype`, in memory of its own unless it is strided and needs no cast.

        JAX copies a strided array while it changes the layout, faster than NumPy does; a contiguous one it might keep. All of
        a fresh one is given away once, so that there is no second copy.
        """
        view = self._view[index]
        if self._fresh and view.shape == self.shape:
            self._fresh = False
            return view
        if view.flags.c_contiguous or not view.flags.aligned:
            out = _aligned_empty(view.shape, dtype)
            out[...] = view
            return out
        return view if view.dtype == dtype else view.astype(dtype, order="K")


class _H5Tensor:
    """A dataset of a Keras file, which has the layout of the variable."""

    def __init__(self, dataset: h5py.Dataset):
        self._dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape
        # h5 knows no bfloat16, so Keras stores its bytes.
        is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
        self.dtype = np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else dataset.dtype

    def read(self, index: Index, dtype: np.dtype) -> np.ndarray:
        """A slice as `dtype`, in memory of its own. Raises `UserError` where the file is damaged."""
        stored = _aligned_empty(_shape_of(index, self.shape), self._dataset.dtype)
        try:
            self._dataset.read_direct(stored, index)
        except OSError as error:
            raise damaged(self._dataset.file.filename, error) from error
        return stored.view(self.dtype).astype(dtype, copy=False)


def _to_devices(source: _ArrayTensor | _H5Tensor, dtype: np.dtype, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """The array on its devices, shard by shard: beside it, one shard at most is in host memory."""
    if sharding is None:
        whole = tuple(slice(0, size) for size in source.shape)
        return jax.device_put(source.read(whole, dtype)).block_until_ready()
    shards = []
    for device, index in sharding.addressable_devices_indices_map(source.shape).items():
        assert index is not None
        shards.append(jax.device_put(source.read(index, dtype), device).block_until_ready())
    return jax.make_array_from_single_device_arrays(source.shape, sharding, shards, dtype=dtype)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX on CPU takes over as it is, where it would copy what NumPy aligns by itself."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + BUFFER_ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % BUFFER_ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _shape_of(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))


def _hf_sources(
    architecture: Architecture, folder: Path, tell: Callable[[str], None] | None
) -> Iterator[tuple[str, _ArrayTensor]]:
    config = read_json(folder / "config.json")
    require_plain_numbers(folder, config)
    tensors = {tensor.name: tensor for tensor in hf_tensors(architecture)}
    files = _files_of_tensors(folder)
    names = text_names(files) if config.get("model_type") == MULTIMODAL else dict(zip(files, files))
    require_names(tensors, names, folder)
    headers = {file: _read_header(file) for file in sorted(set(files.values()))}
    others = [headers[files[name]][0][name]["data_offsets"] for name in sorted(files.keys() - names.values())]
    if others and tell:
        tell(f"{folder}: {left_out(end - start for start, end in others)}")
    for file, (entries, data_start) in headers.items():
        for name, tensor in sorted(tensors.items()):
            if files[names[name]] == file:
                entry = entries[names[name]]
                require_shape(names[name], entry["shape"], tensor.hf_shape, file)
                yield tensor.path, _ArrayTensor(_mapped(file, entry, data_start, tensor))


def _mapped(file: Path, entry: dict[str, Any], data_start: int, tensor: HfTensor) -> np.ndarray:
    """A tensor of a safetensors file in the Keras layout, as a view of the mapped file."""
    dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
    stored = np.memmap(file, np.uint8, "r", data_start + entry["data_offsets"][0], tensor.size * dtype.itemsize)
    return tensor.from_hf(np.asarray(stored).view(dtype).reshape(tensor.hf_shape))


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file that `safe_open` has checked, and the offset that theirs count from."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    return entries, 8 + length


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor; every file is opened once, so that a damaged one is found before loading starts."""
    if (folder / HF_INDEX).exists():
        files = {folder / file for file in read_weight_map(folder / HF_INDEX).values()}
    else:
        files = {folder / HF_FILE}
    found: dict[str, Path] = {}
    for file in sorted(files):
        with opened(functools.partial(safe_open, framework="numpy"), file) as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _gguf_sources(architecture: Architecture, file: Path, dtype: np.dtype) -> Iterator[tuple[str, _ArrayTensor]]:
    model = open_gguf(file)
    for tensor in hf_tensors(architecture):
        whole = _aligned_empty(tensor.hf_shape, dtype)
        model.fill(tensor, whole)
        yield tensor.path, _ArrayTensor(tensor.from_hf(whole), fresh=True)


def _keras_sources(
    architecture: Architecture, folder: Path, tell: Callable[[str], None] | None
) -> Iterator[tuple[str, _H5Tensor]]:
    tensors = {keras_group(tensor.path, architecture.family): tensor for tensor in hf_tensors(architecture)}
    groups = files_of_groups(folder)
    require_names(tensors, (group for group in groups if not reads_images(group)), folder)
    others: list[int] = []
    for file in sorted(set(groups.values())):
        with opened(h5py.File, file) as content:
            others += [dataset.nbytes for name, dataset in datasets(content) if reads_images(name)]
            for group, tensor in tensors.items():
                if groups[group] == file:
                    dataset = content[group]["0"]
                    require_shape(group, dataset.shape, tensor.shape, file)
                    source = _H5Tensor(dataset)
                    if not jnp.issubdtype(source.dtype, jnp.floating):
                        raise quantized(folder, f"{group} in {file.name} is of dtype {source.dtype}")
                    yield tensor.path, source
    if others and tell:
        tell(f"{folder}: {left_out(others)}")
