"""Exported folders: read by transformers, and read again by us."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from gemma_keras.config.errors import UserError
from gemma_keras.export.huggingface import export_hf
from gemma_keras.models.families.registry import to_hf_config
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.loading import describe_weights, load_params
from tests.conftest import REPOSITORY
from tests.models.conftest import lively_params, lively_tensors, small, small_gemma1, small_gemma3
from tests.models.test_text_part import save_multimodal

GEMMA2 = small(vocabulary_size=2560, query_pre_attn_scalar=9)
GEMMA1 = small_gemma1(vocabulary_size=2560)
GEMMA3 = small_gemma3(vocabulary_size=2624, surplus_rows=64)
FAMILIES = {"Gemma 1": GEMMA1, "Gemma 2": GEMMA2, "Gemma 3": GEMMA3}


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


@pytest.mark.parametrize("architecture", FAMILIES.values(), ids=FAMILIES)
def test_transformers_loads_the_folder_and_gives_the_same_logits(architecture, tokenizer, tmp_path):
    params = lively_params(architecture)
    export_hf(params, architecture, tokenizer, tmp_path / "export", dtype="float32", shard_megabytes=1)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", attn_implementation="eager", output_loading_info=True
    )
    assert type(model).__name__ == to_hf_config(architecture, "float32")["architectures"][0]
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens = np.random.default_rng(1).integers(0, 2560, (2, 30))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(our_logits(architecture, params, tokens), theirs, rtol=0, atol=2e-4)
    assert model.generation_config.eos_token_id == [tokenizer.eos_id, tokenizer.end_of_turn_id]


@pytest.mark.parametrize("architecture", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_transformers_comes_back_bit_for_bit(architecture, dtype, tokenizer, tmp_path):
    config = transformers.AutoConfig.for_model(**to_hf_config(architecture, dtype))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict({n: torch.tensor(x) for n, x in lively_tensors(architecture).items()}, strict=False)
    model.save_pretrained(tmp_path / "theirs")
    loaded = describe_weights(tmp_path / "theirs").replace(surplus_rows=architecture.surplus_rows)
    params = load_params(build_backbone(loaded, dtype), loaded, tmp_path / "theirs", dtype)
    export_hf(params, loaded, tokenizer, tmp_path / "ours", dtype=dtype)
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and value.tobytes() == after[name].tobytes(), name
    assert describe_weights(tmp_path / "ours") == loaded.replace(name="ours", surplus_rows=0)


def test_the_text_part_of_a_multimodal_folder_comes_back_bit_for_bit(tokenizer, tmp_path):
    theirs = save_multimodal(tmp_path / "theirs", architecture=GEMMA3).eval()
    loaded = describe_weights(tmp_path / "theirs").replace(surplus_rows=64)
    params = load_params(build_backbone(loaded, "float32"), loaded, tmp_path / "theirs", "float32")
    export_hf(params, loaded, tokenizer, tmp_path / "ours", dtype="float32")
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert after.keys() == {
        name.removeprefix("language_model.") for name in before if name.startswith("language_model.")
    }
    for name, value in after.items():
        assert value.tobytes() == before[f"language_model.{name}"].tobytes(), name
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(ours).__name__ == "Gemma3ForCausalLM"
    tokens = torch.randint(0, 2560, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (ours(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


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


def test_progress_and_weights_asked_for_once(tokenizer, tmp_path):
    params, asked, calls = lively_params(GEMMA2), [], []

    class Computed(dict):
        def __getitem__(self, path):
            asked.append(path)
            return params[path]

    export_hf(Computed(), GEMMA2, tokenizer, tmp_path / "export", progress=lambda *call: calls.append(call))
    assert sorted(asked) == sorted(params)
    assert calls == [
        (sum(2 * params[p].size for p in asked[: i + 1]), 2 * GEMMA2.parameter_count) for i in range(len(asked))
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_rows_and_tiles_join(dtype, tokenizer, tmp_path, monkeypatch):
    """Blocks and tiles that divide no size, against transformations of whole arrays."""
    monkeypatch.setattr("gemma_keras.export.huggingface.BLOCK_BYTES", 10_007)
    monkeypatch.setattr("gemma_keras.export.huggingface.TILE", 7)
    export_hf(lively_params(GEMMA2), GEMMA2, tokenizer, tmp_path / "export", dtype=dtype)
    written, expected = tensors(tmp_path / "export"), lively_tensors(GEMMA2)
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value.astype(written[name].dtype), err_msg=name)
        assert written[name].dtype == dtype


SPREAD = """
import os, sys
import jax

rank, port, source, out = sys.argv[1:]
if port != "0":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
from gemma_keras import builtin
from gemma_keras.export.huggingface import export_hf
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.parallel.mesh import make_mesh
from gemma_keras.models.weight_sharding import param_sharding
from gemma_keras.text.tokenizer import Tokenizer

architecture, mesh = describe_weights(source), make_mesh(jax.devices(), 2, 4)
params = load_params(
    build_backbone(architecture, "float32"), architecture, source, "float32",
    shardings=lambda path, shape: param_sharding(mesh, path, shape),
)
assert any(array.is_fully_addressable for array in params.values()) == (port == "0")
tokenizer = Tokenizer(builtin.TOKENIZER)
kept = sum(array._npy_value is not None for array in params.values())
export_hf(params, architecture, tokenizer, out, dtype="float32")
assert sum(array._npy_value is not None for array in params.values()) == kept
assert os.path.exists(os.path.join(out, "config.json"))
"""


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_weights_spread_over_devices_and_processes(processes, tokenizer, tmp_path):
    """8 devices in one process or two: the folder that the weights came from, bit for bit."""
    export_hf(lively_params(GEMMA2), GEMMA2, tokenizer, tmp_path / "source", dtype="float32")
    port = 0
    if processes == 2:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SPREAD, str(rank), str(port), tmp_path / "source", tmp_path / "out"],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}, cwd=REPOSITORY, stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        for child in children:
            error = child.communicate(timeout=240)[1]
            assert child.returncode == 0, error.decode()
    finally:
        for child in children:
            child.kill()
    for file in (tmp_path / "source").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]
