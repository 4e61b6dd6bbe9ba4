"""A GGUF file, llama.cpp's form of a model: what it says of itself, its tensors, and the shape that follows.

The gguf library reads and dequantises it. The names of keys are those of its `constants.py`, what a file leaves out is what
llama.cpp's loader assumes (`src/models/gemma*.cpp`). Queries and keys lie as in Hugging Face's folders; norms hold 1 + scale.
"""

import dataclasses
import functools
import importlib.metadata
import math
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import NORM_EPSILON, ROPE_BASE, Architecture
from gemma_keras.models.families import gemma3
from gemma_keras.models.families.config_json import GLOBAL, LOCAL
from gemma_keras.models.families.registry import ARCHITECTURES, from_hf_config
from gemma_keras.models.hf_names import HfTensor, hf_tensors
from gemma_keras.models.weight_checks import damaged
from gemma_keras.models.weight_table import Role

FAMILIES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}  # by general.architecture
BLOCK_NUMBERS = 1 << 22  # of a tensor that are dequantised at a time


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in the file: `data_shape` [..., rows, columns], columns in bytes where it is quantized."""

    block_type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


@dataclasses.dataclass(frozen=True, slots=True)
class GgufFile:
    """An opened file: its metadata by key, its tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the architecture, e.g. `attention.head_count`."""
        return self.metadata.get(f"{self.metadata['general.architecture']}.{key}", default)

    def size(self, key: str) -> int:
        """As `get`. Raises `UserError` where there is no number."""
        if not isinstance(value := self.get(key), int):
            raise UserError(f"{self.path} has no number {key}; download a complete GGUF file of the model")
        return value

    def fill(self, tensor: HfTensor, out: np.ndarray) -> None:
        """Dequantises `tensor` into `out`, of `tensor.hf_shape`, some rows at a time; the file is mapped no longer than that."""
        stored = self.tensors[tensor.kind.gguf_name(tensor.layer)]
        data = np.memmap(self.path, stored.dtype, "r", stored.offset, stored.data_shape)
        rows = max(1, BLOCK_NUMBERS // math.prod(out.shape[1:]))
        for start in range(0, len(out), rows):
            part = gguf.dequantize(data[start : start + rows], stored.block_type)
            out[start : start + rows] = part - np.float32(1) if tensor.kind.role is Role.SCALE else part


def open_gguf(path: str | Path) -> GgufFile:
    """The file at `path`, read once for each of its versions.

    Raises:
        UserError: it is no GGUF file of a whole Gemma 1, 2 or 3 text model, is damaged, or holds blocks of an unknown type.
    """
    path = Path(path)
    try:
        status = path.stat()
        return _opened(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a GGUF file") from error


@functools.lru_cache(maxsize=1)
def _opened(path: Path, size: int, changed: int) -> GgufFile:
    with path.open("rb") as file:
        start = file.read(len(b"GGUF"))
    if start != b"GGUF":
        if start and b"version https://git-lfs".startswith(start):
            raise damaged(path, ValueError("no GGUF"))
        raise UserError(f"{path} is no GGUF file; give one, or the folder of a model in Hugging Face's or Keras' form")
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if "GGMLQuantizationType" in str(error):
            raise _unreadable(path, f"a tensor whose type is unknown ({error})") from error
        raise damaged(path, error) from error
    if reader.byte_order != "I":
        raise UserError(f"{path} is made for big-endian machines; give the little-endian file of the model")
    _require_whole_text_model(path, metadata)
    for tensor in reader.tensors:
        _require_block_type(path, tensor)
    return GgufFile(path, metadata, {tensor.name: _stored(tensor) for tensor in reader.tensors})


class _Reader(gguf.GGUFReader):
    """The library's reader, with the elements of an array in one piece.

    The library makes an array object of each, which for the 262,144 pieces of Gemma 3 takes 9 s and 700 MB.
    """

    _NUMBERS: ClassVar = gguf.GGUFReader.gguf_scalar_to_np

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[gguf.GGUFValueType]]:
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0])
        count, start = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        parts: list[Any]
        if kind in self._NUMBERS:
            parts = [self._get(start, self._NUMBERS[kind], count)]
            if len(parts[0]) != count:
                raise ValueError(f"an array of {count} numbers breaks off")
            end = start + parts[0].nbytes
        elif kind == gguf.GGUFValueType.STRING:
            parts, end = self._strings(start, count)
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        return end - orig_offs, parts, list(range(len(parts))), [gguf.GGUFValueType.ARRAY, kind]

    def _strings(self, start: int, count: int) -> tuple[list[memoryview], int]:
        data, parts = memoryview(self.data), []  # type: ignore[arg-type]
        for _ in range(count):
            first = start + 8
            start = first + int.from_bytes(data[start:first], "little")
            if start > len(data):
                raise ValueError(f"an array of {count} texts breaks off")
            parts.append(data[first:start])
        return parts, start


def _require_whole_text_model(path: Path, metadata: dict[str, Any]) -> None:
    if metadata.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of the {metadata['split.count']} parts of a model; put them together with llama-gguf-split "
            "--merge and give the whole"
        )
    kind, architecture = metadata.get("general.type", "model"), metadata.get("general.architecture")
    if architecture == "clip" or kind != "model":
        what = (
            "the part that reads images (mmproj)" if architecture == "clip" or kind == "mmproj" else f"of type {kind}"
        )
        raise UserError(f"{path} is no text model but {what}; give the GGUF file of the text model")
    if architecture not in FAMILIES:
        raise UserError(
            f"{path} is a model of architecture {architecture!r}; expected {' or '.join(map(repr, FAMILIES))}: give a "
            "Gemma 1, 2 or 3 model"
        )


def _require_block_type(path: Path, tensor: gguf.ReaderTensor) -> None:
    try:
        _, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        gguf.dequantize(np.zeros(size, np.uint8), tensor.tensor_type)
    except NotImplementedError as error:
        raise _unreadable(path, f"{tensor.name} in {tensor.tensor_type.name}") from error


def _unreadable(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} has {what}, which version {importlib.metadata.version('gguf')} of the gguf library cannot read; install a newer "
        "one, or give the model in another quantization, e.g. Q8_0"
    )


def _stored(tensor: gguf.ReaderTensor) -> StoredTensor:
    shape = tuple(reversed(tensor.shape.tolist()))
    return StoredTensor(tensor.tensor_type, shape, tensor.data.shape, tensor.data.dtype, tensor.data_offset)


def gguf_architecture(file: GgufFile) -> Architecture:
    """The shape of the model.

    Raises:
        UserError: a size is missing, the model computes something else, or its tensors are others than the sizes ask for.
    """
    try:
        architecture = from_hf_config(as_hf_config(file), file.path.stem)
    except UserError as error:
        raise UserError(str(error).replace("config.json", str(file.path))) from error
    expected = {tensor.kind.gguf_name(tensor.layer): tensor for tensor in hf_tensors(architecture)}
    for names, what in (
        (expected.keys() - file.tensors.keys(), "lacks"),
        (file.tensors.keys() - expected.keys(), "has beyond what its sizes ask for"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{file.path} {what} the tensor {min(names)}{more}; download another GGUF file of the model"
            )
    for name, tensor in expected.items():
        if (shape := file.tensors[name].shape) != tensor.hf_shape:
            raise UserError(
                f"{name} in {file.path} has shape {shape}, but its sizes ask for {tensor.hf_shape}; download another GGUF file "
                "of the model"
            )
    return architecture


def as_hf_config(file: GgufFile) -> dict[str, Any]:
    """What the metadata says, as the `config.json` of a Hugging Face folder would."""
    family = FAMILIES[file.metadata["general.architecture"]]
    layers, dim, heads = map(file.size, ("block_count", "embedding_length", "attention.head_count"))
    head_dim = file.get("attention.key_length", dim // heads)
    if file.get("attention.value_length", head_dim) != head_dim:
        raise UserError(f"{file.path} has values of another length than keys, as no Gemma 1, 2 or 3 has; use Google's")
    table = file.tensors.get("token_embd.weight")
    epsilon = file.get("attention.layer_norm_rms_epsilon", NORM_EPSILON)
    config = {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": dim,
        "intermediate_size": file.size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": table.shape[0] if table else 0,
        "max_position_embeddings": file.size("context_length"),
        "rms_norm_eps": NORM_EPSILON if np.float32(epsilon) == np.float32(NORM_EPSILON) else epsilon,
        "query_pre_attn_scalar": _query_scalar(family, layers, dim, heads, head_dim),
        "rope_theta": file.get("rope.freq_base", gemma3.GLOBAL_ROPE_BASE if family == gemma3.FAMILY else ROPE_BASE),
    }
    scaling = file.get("rope.scaling.type", "none")
    if scaling != "none":
        config["rope_scaling"] = {"rope_type": scaling, "factor": file.get("rope.scaling.factor")}
    if family == "gemma2":
        config["attn_logit_softcapping"] = file.get("attn_logit_softcapping", 50.0)
        config["sliding_window"] = file.get("attention.sliding_window", 4096)
    if family == gemma3.FAMILY:
        config["rope_local_base_freq"] = file.get("rope.freq_base_swa", ROPE_BASE)
        config["sliding_window"] = file.get("attention.sliding_window")
        config |= _pattern(file.get("attention.sliding_window_pattern", gemma3.PERIOD))
    if family != "gemma":
        config["final_logit_softcapping"] = file.get("final_logit_softcapping", 30.0 if family == "gemma2" else None)
    return config


def _query_scalar(family: str, layers: int, dim: int, heads: int, head_dim: int) -> float:
    """No key says it: that of the published model of these sizes (of 27b models D/N), else the head dim, as llama.cpp has it."""
    for shape in ARCHITECTURES.values():
        if (shape.family, shape.num_layers, shape.hidden_dim, shape.num_query_heads) == (family, layers, dim, heads):
            return shape.query_scalar
    return head_dim


def _pattern(stated: int | list[bool]) -> dict[str, Any]:
    if isinstance(stated, int):
        return {"sliding_window_pattern": stated}
    return {"layer_types": [LOCAL if local else GLOBAL for local in stated]}
