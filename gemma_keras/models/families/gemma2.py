"""Gemma 2 (arXiv 2408.00118, table 1): layers 0, 2, 4, ... see a window, two soft caps, norms before and behind each part."""

from typing import Any

from gemma_keras.models.architecture import Architecture, LayerSpec
from gemma_keras.models.families.config_json import (
    GLOBAL,
    LOCAL,
    common_sizes,
    require_plain_rope,
    require_same_function,
)

FAMILY = "gemma2"
HF_CLASS = "Gemma2ForCausalLM"


def shape(
    *,
    sliding_window: int | None = 4096,
    attention_logit_soft_cap: float | None = 50.0,
    final_logit_soft_cap: float | None = 30.0,
    **sizes: Any,
) -> Architecture:
    """An architecture of this family; `sizes` are the fields that its models differ in. Without a window all see all."""
    local = LayerSpec(window=sliding_window)
    return Architecture(
        family=FAMILY, pattern=(local,) if sliding_window is None else (local, LayerSpec()), post_norms=True,
        attention_logit_soft_cap=attention_logit_soft_cap, final_logit_soft_cap=final_logit_soft_cap, **sizes,
    )  # fmt: skip


SHAPES: tuple[Architecture, ...] = (
    shape(
        name="gemma2_tiny", num_layers=4, hidden_dim=128, intermediate_dim=384, num_query_heads=4,
        num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, vocabulary_size=2560, sliding_window=256,
        max_position=2048,
    ),
    shape(  # 9,969,920 weights
        name="gemma2_10m", num_layers=8, hidden_dim=256, intermediate_dim=1024, num_query_heads=4,
        num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64, vocabulary_size=8192, sliding_window=256,
        max_position=2048,
    ),
    shape(  # 43,213,312 weights
        name="gemma2_43m", num_layers=12, hidden_dim=512, intermediate_dim=1376, num_query_heads=8,
        num_key_value_heads=4, head_dim=64, query_pre_attn_scalar=64, vocabulary_size=16_384, sliding_window=512,
        max_position=2048,
    ),
    shape(
        name="gemma2_2b", num_layers=26, hidden_dim=2304, intermediate_dim=9216, num_query_heads=8,
        num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
    ),
    shape(
        name="gemma2_9b", num_layers=42, hidden_dim=3584, intermediate_dim=14_336, num_query_heads=16,
        num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256,
    ),
    shape(
        name="gemma2_27b", num_layers=46, hidden_dim=4608, intermediate_dim=36_864, num_query_heads=32,
        num_key_value_heads=16, head_dim=128, query_pre_attn_scalar=144,
    ),
)  # fmt: skip


def own_config(architecture: Architecture) -> dict[str, Any]:
    """What `config.json` says beyond what all families write."""
    return {
        "query_pre_attn_scalar": architecture.query_scalar,
        "sliding_window": architecture.sliding_window,
        "layer_types": [GLOBAL if spec.window is None else LOCAL for spec in architecture.layers],
        "attn_logit_softcapping": architecture.attention_logit_soft_cap,
        "final_logit_softcapping": architecture.final_logit_soft_cap,
    }


def from_hf_config(config: dict[str, Any], name: str) -> Architecture:
    """The shape that a parsed `config.json` describes; absent fields have transformers' defaults.

    Raises:
        UserError: a size is missing, or the model computes something else.
    """
    sizes = common_sizes(config)
    layer_types = config.get("layer_types")
    alternating = [GLOBAL if layer % 2 else LOCAL for layer in range(sizes["num_layers"])]
    local = not layer_types or LOCAL in layer_types
    require_plain_rope(config)
    require_same_function(config, {"layer_types": not layer_types or layer_types == alternating or not local})
    return shape(
        name=name, query_pre_attn_scalar=config.get("query_pre_attn_scalar", 256),
        sliding_window=config.get("sliding_window", 4096) if local else None,
        attention_logit_soft_cap=config.get("attn_logit_softcapping", 50.0),
        final_logit_soft_cap=config.get("final_logit_softcapping", 30.0), **sizes,
    )  # fmt: skip
