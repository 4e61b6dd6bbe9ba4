"""The table of shapes, and its form in config.json."""

import copy

import pytest
import transformers

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import LayerSpec
from gemma_keras.models.families.registry import ARCHITECTURES, from_hf_config, get_architecture, to_hf_config

MILLIONS = {
    "gemma_2b": 2506, "gemma_7b": 8537, "gemma2_2b": 2614, "gemma2_9b": 9241, "gemma2_27b": 27_227, "gemma3_270m": 268,
    "gemma3_1b": 999, "gemma3_4b": 3880, "gemma3_12b": 11_766, "gemma3_27b": 27_009,
}  # fmt: skip


@pytest.mark.parametrize("name, millions", MILLIONS.items())
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
    with pytest.raises(UserError, match="'gemma4_1b'.*gemma2_tiny"):
        get_architecture("gemma4_1b")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_config_json_round_trip(name):
    architecture = get_architecture(name)
    assert from_hf_config(to_hf_config(architecture, "bfloat16"), name) == architecture


@pytest.mark.parametrize("name", ["gemma2_27b", "gemma2_2b", "gemma_2b", "gemma3_270m", "gemma3_4b", "gemma3_27b"])
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


SPARSE_4B = {
    "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
}  # fmt: skip
"""The text part of google/gemma-3-4b-it, whole."""


def test_sparse_gemma3_files_have_the_defaults_of_transformers():
    architecture = from_hf_config(SPARSE_4B, "gemma3_4b")
    assert architecture == get_architecture("gemma3_4b")
    assert from_hf_config(transformers.AutoConfig.for_model(**SPARSE_4B).to_dict(), "gemma3_4b") == architecture
    empty = from_hf_config({"model_type": "gemma3_text"})
    assert from_hf_config(transformers.AutoConfig.for_model("gemma3_text").to_dict()) == empty


def test_global_layers_of_gemma3():
    layers = get_architecture("gemma3_4b").layers
    assert [number for number, spec in enumerate(layers) if spec.window is None] == [5, 11, 17, 23, 29]
    assert layers[5].rope == (1_000_000.0, 8.0) and layers[4].rope == (10_000.0, 1.0)


NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}


@pytest.mark.parametrize(
    "given, rope_of_global, base_of_local",
    [
        ({}, (1e6, 1.0), 1e4),
        ({"rope_theta": 5e5, "rope_local_base_freq": 2e4}, (5e5, 1.0), 2e4),
        ({"rope_parameters": NESTED}, (5e5, 2.0), 2e4),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}, "rope_theta": 5e5}, (5e5, 1.0), 1e4),
        ({"rope_parameters": NESTED, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, (5e5, 8.0), 2e4),
    ],
    ids=str,
)
def test_rope_of_gemma3_is_read_as_transformers_reads_it(given, rope_of_global, base_of_local):
    own = from_hf_config({"model_type": "gemma3_text", **copy.deepcopy(given)})
    assert own.layers[5].rope == rope_of_global and own.layers[0].rope == (base_of_local, 1.0)
    theirs = transformers.AutoConfig.for_model("gemma3_text", **copy.deepcopy(given))
    assert from_hf_config(theirs.to_dict()) == own


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_scaling = .*yarn"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "8"}}, "rope_scaling = .*'8'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling"),
        ({"rope_theta": None}, "rope_theta = None"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "rope_parameters"),
        ({"layer_types": ["sliding_attention"] * 7}, "layer_types"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 3 + ["sliding_attention"]}, "layer_types"),
        ({"sliding_window": None}, "sliding_window = None"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_attention_heads": "four"}, "num_attention_heads"),
        ({"head_dim": None}, "head_dim"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
    ],
    ids=str,
)
def test_what_no_gemma3_computes_is_refused(change, message):
    config = to_hf_config(get_architecture("gemma3_tiny").replace(num_layers=7), "float32")
    plain = {key: value for key, value in config.items() if not key.startswith("rope_")}
    with pytest.raises(UserError, match=message):
        from_hf_config({**plain, **change})


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
