"""The table of shapes, and its form in config.json."""

import pytest
import transformers

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import LayerSpec
from gemma_keras.models.families.registry import ARCHITECTURES, from_hf_config, get_architecture, to_hf_config


@pytest.mark.parametrize(
    "name, millions",
    [("gemma2_2b", 2614), ("gemma2_9b", 9241), ("gemma2_27b", 27_227), ("gemma_2b", 2506), ("gemma_7b", 8537)],
)
def test_sizes_are_those_of_the_published_models(name, millions):
    assert get_architecture(name).parameter_count // 10**6 == millions


def test_own_shapes():
    assert get_architecture("gemma2_43m").parameter_count == 43_213_312
    assert get_architecture("gemma2_tiny").parameter_count < 2 * 10**6
    assert get_architecture("gemma2_27b").query_pre_attn_scalar == 144


def test_even_layers_are_local():
    architecture = get_architecture("gemma2_9b")
    assert [architecture.layers[layer].window for layer in range(4)] == [4096, None, 4096, None]
    assert get_architecture("gemma_7b").layers[0].window is None


def test_a_pattern_is_repeated_and_may_break_off():
    tiny = get_architecture("gemma2_tiny")
    assert [spec.window for spec in tiny.replace(num_layers=3, sliding_window=8).layers] == [8, None, 8]
    unlimited = tiny.replace(sliding_window=None)
    assert unlimited.pattern == (LayerSpec(),) and unlimited.sliding_window is None
    with pytest.raises(ValueError, match="no layer has a window"):
        unlimited.replace(sliding_window=8)


def test_unknown_name():
    with pytest.raises(UserError, match="'gemma3_1b'.*gemma2_tiny"):
        get_architecture("gemma3_1b")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_config_json_round_trip(name):
    architecture = get_architecture(name)
    assert from_hf_config(to_hf_config(architecture, "bfloat16"), name) == architecture


@pytest.mark.parametrize("name", ["gemma2_27b", "gemma2_2b", "gemma_2b"])
def test_config_json_says_the_same_to_transformers(name, tmp_path):
    """Read by transformers and written again, the file describes the same model."""
    architecture = get_architecture(name)
    config = transformers.AutoConfig.for_model(**to_hf_config(architecture, "bfloat16"))
    assert (config.hidden_size, config.num_key_value_heads) == (
        architecture.hidden_dim,
        architecture.num_key_value_heads,
    )
    assert from_hf_config(config.to_dict(), name) == architecture


def test_defaults_are_those_of_transformers():
    """google/gemma-2-9b's own file leaves out what equals the defaults."""
    given = {
        "model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "intermediate_size": 14_336,
        "num_attention_heads": 16, "num_key_value_heads": 8, "rope_theta": 10_000.0,
    }  # fmt: skip
    assert from_hf_config(given, "gemma2_9b") == get_architecture("gemma2_9b")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"rope_theta": 500.0, "rope_parameters": None}, "rope_theta = 500.0"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0}}, "rope_scaling"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps = 1e-05"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_other_models_are_refused(change, message):
    config = to_hf_config(get_architecture("gemma2_tiny").replace(num_layers=2), "float32")
    with pytest.raises(UserError, match=message):
        from_hf_config({**config, **change})
