"""Exported folders: read by transformers, and read again by us."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from gemma_keras.config.errors import UserError
from gemma_keras.export.huggingface import export_hf
from gemma_keras.models.architectures import to_hf_config
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.loading import describe_weights, load_params
from tests.models.conftest import lively_params, lively_tensors, small, small_gemma1

GEMMA2 = small(vocabulary_size=2560, query_pre_attn_scalar=9)
GEMMA1 = small_gemma1(vocabulary_size=2560)


def tensors(folder):
    """Every tensor of a folder, whatever its files."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            found |= {name: opened.get_tensor(name) for name in list(opened.keys())}
    return found


def our_logits(architecture, params, tokens):
    backbone = build_backbone(architecture, "float32")
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    run = jax.jit(lambda params: logits(backbone, params, forward(backbone, params, tokens, positions, tokens * 0 + 1)))
    return np.asarray(run(params))


@pytest.mark.parametrize("architecture", [GEMMA2, GEMMA1], ids=["Gemma 2", "Gemma 1"])
def test_transformers_loads_the_folder_and_gives_the_same_logits(architecture, tokenizer, tmp_path):
    params = lively_params(architecture)
    export_hf(params, architecture, tokenizer, tmp_path / "export", dtype="float32", shard_megabytes=1)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", attn_implementation="eager", output_loading_info=True
    )
    assert type(model).__name__ == ("Gemma2ForCausalLM" if architecture.post_norms else "GemmaForCausalLM")
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens = np.random.default_rng(1).integers(0, 2560, (2, 30))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(our_logits(architecture, params, tokens), theirs, rtol=0, atol=2e-4)
    assert model.generation_config.eos_token_id == [tokenizer.eos_id, tokenizer.end_of_turn_id]


@pytest.mark.parametrize("architecture", [GEMMA2, GEMMA1], ids=["Gemma 2", "Gemma 1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_transformers_comes_back_bit_for_bit(architecture, dtype, tokenizer, tmp_path):
    config = transformers.AutoConfig.for_model(**to_hf_config(architecture, dtype))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict({n: torch.tensor(x) for n, x in lively_tensors(architecture).items()}, strict=False)
    model.save_pretrained(tmp_path / "theirs")
    loaded = describe_weights(tmp_path / "theirs")
    params = load_params(build_backbone(loaded, dtype), loaded, tmp_path / "theirs", dtype)
    export_hf(params, loaded, tokenizer, tmp_path / "ours", dtype=dtype)
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and value.tobytes() == after[name].tobytes(), name
    assert describe_weights(tmp_path / "ours") == loaded.replace(name="ours")


def test_shards_and_index(tokenizer, tmp_path):
    params = lively_params(GEMMA2)
    export_hf(params, GEMMA2, tokenizer, tmp_path / "small", dtype="bfloat16", shard_megabytes=0)
    export_hf(params, GEMMA2, tokenizer, tmp_path / "large", dtype="bfloat16")
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(index["weight_map"]) == len(tensors(tmp_path / "small"))
    assert index["metadata"]["total_size"] == 2 * GEMMA2.parameter_count
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "small" / file, framework="numpy") as opened:
            assert list(opened.keys()) == [name] and opened.metadata() == {"format": "pt"}
    assert [file.name for file in (tmp_path / "large").glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]


def test_the_same_weights_give_the_same_bytes_and_replace_an_earlier_export(tokenizer, tmp_path):
    out, params = tmp_path / "export", lively_params(GEMMA2)
    export_hf(params, GEMMA2, tokenizer, out, dtype="bfloat16")
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "stray.safetensors").write_bytes(b"")
    export_hf(
        {**params, "decoder_block_0/attention/query/lora_A": params["final_normalization/scale"]},
        GEMMA2,
        tokenizer,
        out,
    )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def test_a_failed_export_leaves_the_earlier_one(tokenizer, tmp_path):
    out, params = tmp_path / "export", lively_params(GEMMA2)
    export_hf(params, GEMMA2, tokenizer, out)
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    del params["final_normalization/scale"]
    with pytest.raises(KeyError):
        export_hf(params, GEMMA2, tokenizer, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first


def test_a_users_folder_is_not_overwritten(tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no earlier export"):
        export_hf({}, GEMMA2, tokenizer, tmp_path)


def test_another_tokenizer_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="2560 pieces and the model 97"):
        export_hf({}, small(), tokenizer, tmp_path / "export")
