"""The text models of Gemma 3 (arXiv 2503.19786): five layers with a window, then one that sees everything.

They have the norms of Gemma 2 and others over queries and keys, but no soft caps. RoPE's base is 10,000 in layers with a window
and 1,000,000 in the others, where from 4b on positions are divided by 8.
"""

from typing import Any

from gemma_keras.models.architecture import ROPE_BASE, Architecture, LayerSpec
from gemma_keras.models.families.config_json import GLOBAL, LOCAL, common_sizes, require_same_function

FAMILY = "gemma3_text"
HF_CLASS = "Gemma3ForCausalLM"
MULTIMODAL = "gemma3"  # `model_type` of folders that read images, too
GLOBAL_ROPE_BASE = 1_000_000.0
PERIOD = 6
# transformers/models/gemma3/configuration_gemma3.py; Google's own files leave out what is as here.
_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}


def shape(
    *,
    sliding_window: int | None,
    rope_scaling: float = 1.0,
    rope_base: float = GLOBAL_ROPE_BASE,
    local_rope_base: float = ROPE_BASE,
    period: int = PERIOD,
    **sizes: Any,
) -> Architecture:
    """An architecture of this family; `sizes` are the fields that its models differ in. Of `period` layers the last is global."""
    local = LayerSpec(window=sliding_window, rope_base=local_rope_base)
    pattern = (*[local] * (period - 1), LayerSpec(rope_base=rope_base, rope_scaling=rope_scaling))
    return Architecture(family=FAMILY, pattern=pattern, post_norms=True, qk_norms=True, **sizes)


SHAPES: tuple[Architecture, ...] = (
    shape(
        name="gemma3_tiny", num_layers=8, hidden_dim=128, intermediate_dim=384, num_query_heads=4,
        num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, vocabulary_size=2560, sliding_window=256,
        max_position=2048,
    ),
    shape(
        name="gemma3_270m", num_layers=18, hidden_dim=640, intermediate_dim=2048, num_query_heads=4,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, vocabulary_size=262_144, sliding_window=512,
        max_position=32_768,
    ),
    shape(
        name="gemma3_1b", num_layers=26, hidden_dim=1152, intermediate_dim=6912, num_query_heads=4,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, vocabulary_size=262_144, sliding_window=512,
        max_position=32_768,
    ),
    shape(
        name="gemma3_4b", num_layers=34, hidden_dim=2560, intermediate_dim=10_240, num_query_heads=8,
        num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, vocabulary_size=262_208, sliding_window=1024,
        rope_scaling=8.0, max_position=131_072,
    ),
    shape(
        name="gemma3_12b", num_layers=48, hidden_dim=3840, intermediate_dim=15_360, num_query_heads=16,
        num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256, vocabulary_size=262_208, sliding_window=1024,
        rope_scaling=8.0, max_position=131_072,
    ),
    shape(
        name="gemma3_27b", num_layers=62, hidden_dim=5376, intermediate_dim=21_504, num_query_heads=32,
        num_key_value_heads=16, head_dim=128, query_pre_attn_scalar=168, vocabulary_size=262_208, sliding_window=1024,
        rope_scaling=8.0, max_position=131_072,
    ),
)  # fmt: skip


def own_config(architecture: Architecture) -> dict[str, Any]:
    """What `config.json` says beyond or other than what all families write; RoPE as transformers 4 and as 5 read it."""
    local, final = architecture.pattern[0], architecture.pattern[-1]
    scaling = {"rope_type": "linear", "factor": final.rope_scaling} if final.rope_scaling != 1 else None
    of_global = {"rope_theta": final.rope_base} | (scaling or {"rope_type": "default"})
    return {
        "query_pre_attn_scalar": architecture.query_scalar,
        "sliding_window": architecture.sliding_window,
        "sliding_window_pattern": len(architecture.pattern),
        "layer_types": [GLOBAL if spec.window is None else LOCAL for spec in architecture.layers],
        "attn_logit_softcapping": architecture.attention_logit_soft_cap,
        "final_logit_softcapping": architecture.final_logit_soft_cap,
        "rope_theta": final.rope_base,
        "rope_local_base_freq": local.rope_base,
        "rope_scaling": scaling,
        "rope_parameters": {GLOBAL: of_global, LOCAL: {"rope_type": "default", "rope_theta": local.rope_base}},
    }


def from_hf_config(config: dict[str, Any], name: str) -> Architecture:
    """The shape that a parsed `config.json` describes; absent fields have transformers' defaults.

    Raises:
        UserError: a size is no number, or the model computes something else.
    """
    sizes = common_sizes(_DEFAULTS | config)
    layer_types, period = config.get("layer_types") or [], config.get("sliding_window_pattern", PERIOD)
    if isinstance(layer_types, list) and GLOBAL in layer_types:
        period = layer_types.index(GLOBAL) + 1
    require_same_function(config, {"sliding_window_pattern": isinstance(period, int) and period > 0})
    pattern = [LOCAL if (layer + 1) % period else GLOBAL for layer in range(sizes["num_layers"])]
    window = config.get("sliding_window", 4096)
    ropes = _ropes(config)
    (base, scaling), (local_base, local_scaling) = ropes[GLOBAL], ropes[LOCAL]
    require_same_function(
        config,
        {
            "layer_types": not layer_types or layer_types == pattern,
            "sliding_window": isinstance(window, int) and window > 0,
            "rope_scaling" if config.get("rope_scaling") else "rope_parameters": scaling is not None,
        },
    )
    require_same_function(config, {"rope_parameters": local_scaling == 1})
    assert scaling is not None
    return shape(
        name=name, query_pre_attn_scalar=config.get("query_pre_attn_scalar", 256), sliding_window=window,
        rope_base=base, rope_scaling=scaling, local_rope_base=local_base, period=period,
        attention_logit_soft_cap=config.get("attn_logit_softcapping"),
        final_logit_soft_cap=config.get("final_logit_softcapping"), **sizes,
    )  # fmt: skip


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of the text model in a multimodal one's, which says itself whether embeddings are tied."""
    stated = config.get("text_config") or {}
    require_same_function(config, {"text_config": isinstance(stated, dict)})
    text = {"model_type": FAMILY} | stated
    return text if config.get("tie_word_embeddings", True) else text | {"tie_word_embeddings": False}


def _ropes(config: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Base and scaling of RoPE by the type of layer; a scaling of None is one that is not linear.

    As in transformers, `rope_scaling` counts more than `rope_parameters`, and these more than the bases beside them.
    """
    bases = {GLOBAL: ("rope_theta", GLOBAL_ROPE_BASE), LOCAL: ("rope_local_base_freq", ROPE_BASE)}
    ropes = {}
    for kind, (key, default) in bases.items():
        stated = (config.get("rope_parameters") or {}).get(kind) or {}
        if kind == GLOBAL:
            stated = stated | (config.get("rope_scaling") or {})
        given = stated.get("rope_theta", config.get(key, default))
        base = _positive(given)
        require_same_function({**config, key: given}, {key: base is not None})
        of_type = stated.get("rope_type", stated.get("type", "default"))
        factors = {"default": 1.0, "linear": _positive(stated.get("factor"))}
        ropes[kind] = base or default, factors.get(of_type)
    return ropes


def _positive(value: Any) -> float | None:
    """The number; None for anything else."""
    return float(value) if isinstance(value, int | float) and value > 0 else None
