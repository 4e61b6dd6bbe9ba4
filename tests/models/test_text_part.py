"""The text part of multimodal Gemma 3: Hugging Face folders of both layouts, and Keras presets with a vision encoder."""

import json

import jax
import keras_hub
import numpy as np
import pytest
import torch
import transformers
from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder
from safetensors.numpy import load_file, save_file

from gemma_keras.config.errors import UserError
from gemma_keras.models.families.registry import from_hf_config, get_architecture, to_hf_config
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.loading import describe_weights, load_params
from tests.models.conftest import lively_params, lively_tensors, small_gemma3
from tests.models.test_loading import assert_same, edit

SMALL = small_gemma3()
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip


def multimodal_config(architecture) -> transformers.Gemma3Config:
    text = to_hf_config(architecture, "float32")
    return transformers.Gemma3Config(text_config=text, vision_config=dict(VISION), mm_tokens_per_image=4)


def save_multimodal(folder, shard="1GB", architecture=SMALL):
    """What transformers itself writes of a whole model, whose text part has the weights of `lively_tensors`."""
    model = transformers.Gemma3ForConditionalGeneration(multimodal_config(architecture))
    tensors = {name: torch.tensor(value) for name, value in lively_tensors(architecture).items()}
    missing, unexpected = model.model.language_model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items()}, strict=False
    )
    assert not missing and not unexpected
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def as_since_452(folder):
    """The names that transformers gives the same tensors inside."""

    def rename(tensors):
        for name in list(tensors):
            inside = name.replace("language_model.model.", "language_model.")
            tensors[f"model.{inside}"] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()

    edit(folder, rename)


def load(folder, told=None):
    architecture = describe_weights(folder)
    backbone = build_backbone(architecture, "float32")
    return load_params(backbone, architecture, folder, "float32", tell=None if told is None else told.append)


@pytest.mark.parametrize("layout", ["old", "new", "in shards"])
def test_the_text_part_of_a_folder(layout, tmp_path):
    model = save_multimodal(tmp_path, "40KB" if layout == "in shards" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (layout == "in shards")
    if layout == "old":
        assert "language_model.model.layers.5.self_attn.q_norm.weight" in load_file(tmp_path / "model.safetensors")
    if layout == "new":
        as_since_452(tmp_path)
        assert "model.language_model.layers.5.self_attn.q_norm.weight" in load_file(tmp_path / "model.safetensors")
    told: list[str] = []
    assert describe_weights(tmp_path) == SMALL.replace(name=tmp_path.name)
    params = load(tmp_path, told)
    assert_same(params, lively_params(SMALL))
    others = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    assert told == [f"{tmp_path}: {len(others)} tensors of the vision encoder and its projector (0.00 GB) are left out"]


def test_logits_of_the_text_part_equal_those_of_the_whole_model(tmp_path):
    model = save_multimodal(tmp_path).eval()
    tokens = np.random.default_rng(1).integers(0, 97, (1, 30))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    assert np.std(theirs) > 1
    backbone, positions = build_backbone(describe_weights(tmp_path), "float32"), np.arange(30)[None]
    run = jax.jit(lambda params: logits(backbone, params, forward(backbone, params, tokens, positions, tokens * 0 + 1)))
    ours = np.asarray(run(load(tmp_path)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())


# Whole but for `vision_config`, of which nothing is read.
SPARSE_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255_999, "eoi_token_index": 256_000,
    "eos_token_id": [1, 106], "image_token_index": 262_144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3", "vision_config": {},
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip


def test_the_sparse_config_of_a_whole_model():
    assert from_hf_config(SPARSE_4B, "gemma3_4b") == get_architecture("gemma3_4b")
    written = transformers.Gemma3Config.from_dict(SPARSE_4B | {"vision_config": VISION}).to_dict()
    assert from_hf_config(written, "gemma3_4b") == get_architecture("gemma3_4b")
    with pytest.raises(UserError, match="tie_word_embeddings = False"):
        from_hf_config(SPARSE_4B | {"tie_word_embeddings": False})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("language_model.model.norm.weight"), "lacks the tensor model.norm.weight"),
        (lambda t: t.update({"audio_tower.x.weight": np.zeros(3)}), "has besides .* the tensor audio_tower.x.weight"),
        (
            lambda t: t.update({"language_model.model.norm.weight": np.zeros(3, np.float32)}),
            r"language_model.model.norm.weight .* has shape \(3,\)",
        ),
        (
            lambda t: t.update({"language_model.model.layers.0.mlp.up_proj.weight.absmax": np.zeros(3, np.float32)}),
            "quantized weights",
        ),
        (
            lambda t: t.update({f"wrapped.{name}": t.pop(name) for name in list(t)}),
            "calls the tensor model.embed_tokens.weight wrapped.language_model.model.embed_tokens.weight",
        ),
    ],
)
def test_damaged_folders_end_in_one_sentence(change, message, tmp_path):
    save_multimodal(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_text_folder_with_tensors_for_images_is_refused(tmp_path):
    """Its config.json knows nothing of them."""
    save_file(lively_tensors(SMALL) | {"vision_tower.x": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(SMALL, "float32")))
    with pytest.raises(UserError, match="vision_tower.x"):
        load(tmp_path)


@pytest.mark.parametrize("images, options", [(False, {}), (True, {"max_shard_size": 2e-5})])
def test_keras_preset(images, options, tmp_path):
    encoder = Gemma3VisionEncoder(
        image_size=16, patch_size=4, num_heads=2, hidden_dim=8, num_layers=1, intermediate_dim=16, output_dim=64,
        pool_size=2, dtype="bfloat16",
    )  # fmt: skip
    theirs = keras_hub.models.Gemma3Backbone(
        vocabulary_size=97, image_size=16, num_layers=2, num_query_heads=4, num_key_value_heads=2, hidden_dim=64,
        intermediate_dim=96, head_dim=16, use_query_key_norm=True, use_post_ffw_norm=True, use_post_attention_norm=True,
        use_sliding_window_attention=True, sliding_window_size=8, global_rope_scaling_factor=8.0,
        vision_encoder=encoder if images else None, dtype="bfloat16",
    )  # fmt: skip
    theirs.save_to_preset(str(tmp_path), **options)
    assert (tmp_path / "model.weights.json").exists() == bool(options)
    told: list[str] = []
    assert describe_weights(tmp_path) == SMALL.replace(name=tmp_path.name, num_layers=2, max_position=131_072)
    others = {id(weight) for weight in encoder.weights}
    assert_same(
        load(tmp_path, told), {weight.path: weight.value for weight in theirs.weights if id(weight) not in others}
    )
    line = f"{tmp_path}: {len(others)} tensors of the vision encoder and its projector (0.00 GB) are left out"
    assert told == ([line] if images else [])
