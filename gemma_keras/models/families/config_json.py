"""What the `config.json` files of all families have in common, and what none of these models computes."""

from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import NORM_EPSILON, ROPE_BASE, Architecture

LOCAL, GLOBAL = "sliding_attention", "full_attention"  # of `layer_types`
PAD_ID, EOS_ID, BOS_ID = 0, 1, 2
_SIZES = {
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_query_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary_size": "vocab_size",
    "max_position": "max_position_embeddings",
}


def common_config(architecture: Architecture, hf_class: str, dtype: str) -> dict[str, Any]:
    """The fields that every family writes, with `dtype` as the dtype of the weights.

    transformers 4 and 5 differ in two names, so both forms are written: `dtype` and `torch_dtype`, `rope_parameters` and
    `rope_theta` (transformers/models/gemma2/configuration_gemma2.py).
    """
    return {
        "architectures": [hf_class],
        "model_type": architecture.family,
        "dtype": dtype,
        "torch_dtype": dtype,
        **{key: getattr(architecture, field) for field, key in _SIZES.items()},
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "bos_token_id": BOS_ID,
    }


def common_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of an `Architecture` that every family's `config.json` states.

    Raises:
        UserError: one without a default is missing, or one is no number above 0.
    """
    stated = {"head_dim": 256, "vocab_size": 256_000, "max_position_embeddings": 8192} | config
    for key in _SIZES.values():
        if not isinstance(stated.get(key), int) or stated[key] < 1:
            raise UserError(f"config.json lacks the number {key}: download the model's config.json again")
    return {field: stated[key] for field, key in _SIZES.items()}


def require_same_function(config: dict[str, Any], own: dict[str, bool]) -> None:
    """`UserError` where `config.json` asks for something that no Gemma computes.

    `own` says of further fields whether they are as they have to be.
    """
    demands = {
        "rms_norm_eps": config.get("rms_norm_eps", NORM_EPSILON) == NORM_EPSILON,
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "attention_bias": not config.get("attention_bias", False),
        "use_bidirectional_attention": not config.get("use_bidirectional_attention"),
        "hidden_activation": config.get("hidden_activation") in (None, "gelu_pytorch_tanh"),
    }
    _require(demands | own, config)


def require_plain_rope(config: dict[str, Any]) -> None:
    """`UserError` where RoPE is not that of Gemma 1 and Gemma 2, which is the same in all layers."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    demands = {
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", ROPE_BASE)) == ROPE_BASE,
        "rope_scaling": scaling.get("rope_type", scaling.get("type", "default")) == "default",
    }
    _require(demands, rope | config)


def _require(demands: dict[str, bool], config: dict[str, Any]) -> None:
    for name, holds in demands.items():
        if not holds:
            kind = config.get("model_type")
            raise UserError(
                f"config.json has {name} = {config.get(name)!r}, which no model of type {kind} has: use Google's"
            )
