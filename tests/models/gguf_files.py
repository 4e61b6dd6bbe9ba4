"""GGUF files as llama.cpp's converter writes them, made with the gguf library."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.gguf_file import FAMILIES
from gemma_keras.models.hf_names import hf_tensors
from gemma_keras.models.weight_table import Role
from tests.models.conftest import lively_tensors

F32 = gguf.GGMLQuantizationType.F32
NAMES = {family: name for name, family in FAMILIES.items()}


def metadata(architecture: Architecture) -> dict[str, Any]:
    """The keys of a model, those of its architecture with its name in front; numbers as float32 where the format has these."""
    final = architecture.pattern[-1]
    keys = {
        "context_length": architecture.max_position,
        "embedding_length": architecture.hidden_dim,
        "block_count": architecture.num_layers,
        "feed_forward_length": architecture.intermediate_dim,
        "attention.head_count": architecture.num_query_heads,
        "attention.head_count_kv": architecture.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        "attention.key_length": architecture.head_dim,
        "attention.value_length": architecture.head_dim,
        "attention.sliding_window": architecture.sliding_window,
        "attn_logit_softcapping": architecture.attention_logit_soft_cap,
        "final_logit_softcapping": architecture.final_logit_soft_cap,
    }
    if architecture.family == "gemma3_text":
        keys["rope.freq_base"] = final.rope_base
        if final.rope_scaling != 1:
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": final.rope_scaling}
    name = NAMES[architecture.family]
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in keys.items() if value is not None}


def write(path: Path, values: dict[str, Any], tensors: dict[str, tuple], **options: Any) -> Path:
    """Writes keys and tensors, each quantized as it says."""
    writer = gguf.GGUFWriter(path, values["general.architecture"], **options)
    for key, value in values.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, (array, block_type) in tensors.items():
        if block_type == F32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, block_type), raw_dtype=block_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_tensors(architecture: Architecture, block_type: gguf.GGMLQuantizationType) -> dict[str, tuple]:
    """Those of `lively_tensors` by llama.cpp's names; norms hold 1 + scale and are never quantized."""
    lively = lively_tensors(architecture)
    tensors = {}
    for tensor in hf_tensors(architecture):
        value, is_norm = lively[tensor.name], tensor.kind.role is Role.SCALE
        name = tensor.kind.gguf_name(tensor.layer)
        tensors[name] = (value + np.float32(1), F32) if is_norm else (value, block_type)
    return tensors


def save(architecture: Architecture, path: Path, block_type=F32, more: dict[str, Any] | None = None) -> Path:
    """A file of that shape with the weights of `lively_tensors`; `more` are keys beside its own."""
    return write(path, metadata(architecture) | (more or {}), stored_tensors(architecture, block_type))
