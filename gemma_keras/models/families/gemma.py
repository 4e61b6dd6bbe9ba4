"""Gemma (arXiv 2403.08295, table 1): every layer sees everything, no soft caps, no norms behind attention and feed-forward.

Its `config.json` names nothing that would vary.
"""

from typing import Any

from gemma_keras.models.architecture import Architecture, LayerSpec
from gemma_keras.models.families.config_json import LOCAL, common_sizes, require_plain_rope, require_same_function

FAMILY = "gemma"
HF_CLASS = "GemmaForCausalLM"


def shape(**sizes: Any) -> Architecture:
    """An architecture of this family; `sizes` are the fields that its models differ in."""
    return Architecture(family=FAMILY, pattern=(LayerSpec(),), **sizes)


SHAPES: tuple[Architecture, ...] = (
    shape(
        name="gemma_2b", num_layers=18, hidden_dim=2048, intermediate_dim=16_384, num_query_heads=8,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
    ),
    shape(
        name="gemma_7b", num_layers=28, hidden_dim=3072, intermediate_dim=24_576, num_query_heads=16,
        num_key_value_heads=16, head_dim=256, query_pre_attn_scalar=256,
    ),
)  # fmt: skip


def own_config(architecture: Architecture) -> dict[str, Any]:
    """What `config.json` says beyond what all families write."""
    del architecture
    return {}


def from_hf_config(config: dict[str, Any], name: str) -> Architecture:
    """The shape that a parsed `config.json` describes.

    Raises:
        UserError: a size is missing, or the model computes something else.
    """
    sizes = common_sizes(config)
    require_plain_rope(config)
    require_same_function(config, {"layer_types": LOCAL not in (config.get("layer_types") or ())})
    return shape(name=name, query_pre_attn_scalar=sizes["head_dim"], **sizes)
