"""A model as a Hugging Face folder that transformers, and everything built on it, loads as Gemma.

keras-hub's own exporter writes Gemma 1's model type, the first KV head only, and neither post norms nor soft caps; so
this is ours. The names and layouts are those of `models/hf_names.py`, which loading uses too.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gemma_keras.config.errors import UserError
from gemma_keras.config.writing import put_in_place
from gemma_keras.export.safetensors_writer import TensorEntry, write_safetensors
from gemma_keras.export.tokenizer_files import require_expressible, write_tokenizer_files
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import to_hf_config
from gemma_keras.models.hf_names import HfTensor, hf_tensors
from gemma_keras.text.foreign_template import ChatTemplate
from gemma_keras.text.templates import DEFAULT, TEMPLATES
from gemma_keras.text.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 64 * 10**6  # of a tensor whose layout stays, such as the embeddings, that many are on the host at a time
TILE = 256  # rows and columns of a matrix that are transposed together, so that they stay in the processor's cache


def export_hf(
    params: Mapping[str, Any],
    architecture: Architecture,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_megabytes: int = 4000,
    template: ChatTemplate = TEMPLATES[DEFAULT],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes folder `out`: config, weights as `dtype` in shards of about `shard_megabytes`, tokenizer, chat template.

    `params` maps the variable path of every merged weight to its array; others (adapters) are left aside. It is asked for
    each weight once, and no second weight is held meanwhile, so it may compute them (`adapters.inject.MergedParams`).
    The folder appears complete or not at all, and replaces an earlier export. `progress` is called after each tensor
    with the bytes written by now and in all. With several processes all have to call this, since they all-gather what is
    sharded over them; the first one writes, and all return when the folder is there.

    Raises:
        UserError: `out` is something else than an earlier export, or the tokenizer is of another size than the model or
            of a kind that only SentencePiece reads.
        OSError: the disk is full.
    """
    out = Path(out)
    if out.exists() and not (out / INDEX).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no earlier export; give an empty or a new folder")
    if tokenizer.vocabulary_size != architecture.pieces:
        raise UserError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocabulary_size} pieces and the model "
            f"{architecture.pieces} embeddings; give the tokenizer that the model was trained with"
        )
    require_expressible(tokenizer)
    if jax.process_index() == 0:
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
        config = to_hf_config(architecture, dtype) | ids | {"eos_token_id": tokenizer.eos_id}
        _write_json(partial / "config.json", config)
        stops = sorted(template.stop_ids(tokenizer))
        _write_json(partial / "generation_config.json", ids | {"eos_token_id": stops})
        _write_weights(params, architecture, partial, dtype, shard_megabytes * 10**6, progress)
        write_tokenizer_files(tokenizer, template, partial)
        put_in_place(partial, out)
    else:
        for tensor in hf_tensors(architecture):
            gathered(params[tensor.path])
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"exported {out.name}")


def _write_weights(
    params: Mapping[str, Any],
    architecture: Architecture,
    folder: Path,
    dtype: str,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    itemsize = jnp.dtype(dtype).itemsize
    shards = _shards(list(hf_tensors(architecture)), itemsize, shard_bytes)
    total = sum(tensor.size for shard in shards for tensor in shard)
    done = 0

    def entry(tensor: HfTensor) -> TensorEntry:
        def blocks() -> Iterator[np.ndarray]:
            nonlocal done
            yield from _hf_blocks(gathered(params[tensor.path]), tensor, jnp.dtype(dtype))
            done += tensor.size * itemsize
            if progress:
                progress(done, total * itemsize)

        return TensorEntry(tensor.name, tensor.hf_shape, dtype, blocks)

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, [entry(tensor) for tensor in shard], metadata={"format": "pt"})
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), file)
    metadata = {"total_parameters": total, "total_size": total * itemsize}
    _write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})


def _shards(tensors: list[HfTensor], itemsize: int, shard_bytes: int) -> list[list[HfTensor]]:
    """Tensors in order, a new file where the next one would pass `shard_bytes` (a larger tensor has its own)."""
    shards: list[list[HfTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = tensor.size * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def gathered(array: Any) -> Any:
    """The array itself, or all of it as a NumPy array where parts are with other processes (which take part in this)."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return array


def _hf_blocks(array: Any, tensor: HfTensor, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tensor as Hugging Face lays it out: in blocks of rows where the layout stays, else whole."""
    assert array.shape == tensor.shape, (tensor.path, array.shape, tensor.shape)
    if not tensor.same_layout:
        out = np.empty(tensor.hf_shape, dtype)
        _copy_rows(tensor.from_hf(out), array, 0)
        yield out
        return
    rows = max(1, BLOCK_BYTES * array.shape[0] // (tensor.size * dtype.itemsize))
    for start in range(0, array.shape[0], rows):
        out = np.empty((min(rows, array.shape[0] - start), *array.shape[1:]), dtype)
        _copy_rows(out, array, start)
        yield out


def _copy_rows(out: np.ndarray, array: Any, start: int) -> None:
    """`out[...] = array[start : start + len(out)]`, shard by shard.

    NumPy's conversion of a sharded array would build the whole of it on the host, and the array would keep that copy.
    """
    if not isinstance(array, jax.Array):
        _copy(out, np.asarray(array)[start : start + len(out)])
        return
    for shard in array.addressable_shards:
        if shard.replica_id != 0:
            continue
        (first, last, _), *rest = (part.indices(size) for part, size in zip(shard.index, array.shape, strict=True))
        low, high = max(first, start), min(last, start + len(out))
        if low < high:
            columns = tuple(slice(*part) for part in rest)
            _copy(out[(slice(low - start, high - start), *columns)], _on_host(shard.data, low - first, high - first))


def _on_host(shard: jax.Array, low: int, high: int) -> np.ndarray:
    """Rows of a shard: on CPU a view, else a copy that the shard does not keep (it would keep one of the whole shard)."""
    if next(iter(shard.devices())).platform == "cpu":
        return np.asarray(shard)[low:high]
    rows = shard[low:high]
    return np.asarray(rows.copy() if rows is shard else rows)


def _copy(out: np.ndarray, source: np.ndarray) -> None:
    if out.ndim != 2 or out.flags.c_contiguous:
        out[...] = source
        return
    for row in range(0, out.shape[0], TILE):
        for column in range(0, out.shape[1], TILE):
            tile = slice(row, row + TILE), slice(column, column + TILE)
            out[tile] = source[tile]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
