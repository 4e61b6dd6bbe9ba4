"""Weights from Hugging Face folders and Keras presets."""

import json
import os
import subprocess
import sys

import gguf
import keras_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from gemma_keras.config.errors import UserError
from gemma_keras.models.families.registry import to_hf_config
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.models.weight_checks import is_padded, require_no_more_tokens
from tests.conftest import REPOSITORY
from tests.models import gguf_files
from tests.models.conftest import lively_params, lively_tensors, small, small_gemma1


def save_hf(architecture, folder, dtype="float32", shard="1GB"):
    """A folder written by transformers itself."""
    config = transformers.AutoConfig.for_model(**to_hf_config(architecture, dtype))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    state = {name: torch.tensor(value) for name, value in lively_tensors(architecture).items()}
    model.load_state_dict(state, strict=False)
    model.save_pretrained(folder, max_shard_size=shard)


def load(folder, dtype="float32"):
    architecture = describe_weights(folder)
    return load_params(build_backbone(architecture, dtype), architecture, folder, dtype)


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same(params, expected):
    assert params.keys() == expected.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[path].astype(value.dtype)), err_msg=path)


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
@pytest.mark.parametrize("architecture", [small(), small_gemma1()], ids=["Gemma 2", "Gemma 1"])
def test_hf_folder(architecture, shard, tmp_path):
    save_hf(architecture, tmp_path, shard=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    assert describe_weights(tmp_path) == architecture.replace(name=tmp_path.name)
    assert_same(load(tmp_path), lively_params(architecture))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_dtypes(stored, wanted, tmp_path):
    save_hf(small(), tmp_path, stored)
    params = load(tmp_path, wanted)
    assert {value.dtype.name for value in params.values()} == {wanted}
    expected = {path: value.astype(stored) for path, value in lively_params(small()).items()}
    assert_same(params, expected)


def preset(folder, dtype, gemma2=True, **options):
    extra = dict(
        use_post_ffw_norm=True, use_post_attention_norm=True, attention_logit_soft_cap=50.0, final_logit_soft_cap=30.0,
        use_sliding_window_attention=True, sliding_window_size=8,
    )  # fmt: skip
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=97, num_layers=3, num_query_heads=4, num_key_value_heads=2, hidden_dim=32, intermediate_dim=96,
        head_dim=16, dtype=dtype, **(extra if gemma2 else {}),
    )  # fmt: skip
    backbone.save_to_preset(folder, **options)


@pytest.mark.parametrize(
    "gemma2, dtype, options",
    [(True, "float32", {}), (True, "bfloat16", {"max_shard_size": 2e-5}), (False, "bfloat16", {})],
    ids=["Gemma 2", "Gemma 2 bfloat16 in shards", "Gemma 1 bfloat16"],
)
def test_keras_preset(gemma2, dtype, options, tmp_path):
    preset(str(tmp_path), dtype, gemma2, **options)
    assert (tmp_path / "model.weights.json").exists() == bool(options)
    architecture = describe_weights(tmp_path)
    assert architecture.intermediate_dim == 48 and architecture.query_pre_attn_scalar == 16
    assert architecture.post_norms == gemma2 and architecture.sliding_window == (8 if gemma2 else None)
    theirs = keras_hub.models.GemmaBackbone.from_preset(str(tmp_path), dtype=dtype)
    assert_same(load(tmp_path, dtype), {weight.path: weight.value for weight in theirs.weights})


