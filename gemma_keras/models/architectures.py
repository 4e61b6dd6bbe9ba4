"""Named shapes of Gemma models, and their form in a Hugging Face `config.json`.

Sizes are those of Google's reports (Gemma: arXiv 2403.08295, table 1; Gemma 2: arXiv 2408.00118, table 1). What does not
vary between them is a constant here: the RMSNorm epsilon, the RoPE base, the tanh form of GELU, tied embeddings.
"""

import dataclasses
from typing import Any

from gemma_keras.config.errors import UserError

NORM_EPSILON = 1e-6
ROPE_BASE = 10_000.0
PAD_ID, EOS_ID, BOS_ID = 0, 1, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Shape of one model. `intermediate_dim` is F, one gate's width (keras-hub's own argument is 2 F).

    `query_pre_attn_scalar` is s in q·k/sqrt(s). `sliding_window` is the number of keys that layers 0, 2, 4, ... see, the
    query's own included; None: every layer sees everything. A soft cap of None is no cap. `post_norms`: RMSNorm also after
    attention and after the feed-forward part (Gemma 2).
    """

    name: str
    num_layers: int
    hidden_dim: int
    intermediate_dim: int
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    vocabulary_size: int = 256_000
    sliding_window: int | None = 4096
    attention_logit_soft_cap: float | None = 50.0
    final_logit_soft_cap: float | None = 30.0
    post_norms: bool = True
    max_position: int = 8192

    def replace(self, **changes: Any) -> "Architecture":
        """The same shape with some fields changed."""
        return dataclasses.replace(self, **changes)

    def window(self, layer: int) -> int | None:
        """Number of keys that the layer sees, or None for all: the even layers are the local ones."""
        return self.sliding_window if layer % 2 == 0 else None

    @property
    def parameter_count(self) -> int:
        """Number of weights, the tied embeddings counted once."""
        attention = 2 * self.hidden_dim * self.head_dim * (self.num_query_heads + self.num_key_value_heads)
        norms = (4 if self.post_norms else 2) * self.hidden_dim
        layer = attention + 3 * self.hidden_dim * self.intermediate_dim + norms
        return self.num_layers * layer + self.vocabulary_size * self.hidden_dim + self.hidden_dim


def _gemma1(**sizes: Any) -> Architecture:
    return Architecture(
        sliding_window=None, attention_logit_soft_cap=None, final_logit_soft_cap=None, post_norms=False, **sizes
    )


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="gemma2_tiny", num_layers=4, hidden_dim=128, intermediate_dim=384, num_query_heads=4,
            num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, vocabulary_size=2560, sliding_window=256,
            max_position=2048,
        ),
        Architecture(  # 43,213,312 weights
            name="gemma2_43m", num_layers=12, hidden_dim=512, intermediate_dim=1376, num_query_heads=8,
            num_key_value_heads=4, head_dim=64, query_pre_attn_scalar=64, vocabulary_size=16_384, sliding_window=512,
            max_position=2048,
        ),
        Architecture(
            name="gemma2_2b", num_layers=26, hidden_dim=2304, intermediate_dim=9216, num_query_heads=8,
            num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
        ),
        Architecture(
            name="gemma2_9b", num_layers=42, hidden_dim=3584, intermediate_dim=14_336, num_query_heads=16,
            num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256,
        ),
        Architecture(
            name="gemma2_27b", num_layers=46, hidden_dim=4608, intermediate_dim=36_864, num_query_heads=32,
            num_key_value_heads=16, head_dim=128, query_pre_attn_scalar=144,
        ),
        _gemma1(
            name="gemma_2b", num_layers=18, hidden_dim=2048, intermediate_dim=16_384, num_query_heads=8,
            num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
        ),
        _gemma1(
            name="gemma_7b", num_layers=28, hidden_dim=3072, intermediate_dim=24_576, num_query_heads=16,
            num_key_value_heads=16, head_dim=256, query_pre_attn_scalar=256,
        ),
    )
}  # fmt: skip


def get_architecture(name: str) -> Architecture:
    """The named shape; `UserError` lists the names when there is none."""
    if name not in ARCHITECTURES:
        raise UserError(f"no architecture is called {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def to_hf_config(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The `config.json` that transformers 4 and 5 read, with `dtype` as the dtype of the weights.

    The two releases differ in two names, so both forms are written: `dtype` and `torch_dtype`, `rope_parameters` and
    `rope_theta` (transformers/models/gemma2/configuration_gemma2.py).
    """
    config: dict[str, Any] = {
        "architectures": ["Gemma2ForCausalLM" if architecture.post_norms else "GemmaForCausalLM"],
        "model_type": "gemma2" if architecture.post_norms else "gemma",
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": architecture.vocabulary_size,
        "hidden_size": architecture.hidden_dim,
        "intermediate_size": architecture.intermediate_dim,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_query_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "head_dim": architecture.head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": architecture.max_position,
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
    if architecture.post_norms:
        scalar = architecture.query_pre_attn_scalar
        windows = [architecture.window(layer) for layer in range(architecture.num_layers)]
        config |= {
            "query_pre_attn_scalar": int(scalar) if float(scalar).is_integer() else scalar,
            "sliding_window": architecture.sliding_window,
            "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
            "attn_logit_softcapping": architecture.attention_logit_soft_cap,
            "final_logit_softcapping": architecture.final_logit_soft_cap,
        }
    return config


def _require_same_function(config: dict[str, Any], num_layers: int) -> None:
    """`UserError` where `config.json` asks for something that this model does not compute."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    layer_types = config.get("layer_types")
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(num_layers)]
    demands = {
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", ROPE_BASE)) == ROPE_BASE,
        "rope_scaling": scaling.get("rope_type", scaling.get("type", "default")) == "default",
        "rms_norm_eps": config.get("rms_norm_eps", NORM_EPSILON) == NORM_EPSILON,
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "attention_bias": not config.get("attention_bias", False),
        "use_bidirectional_attention": not config.get("use_bidirectional_attention"),
        "hidden_activation": config.get("hidden_activation") in (None, "gelu_pytorch_tanh"),
        "layer_types": not layer_types or layer_types == alternating or "sliding_attention" not in layer_types,
    }
    for name, holds in demands.items():
        if not holds:
            given = config.get(name, rope.get(name))
            raise UserError(
                f"config.json has {name} = {given!r}, which no Gemma 1 or Gemma 2 model has: use their weights"
            )


def from_hf_config(config: dict[str, Any], name: str = "") -> Architecture:
    """The shape that a parsed `config.json` describes; absent fields have transformers' defaults.

    `UserError` for a model that is neither Gemma 1 nor Gemma 2, or that departs from what the two have in common.
    """
    kind = config.get("model_type")
    if kind not in ("gemma", "gemma2"):
        raise UserError(f"config.json has model_type {kind!r}; expected 'gemma2' or 'gemma': point at a Gemma 2 model")
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    for key in sizes:
        if not isinstance(config.get(key), int):
            raise UserError(f"config.json lacks the number {key}: download the model's config.json again")
    layers, hidden, intermediate, query_heads, key_value_heads = (config[key] for key in sizes)
    _require_same_function(config, layers)
    head_dim = config.get("head_dim", 256)
    common = dict(
        name=name or kind, num_layers=layers, hidden_dim=hidden, intermediate_dim=intermediate,
        num_query_heads=query_heads, num_key_value_heads=key_value_heads, head_dim=head_dim,
        vocabulary_size=config.get("vocab_size", 256_000), max_position=config.get("max_position_embeddings", 8192),
    )  # fmt: skip
    if kind == "gemma":
        return _gemma1(query_pre_attn_scalar=head_dim, **common)
    layer_types = config.get("layer_types")
    local = not layer_types or "sliding_attention" in layer_types
    return Architecture(
        query_pre_attn_scalar=config.get("query_pre_attn_scalar", 256),
        sliding_window=config.get("sliding_window", 4096) if local else None,
        attention_logit_soft_cap=config.get("attn_logit_softcapping", 50.0),
        final_logit_soft_cap=config.get("final_logit_softcapping", 30.0),
        **common,
    )
