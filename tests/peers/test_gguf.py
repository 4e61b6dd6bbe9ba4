"""We read what llama.cpp's converter makes of our exports: shapes, weights, token ids, chat templates."""

import dataclasses
import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_keras.config.sections import ModelConfig
from gemma_keras.config.stages import ExportStageConfig
from gemma_keras.export.huggingface import export_hf
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.hf_names import hf_tensors
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.stages.running.assets import resolve_template, resolve_tokenizer
from gemma_keras.text.templates import TEMPLATES
from tests.models.conftest import lively_params, lively_tensors
from tests.peers.test_llama_cpp import texts

pytestmark = pytest.mark.peers


def scaled(architecture):
    """As 4b: positions of global layers are divided by 8."""
    *local, final = architecture.pattern
    return architecture.replace(pattern=(*local, dataclasses.replace(final, rope_scaling=8.0)))


SIZES = dict(num_layers=2, hidden_dim=64, intermediate_dim=96, num_query_heads=4, head_dim=32, vocabulary_size=2560)
MODELS = {
    "Gemma 1": get_architecture("gemma_2b").replace(**SIZES, query_pre_attn_scalar=32, max_position=2048),
    "Gemma 2": get_architecture("gemma2_tiny"),
    "Gemma 3": scaled(get_architecture("gemma3_tiny")),
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tokenizer, tmp_path_factory):
    """(architecture, folder): a model with Google's template."""
    architecture, folder = MODELS[request.param], tmp_path_factory.mktemp("model") / "export"
    params = lively_params(architecture)
    export_hf(params, architecture, tokenizer, folder, dtype="float32", template=TEMPLATES["gemma"])
    return architecture, folder


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_what_the_converter_writes_is_what_was_exported(kind, exported, convert, tokenizer, tmp_path):
    architecture, folder = exported
    path = tmp_path / "model.gguf"
    convert(folder, path, kind)
    assert describe_weights(path) == architecture.replace(name="model")
    params = load_params(build_backbone(architecture, "float32"), architecture, path, "float32")
    block_type = gguf.GGMLQuantizationType[kind.upper()]
    lively = lively_tensors(architecture)
    for tensor in hf_tensors(architecture):
        value = lively[tensor.name]
        if value.ndim == 1:
            expected = (value + np.float32(1)) - np.float32(1)
        else:
            expected = gguf.dequantize(gguf.quantize(value, block_type), block_type)
        np.testing.assert_array_equal(params[tensor.path], tensor.from_hf(expected), err_msg=tensor.path)

    config = ExportStageConfig(model=ModelConfig(weights=str(path)))
    found = resolve_tokenizer(config, tmp_path / "work")
    assert found.control_pieces == tokenizer.control_pieces
    for text in texts(tokenizer):
        assert found.encode_content(text) == tokenizer.encode_content(text), text
        assert found.encode_with_control(text) == tokenizer.encode_with_control(text), text
    template = resolve_template(config)
    assert template.name == "gemma"
    assert template.source == (folder / "chat_template.jinja").read_text(encoding="utf-8")


def test_rows_beyond_the_pieces(exported, convert, tokenizer, tmp_path):
    """The converter gives each a piece of its own."""
    folder = exported[1]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    table = tensors["model.embed_tokens.weight"]
    padded = tmp_path / "padded"
    padded.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "tokenizer.json"):
        (padded / name).write_bytes((folder / name).read_bytes())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 2624}), encoding="utf-8")
    save_file(
        tensors | {"model.embed_tokens.weight": np.concatenate([table, table[:64]])}, padded / "model.safetensors"
    )
    convert(padded, tmp_path / "model.gguf")
    config = ExportStageConfig(model=ModelConfig(weights=str(tmp_path / "model.gguf")))
    assert describe_weights(config.model.weights).vocabulary_size == 2624
    assert resolve_tokenizer(config, tmp_path / "work").vocabulary_size == tokenizer.vocabulary_size == 2560
