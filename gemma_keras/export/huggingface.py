"""A model as a Hugging Face folder that transformers, and everything built on it, loads as Gemma.

keras-hub's own exporter writes Gemma 1's model type, the first KV head only, and neither post norms nor soft caps; so
this is ours. The names and layouts are those of `models/hf_names.py`, which loading uses too.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from gemma_keras.config.errors import UserError
from gemma_keras.export.tokenizer_files import write_tokenizer_files
from gemma_keras.models.architectures import Architecture, to_hf_config
from gemma_keras.models.forward import Params
from gemma_keras.models.hf_names import HfTensor, hf_tensors
from gemma_keras.text.templates import TEMPLATES, Template
from gemma_keras.text.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"


def export_hf(
    params: Params,
    architecture: Architecture,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_megabytes: int = 4000,
    template: Template = TEMPLATES["gemmalm_zh"],
) -> None:
    """Writes folder `out`: config, weights as `dtype` in shards of about `shard_megabytes`, tokenizer, chat template.

    `params` hold the merged weights by variable path; others (adapters) are left aside. One shard at most is in memory
    beside them. The folder appears complete or not at all, and replaces an earlier export.

    Raises:
        UserError: `out` is something else than an earlier export, or the tokenizer is of another size than the model.
    """
    out = Path(out)
    if out.exists() and not (out / INDEX).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no earlier export; give an empty or a new folder")
    if tokenizer.vocabulary_size != architecture.vocabulary_size:
        raise UserError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocabulary_size} pieces and the model "
            f"{architecture.vocabulary_size} embeddings; give the tokenizer that the model was trained with"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    _write_json(partial / "config.json", to_hf_config(architecture, dtype) | ids | {"eos_token_id": tokenizer.eos_id})
    stops = [tokenizer.eos_id, tokenizer.end_of_turn_id]
    _write_json(partial / "generation_config.json", ids | {"eos_token_id": stops})
    _write_weights(params, architecture, partial, dtype, shard_megabytes * 10**6)
    write_tokenizer_files(tokenizer, template, partial)
    _put_in_place(partial, out)


def _write_weights(params: Params, architecture: Architecture, folder: Path, dtype: str, shard_bytes: int) -> None:
    itemsize = jnp.dtype(dtype).itemsize
    shards = _shards(list(hf_tensors(architecture)), itemsize, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {tensor.name: _hf_array(params, tensor, dtype) for tensor in shard}
        save_file(arrays, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(arrays, file)
    total = sum(_size(tensor) for shard in shards for tensor in shard)
    metadata = {"total_parameters": total, "total_size": total * itemsize}
    _write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})


def _shards(tensors: list[HfTensor], itemsize: int, shard_bytes: int) -> list[list[HfTensor]]:
    """Tensors in order, a new file where the next one would pass `shard_bytes` (a larger tensor has its own)."""
    shards: list[list[HfTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _size(tensor) * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _size(tensor: HfTensor) -> int:
    return int(np.prod(tensor.hf_shape))


def _hf_array(params: Params, tensor: HfTensor, dtype: str) -> np.ndarray:
    array = tensor.to_hf(np.asarray(params[tensor.path]))
    assert array.shape == tensor.hf_shape, (tensor.path, array.shape, tensor.hf_shape)
    return np.ascontiguousarray(array, dtype=jnp.dtype(dtype))


def _put_in_place(partial: Path, out: Path) -> None:
    """Renames the finished folder to `out`; an earlier one is moved aside first and then deleted."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
