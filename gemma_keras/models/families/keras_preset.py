"""The `config.json` of a Keras preset. One class of keras-hub, GemmaBackbone, serves Gemma 1 and Gemma 2."""

from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import NORM_EPSILON, Architecture
from gemma_keras.models.families import gemma, gemma2


def from_keras_config(config: dict[str, Any], name: str) -> Architecture:
    """The shape of a preset. keras-hub has no free query scale: it is head_dim, or D/N where it is told not to use that.

    Raises:
        UserError: the preset is of another class, lacks a size, or computes something else.
    """
    kind, values = config.get("class_name"), config.get("config", {})
    if kind != "GemmaBackbone":
        raise UserError(
            f"config.json describes a {kind}; expected a GemmaBackbone: point at a Gemma 1 or Gemma 2 preset"
        )
    if values.get("layer_norm_epsilon", NORM_EPSILON) != NORM_EPSILON:
        raise UserError(f"config.json has layer_norm_epsilon {values['layer_norm_epsilon']}; Gemma has {NORM_EPSILON}")
    post_norms = values.get("use_post_ffw_norm", False)
    if post_norms != values.get("use_post_attention_norm", False):
        raise UserError("config.json has one of the two post norms; Gemma 1 has neither, Gemma 2 both")
    try:
        heads, head_dim, dim = values["num_query_heads"], values["head_dim"], values["hidden_dim"]
        sizes = dict(
            name=name, num_layers=values["num_layers"], hidden_dim=dim,
            intermediate_dim=values["intermediate_dim"] // 2, num_query_heads=heads,
            num_key_value_heads=values["num_key_value_heads"], head_dim=head_dim,
            query_pre_attn_scalar=head_dim if values.get("query_head_dim_normalize", True) else dim // heads,
            vocabulary_size=values["vocabulary_size"],
        )  # fmt: skip
        window = values["sliding_window_size"] if values.get("use_sliding_window_attention") else None
    except KeyError as error:
        raise UserError(f"config.json lacks {error}; download the preset again") from error
    caps = {cap: values.get(cap) for cap in ("attention_logit_soft_cap", "final_logit_soft_cap")}
    if post_norms:
        return gemma2.shape(sliding_window=window, **caps, **sizes)
    for what, given in {"a window": window, **caps}.items():
        if given is not None:
            raise UserError(f"config.json has {what} of {given}, but no post norms, as Gemma 1, which has no {what}")
    return gemma.shape(**sizes)
