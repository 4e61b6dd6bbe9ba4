"""The `config.json` of a Keras preset. keras-hub's GemmaBackbone serves Gemma 1 and 2, its Gemma3Backbone Gemma 3."""

from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import NORM_EPSILON, Architecture
from gemma_keras.models.families import gemma, gemma2, gemma3

_CLASSES = ("GemmaBackbone", "Gemma3Backbone")
# What the text models of Gemma 3 have, and what keras-hub's class has where a preset does not say.
_GEMMA3 = {
    "use_query_key_norm": (True, True),
    "use_post_ffw_norm": (True, False),
    "is_embedding_model": (False, False),
    "use_bidirectional_attention": (False, False),
    "local_rope_scaling_factor": (1.0, 1.0),
}


def from_keras_config(config: dict[str, Any], name: str) -> Architecture:
    """The shape of a preset. keras-hub has no free query scale: it is head_dim, or D/N where it is told not to use that.

    Raises:
        UserError: the preset is of another class, lacks a size, or computes something else.
    """
    kind, values = config.get("class_name"), config.get("config", {})
    if kind not in _CLASSES:
        raise UserError(
            f"config.json describes a {kind}; expected a {' or '.join(_CLASSES)}: point at a preset of Gemma 1, 2 or 3"
        )
    if values.get("layer_norm_epsilon", NORM_EPSILON) != NORM_EPSILON:
        raise UserError(f"config.json has layer_norm_epsilon {values['layer_norm_epsilon']}; Gemma has {NORM_EPSILON}")
    post_norms = values.get("use_post_ffw_norm", False)
    if post_norms != values.get("use_post_attention_norm", False):
        raise UserError("config.json has one of the two post norms; Gemma 1 has neither, Gemma 2 and 3 have both")
    gates = 1 if kind == "Gemma3Backbone" else 2  # whose widths make up intermediate_dim
    try:
        heads, head_dim, dim = values["num_query_heads"], values["head_dim"], values["hidden_dim"]
        sizes = dict(
            name=name, num_layers=values["num_layers"], hidden_dim=dim,
            intermediate_dim=values["intermediate_dim"] // gates, num_query_heads=heads,
            num_key_value_heads=values["num_key_value_heads"], head_dim=head_dim,
            query_pre_attn_scalar=head_dim if values.get("query_head_dim_normalize", True) else dim // heads,
            vocabulary_size=values["vocabulary_size"],
        )  # fmt: skip
        window = values["sliding_window_size"] if values.get("use_sliding_window_attention") else None
    except KeyError as error:
        raise UserError(f"config.json lacks {error}; download the preset again") from error
    caps = {cap: values.get(cap) for cap in ("attention_logit_soft_cap", "final_logit_soft_cap")}
    if kind == "Gemma3Backbone":
        for what, (expected, default) in _GEMMA3.items():
            if values.get(what, default) != expected:
                raise UserError(
                    f"config.json has {what} {values.get(what, default)}; Gemma 3's text models have {expected}"
                )
        scaling = float(values.get("global_rope_scaling_factor", 1.0))
        return gemma3.shape(sliding_window=window, rope_scaling=scaling, max_position=131_072, **caps, **sizes)
    if post_norms:
        return gemma2.shape(sliding_window=window, **caps, **sizes)
    for what, given in {"a window": window, **caps}.items():
        if given is not None:
            raise UserError(f"config.json has {what} of {given}, but no post norms, as Gemma 1, which has no {what}")
    return gemma.shape(**sizes)
