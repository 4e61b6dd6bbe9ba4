"""Weights with more rows of embeddings than the tokenizer has pieces, from the folder to what the stages make of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import ExportConfig, ModelConfig
from gemma_keras.config.stages import ExportStageConfig
from gemma_keras.export.huggingface import export_hf
from gemma_keras.export.tokenizer_files import USER_DEFINED, Piece
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import build_backbone, initial_params
from gemma_keras.stages import export
from gemma_keras.text.tokenizer import IMAGE_ENTRY, Tokenizer
from tests.export.test_tokenizer_files import with_pieces


@pytest.fixture
def whole(tmp_path):
    """A tiny model's folder in one shard, without an index."""
    backbone = build_backbone(get_architecture("gemma2_tiny"), "float32")
    tokenizer, folder = Tokenizer(builtin.TOKENIZER), tmp_path / "whole"
    export_hf(initial_params(backbone, 0), backbone.architecture, tokenizer, folder, dtype="float32")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    return folder


def pad(folder, rows):
    """As `resize_token_embeddings(pad_to_multiple_of=...)` of transformers leaves a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": config["vocab_size"] + rows}), encoding="utf-8"
    )
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate([table, table[:rows] + 1])
    save_file(tensors, folder / "model.safetensors")


def exported(folder, workdir):
    export.run(ExportStageConfig(model=ModelConfig(weights=str(folder)), export=ExportConfig(dtype="float32")), workdir)
    return load_file(workdir / "export" / "model-00001-of-00001.safetensors")


def test_rows_without_a_piece_are_kept_and_told(whole, tmp_path, capsys):
    pad(whole, 64)
    expected = load_file(whole / "model.safetensors")
    found = exported(whole, tmp_path / "run")
    assert "64 more rows of embeddings" in capsys.readouterr().err
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == 2624


@pytest.mark.parametrize(
    "entry, rows", [("added_tokens.json", 0), ("tokenizer.json", 64), ("tokenizer.model", 0), ("tokenizer.model", 64)]
)
def test_the_entry_for_images_needs_no_row(entry, rows, whole, tmp_path):
    """As Gemma 3's tokenizers list it, for 270m and 1b beyond their rows."""
    pad(whole, rows)
    listed = {
        "added_tokens.json": json.dumps({IMAGE_ENTRY: 2560}).encode(),
        "tokenizer.json": json.dumps({"added_tokens": [{"id": 2560, "content": IMAGE_ENTRY}]}).encode(),
        "tokenizer.model": with_pieces(builtin.TOKENIZER.read_bytes(), [Piece(IMAGE_ENTRY, 0.0, USER_DEFINED)]),
    }
    (whole / entry).write_bytes(listed[entry])
    assert len(exported(whole, tmp_path / "run")["model.embed_tokens.weight"]) == 2560 + rows
    assert IMAGE_ENTRY.encode() not in (tmp_path / "run" / "export" / "tokenizer.model").read_bytes()


def test_other_surplus_rows_are_another_tokenizers(whole, tmp_path):
    pad(whole, 65)
    with pytest.raises(UserError, match="2560 pieces.* 2625 embeddings; give the tokenizer of these weights"):
        exported(whole, tmp_path / "run")


def test_rows_of_added_tokens_are_no_padding(whole, tmp_path):
    pad(whole, 64)
    (whole / "added_tokens.json").write_text('{"<tool>": 2560}', encoding="utf-8")
    with pytest.raises(UserError, match="'<tool>'"):
        exported(whole, tmp_path / "run")