def test_preset_of_27b_has_its_query_scale(tmp_path):
    """keras-hub writes 27b's 144 = 4608 / 32 as query_head_dim_normalize = False, and then does not use it."""
    preset(str(tmp_path), "float32")
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["query_head_dim_normalize"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert describe_weights(tmp_path).query_pre_attn_scalar == 8


def test_tied_output_matrix_of_older_checkpoints_is_ignored(tmp_path):
    save_hf(small(), tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    assert_same(load(tmp_path), lively_params(small()))


def test_a_header_of_odd_length_is_read(tmp_path):
    """Only newer writers pad the header, so a tensor may start anywhere in the file."""
    save_hf(small(), tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    header += b" " * (len(header) % 2 == 0)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert_same(load(tmp_path), lively_params(small()))


def test_what_counts_as_padding():
    rows = {2560: 2499, 2624: 2560, 256_008: 256_000, 256_064: 256_000, 256_256: 256_000, 262_208: 262_144}
    assert all(is_padded(number, pieces) for number, pieces in rows.items())
    others = {2560: 2560, 2500: 2560, 256_001: 256_000, 16_384: 16_000, 256_000: 2560, 262_144: 256_000}
    assert not any(is_padded(number, pieces) for number, pieces in others.items())


def test_tokens_beyond_the_tokenizer_are_no_padding(tmp_path):
    require_no_more_tokens(tmp_path, 97)
    added = {"4": {"content": "<mask>"}, "97": {"content": "<tool>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    require_no_more_tokens(tmp_path, 98)
    with pytest.raises(UserError, match=r"'<tool>' \(id 97\)"):
        require_no_more_tokens(tmp_path, 97)
    (tmp_path / "added_tokens.json").write_text('{"<call>": 98}')
    with pytest.raises(UserError, match=r"'<call>' \(id 98\)"):
        require_no_more_tokens(tmp_path, 98)


def test_tokens_beyond_the_tokenizer_as_transformers_5_writes_them(tmp_path):
    added = [{"id": 4, "content": "<mask>"}, {"id": 97, "content": "<tool>"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"backend": "tokenizers"}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": {"a": 96}}}))
    require_no_more_tokens(tmp_path, 98)
    with pytest.raises(UserError, match=r"'<tool>' \(id 97\)"):
        require_no_more_tokens(tmp_path, 97)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    save_hf(small(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert describe_weights(tmp_path) == small(name=tmp_path.name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_keep_no_hold_of_the_file(dtype, tmp_path):
    """JAX on CPU may take an array's memory over, and the file may be replaced later."""
    save_hf(small(), tmp_path, dtype)
    params = load(tmp_path, dtype)
    before = {path: np.array(value) for path, value in params.items()}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
    assert_same(params, before)


@pytest.mark.parametrize("save", [save_hf, lambda _, folder: preset(str(folder), "bfloat16")], ids=["HF", "Keras"])
def test_progress_ends_at_the_whole(save, tmp_path):
    save(small(), tmp_path)
    calls = []
    architecture = describe_weights(tmp_path)
    backbone = build_backbone(architecture, "float32")
    params = load_params(backbone, architecture, tmp_path, "float32", progress=lambda *call: calls.append(call))
    sizes = np.cumsum([value.nbytes for value in params.values()])
    assert calls == [(size, 4 * architecture.parameter_count) for size in sizes]
    assert sizes[-1] == 4 * architecture.parameter_count


SHARDED = """
import sys
import jax
import numpy as np
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.models.weight_checks import is_padded, require_no_more_tokens
from gemma_keras.parallel.mesh import make_mesh
from gemma_keras.models.weight_sharding import param_sharding

assert len(jax.devices()) == 8
for folder in sys.argv[1:]:
    architecture = describe_weights(folder)
    backbone = build_backbone(architecture, "float32")
    for dtype in ("float32", "bfloat16"):
        whole = load_params(backbone, architecture, folder, dtype)
        assert {value.committed for value in whole.values()} == {False}
        for data, model in ((1, 8), (2, 4), (8, 1)):
            mesh = make_mesh(jax.devices(), data, model)
            rules = lambda path, shape: None if path.endswith("scale") else param_sharding(mesh, path, shape)
            sharded = load_params(backbone, architecture, folder, dtype, shardings=rules)
            assert sharded.keys() == whole.keys()
            for path, value in sharded.items():
                assert path.endswith("scale") or value.sharding == rules(path, value.shape), path
                assert value.dtype == dtype and np.asarray(value).tobytes() == np.asarray(whole[path]).tobytes(), path
            assert sum(not value.is_fully_replicated for value in sharded.values()) >= 9  # feed-forward matrices
    print("same", folder)
"""


def test_sharded_weights_equal_whole_ones(tmp_path):
    """On 8 devices: float32 and bfloat16 files of both formats and a GGUF file, read as both dtypes."""
    save_hf(small(), tmp_path / "hf")
    save_hf(small(), tmp_path / "hf_bfloat16", "bfloat16")
    preset(str(tmp_path / "keras"), "float32")
    preset(str(tmp_path / "keras_bfloat16"), "bfloat16")
    gguf_files.save(small(), tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0)
    child = subprocess.run(
        [sys.executable, "-c", SHARDED, *sorted(tmp_path.iterdir())],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert child.stdout.count("same") == 5, child.stderr
