"""Folders of weights that are damaged, quantized or something else: each is told in one sentence."""

import json
import shutil

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_keras.config.errors import UserError
from gemma_keras.models.loading import describe_weights
from tests.models.conftest import lively_params, small
from tests.models.test_loading import assert_same, edit, load, preset, save_hf


def cut(file, size=-100):
    file.write_bytes(file.read_bytes()[:size])


def index(folder, value):
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: cut(folder / "model.safetensors"), "damaged or cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor model.weights.h5"),
        (lambda folder: (folder / "config.json").unlink(), "cannot read .*config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: index(folder, {}), "no weight_map"),
        (lambda folder: index(folder, {"weight_map": {"x": "absent.safetensors"}}), "absent.safetensors is missing"),
        (lambda folder: edit(folder, lambda t: t.pop("model.norm.weight")), "lacks the tensor model.norm.weight;"),
        (lambda folder: edit(folder, lambda t: t.update(extra=np.zeros(3))), "has besides .* the tensor extra;"),
        (
            lambda folder: edit(folder, lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)})),
            r"model.norm.weight .* has shape \(3,\), but config.json says \(64,\)",
        ),
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
    ],
)
def test_damaged_hf_folders_end_in_one_sentence(damage, message, tmp_path):
    folder = tmp_path / "model"
    save_hf(small(), folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "model.weights.h5").write_bytes(b"no h5"), "damaged or cut short"),
        (lambda folder: cut(folder / "model.weights.h5", 50_000), "damaged or cut short"),
        (lambda folder: (folder / "config.json").write_text('{"class_name": "BertBackbone"}'), "BertBackbone"),
        (
            lambda folder: (folder / "config.json").write_text('{"class_name": "GemmaBackbone"}'),
            "lacks 'num_query_heads'",
        ),
    ],
)
def test_damaged_presets_end_in_one_sentence(damage, message, tmp_path):
    preset(str(tmp_path), "float32")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def in_few_bits(**extra):
    """A projection as a library for quantization stores it: tensors by the end of their names."""
    return lambda tensors: (
        tensors.pop("model.layers.0.mlp.up_proj.weight"),
        tensors.update({f"model.layers.0.mlp.up_proj.{end.replace('__', '.')}": value for end, value in extra.items()}),
    )


@pytest.mark.parametrize(
    "method, change, sign",
    [
        (
            "bitsandbytes",
            in_few_bits(weight=np.zeros((96, 1), np.uint8), weight__absmax=np.zeros(6, np.float32)),
            "up_proj.weight .* U8|absmax",
        ),
        ("bitsandbytes", in_few_bits(weight=np.zeros((96, 64), np.int8), SCB=np.zeros(96, np.float32)), "SCB"),
        (
            "gptq",
            in_few_bits(qweight=np.zeros((8, 96), np.int32), scales=np.zeros((1, 96), np.float16)),
            "qweight .* I32",
        ),
        ("awq", in_few_bits(scales=np.zeros((1, 96), np.float16)), "scales .* F16"),
        ("compressed-tensors", in_few_bits(weight_packed=np.zeros((96, 8), np.int32)), "weight_packed"),
        (
            "fp8",
            in_few_bits(weight=np.zeros((96, 64), np.float32), weight_scale_inv=np.zeros(1, np.float32)),
            "scale_inv",
        ),
        ("", lambda tensors: tensors.update({"model.norm.weight": np.zeros(64, np.int8)}), "model.norm.weight .* I8"),
    ],
)
def test_quantized_weights_are_called_so(method, change, sign, tmp_path):
    save_hf(small(), tmp_path)
    assert_same(load(tmp_path), lively_params(small()))
    config = json.loads((tmp_path / "config.json").read_text())
    if method:
        config["quantization_config"] = {"quant_method": method, "load_in_4bit": True}
        (tmp_path / "config.json").write_text(json.dumps(config))
        # Weights that were made whole again are read, whatever is left in config.json.
        assert_same(load(tmp_path), lively_params(small()))
    edit(tmp_path, change)
    with pytest.raises(UserError, match=f"quantized weights.*{method}.*({sign}).*dequantize"):
        describe_weights(tmp_path)


def test_a_quantized_preset_is_called_so(tmp_path):
    preset(str(tmp_path), "float32")
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        group = file["layers/gemma_decoder_block/ffw_linear/vars"]
        shape = group["0"].shape
        del group["0"]
        group["0"] = np.zeros(shape, np.int8)
        group["1"] = np.zeros(shape[1:], np.float32)
    with pytest.raises(UserError, match="quantized weights.*ffw_linear.* int8"):
        load(tmp_path)


def renamed(prefix, rest):
    """The folder's tensors under other names: `prefix` before what follows `model.`."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        names = {name: prefix + name.removeprefix("model.") if rest in name else name for name in tensors}
        save_file({names[name]: value for name, value in tensors.items()}, folder / "model.safetensors")

    return change


def only(*files):
    """Leaves these files, empty, in the folder."""

    def change(folder):
        for file in folder.iterdir():
            file.unlink()
        for name in files:
            (folder / name).write_bytes(b"")

    return change


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    "change, reason",
    [
        (only("adapter_config.json", "adapter_model.safetensors"), "no config.json but a PEFT adapter .* merge"),
        (only("gemma-2-2b-it-Q4_K_M.gguf"), "no config.json but a GGUF file; give that file itself"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "as pickles"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin"),
            "no model.safetensors but weights as pickles",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(POINTER),
            "model.safetensors is a pointer of Git LFS",
        ),
        (lambda folder: (folder / "config.json").write_bytes(POINTER), "config.json is a pointer of Git LFS"),
        (renamed("", "model."), "calls the tensor model.embed_tokens.weight embed_tokens.weight"),
        (renamed("base_model.model.model.", "model."), "wrapper"),
        (renamed("_orig_mod.model.", "model."), "_orig_mod.model.embed_tokens.weight"),
        (renamed("model.language_model.", "layers.1.mlp"), "model.language_model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_other_folders_are_called_what_they_are(change, reason, tmp_path):
    save_hf(small(), tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
