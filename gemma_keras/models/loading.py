"""Weights from a Hugging Face safetensors folder or a Keras preset folder, tensor by tensor.

A Hugging Face folder has `config.json` and `model.safetensors`, or several files with `model.safetensors.index.json`. A
Keras preset (keras-hub's `save_to_preset`) has `config.json` of class GemmaBackbone and `model.weights.h5`, or several
files with `model.weights.json`.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from keras_hub.models import GemmaBackbone
from safetensors import SafetensorError, safe_open

from gemma_keras.config.errors import UserError
from gemma_keras.models.architectures import NORM_EPSILON, Architecture, from_hf_config
from gemma_keras.models.forward import Params, variable_shapes
from gemma_keras.models.hf_names import hf_tensors

HF_FILE, HF_INDEX = "model.safetensors", "model.safetensors.index.json"
KERAS_FILE, KERAS_INDEX = "model.weights.h5", "model.weights.json"
# Tensors that some checkpoints carry and that hold nothing new: the tied output matrix, RoPE's constants.
IGNORED = re.compile(r"lm_head\.weight|.*\.rotary_emb\.inv_freq")
# Attribute names of keras-hub's layers, by which Keras files them, where they differ from the layers' own names.
KERAS_ATTRIBUTES = {
    "query": "query_dense",
    "key": "key_dense",
    "value": "value_dense",
    "attention_output": "output_dense",
    "ffw_gating": "gating_ffw",
    "ffw_gating_2": "gating_ffw_2",
}


def describe_weights(folder: str | Path) -> Architecture:
    """The shape of the model in `folder`, from its `config.json`.

    Raises:
        UserError: no such folder or file, no JSON, or no Gemma 1 or Gemma 2 model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a Hugging Face folder or a Keras preset folder")
    config = _read_json(folder / "config.json")
    if "class_name" in config:
        return _from_keras_config(config, folder.name)
    return from_hf_config(config, folder.name)


def load_params(backbone: GemmaBackbone, architecture: Architecture, folder: str | Path, dtype: str) -> Params:
    """Weights of `folder` by variable path, as `dtype` ("float32" or "bfloat16"), one tensor at a time.

    Variables of the backbone that no checkpoint has (adapters) are not among them.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing, unknown or of another shape.
    """
    folder = Path(folder)
    if (folder / HF_FILE).exists() or (folder / HF_INDEX).exists():
        params = _load_hf(architecture, folder, dtype)
    elif (folder / KERAS_FILE).exists() or (folder / KERAS_INDEX).exists():
        params = _load_keras(architecture, folder, dtype)
    else:
        raise UserError(
            f"{folder} has neither {HF_FILE} nor {KERAS_FILE} (nor their indexes); download the weights again"
        )
    shapes = variable_shapes(backbone)
    assert all(shapes[path].shape == array.shape for path, array in params.items())
    return params


def _load_hf(architecture: Architecture, folder: Path, dtype: str) -> Params:
    tensors = {tensor.name: tensor for tensor in hf_tensors(architecture)}
    files = _files_of_tensors(folder)
    _require_names(tensors, files, folder)
    params: Params = {}
    for file in sorted({files[name] for name in tensors}):
        with _open_safetensors(file) as opened:
            for name in sorted(tensors.keys() & opened.keys()):
                tensor = tensors[name]
                array = opened.get_tensor(name)
                _require_shape(name, array.shape, tensor.hf_shape, file)
                params[tensor.path] = _to_device(tensor.from_hf(array), dtype)
    return params


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor; every file is opened once, so that a damaged one is found before loading starts."""
    if (folder / HF_INDEX).exists():
        weight_map = _read_json(folder / HF_INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{folder / HF_INDEX} has no weight_map; download it again")
        files = {folder / file for file in weight_map.values()}
    else:
        files = {folder / HF_FILE}
    found: dict[str, Path] = {}
    for file in sorted(files):
        with _open_safetensors(file) as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


@contextlib.contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    if not file.exists():
        raise UserError(f"{file} is missing, though the index names it; download it again")
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({error}); download it again") from error


def _load_keras(architecture: Architecture, folder: Path, dtype: str) -> Params:
    paths = {_keras_group(tensor.path): tensor for tensor in hf_tensors(architecture)}
    groups = _files_of_groups(folder)
    _require_names(paths, groups, folder)
    params: Params = {}
    for file in sorted(set(groups.values())):
        with _open_h5(file) as opened:
            for group, tensor in paths.items():
                if groups[group] != file:
                    continue
                dataset = opened[group]["0"]
                # The change of layout knows the Keras shape: an empty view carries shapes through it for free.
                expected = tensor.from_hf(np.broadcast_to(np.float32(0), tensor.hf_shape)).shape
                _require_shape(group, dataset.shape, expected, file)
                array = np.asarray(dataset)
                if dataset.attrs.get("dtype") == "bfloat16":  # h5 knows no bfloat16, so Keras stores its bytes
                    array = array.view(ml_dtypes.bfloat16)
                params[tensor.path] = _to_device(array, dtype)
    return params


def _keras_group(path: str) -> str:
    """The h5 group of a variable, e.g. `decoder_block_1/attention/query/kernel` ->
    `layers/gemma_decoder_block_1/attention/query_dense/vars`."""
    if path.startswith("token_embedding/"):
        return "layers/reversible_embedding/vars"
    if path.startswith("final_normalization/"):
        return "layers/rms_normalization/vars"
    block, *layers, _ = path.split("/")
    number = block.removeprefix("decoder_block_")
    block = "gemma_decoder_block" if number == "0" else f"gemma_decoder_block_{number}"
    return "/".join(["layers", block, *(KERAS_ATTRIBUTES.get(layer, layer) for layer in layers), "vars"])


def _files_of_groups(folder: Path) -> dict[str, Path]:
    if (folder / KERAS_INDEX).exists():
        weight_map = _read_json(folder / KERAS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{folder / KERAS_INDEX} has no weight_map; download it again")
        # A group may be spread over several files; those of Gemma hold one array each, which the first file has.
        firsts = {group: files[0] if isinstance(files, list) else files for group, files in weight_map.items()}
        return {group.strip("/"): folder / file for group, file in firsts.items()}
    found: dict[str, Path] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name.rpartition("/")[0]] = folder / KERAS_FILE

    with _open_h5(folder / KERAS_FILE) as opened:
        opened.visititems(visit)
    return found


@contextlib.contextmanager
def _open_h5(file: Path) -> Iterator[h5py.File]:
    if not file.exists():
        raise UserError(f"{file} is missing, though the index names it; download it again")
    try:
        with h5py.File(file) as opened:
            yield opened
    except (OSError, KeyError) as error:
        raise UserError(f"{file} is damaged or cut short ({error}); download it again") from error


def _from_keras_config(config: dict[str, Any], name: str) -> Architecture:
    """The shape of a preset. keras-hub has no free query scale: it is head_dim, or D/N where it is told not to use that."""
    kind, values = config.get("class_name"), config.get("config", {})
    if kind != "GemmaBackbone":
        raise UserError(
            f"config.json describes a {kind}; expected a GemmaBackbone: point at a Gemma 1 or Gemma 2 preset"
        )
    if values.get("layer_norm_epsilon", NORM_EPSILON) != NORM_EPSILON:
        raise UserError(f"config.json has layer_norm_epsilon {values['layer_norm_epsilon']}; Gemma has {NORM_EPSILON}")
    if values.get("use_post_ffw_norm", False) != values.get("use_post_attention_norm", False):
        raise UserError("config.json has one of the two post norms; Gemma 1 has neither, Gemma 2 both")
    try:
        heads, head_dim, dim = values["num_query_heads"], values["head_dim"], values["hidden_dim"]
        return Architecture(
            name=name, num_layers=values["num_layers"], hidden_dim=dim,
            intermediate_dim=values["intermediate_dim"] // 2, num_query_heads=heads,
            num_key_value_heads=values["num_key_value_heads"], head_dim=head_dim,
            query_pre_attn_scalar=head_dim if values.get("query_head_dim_normalize", True) else dim // heads,
            vocabulary_size=values["vocabulary_size"],
            sliding_window=values["sliding_window_size"] if values.get("use_sliding_window_attention") else None,
            attention_logit_soft_cap=values.get("attention_logit_soft_cap"),
            final_logit_soft_cap=values.get("final_logit_soft_cap"), post_norms=values.get("use_post_ffw_norm", False),
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"config.json lacks {error}; download the preset again") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}); download the model again") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object; download it again")
    return value


def _require_names(expected: Iterable[str], found: Iterable[str], folder: Path) -> None:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(name for name in set(found) - set(expected) if not IGNORED.fullmatch(name))
    for names, what in ((missing, "lacks"), (unknown, "has besides what config.json describes")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder} {what} the tensor {names[0]}{more}; download the model again")


def _require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], file: Path) -> None:
    if tuple(shape) != tuple(expected):
        raise UserError(
            f"{name} in {file} has shape {tuple(shape)}, but config.json says {tuple(expected)}; use a matching pair"
        )


def _to_device(array: np.ndarray, dtype: str) -> jax.Array:
    return jnp.array(array, dtype=jnp.dtype(dtype))
