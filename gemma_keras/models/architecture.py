"""What is known of a model before its weights are: the sizes, and the pattern of its layers.

Sizes of the published models stand in `families/`, a module a family. What does not vary between Gemma models is a constant
here: the RMSNorm epsilon, the base of local RoPE; so are the tanh form of GELU and tied embeddings in the forward pass.
"""

import dataclasses
from typing import Any

NORM_EPSILON = 1e-6
ROPE_BASE = 10_000.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """What one layer has of its own.

    Attributes:
        window: number of keys that a token sees, itself included; None: all before it.
        rope_base: the base of RoPE's frequencies.
        rope_scaling: what positions are divided by before they become angles.
    """

    window: int | None = None
    rope_base: float = ROPE_BASE
    rope_scaling: float = 1.0

    @property
    def rope(self) -> tuple[float, float]:
        """Base and scaling: layers with the same pair have the same angles."""
        return self.rope_base, self.rope_scaling


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Shape of one model. `intermediate_dim` is F, one gate's width (keras-hub's own argument is 2 F).

    `family` is the module of `families/` that the model belongs to. `pattern` is what its layers are, from the first one on and
    again until there are `num_layers`; the last repetition may break off. `query_pre_attn_scalar` is s in q·k/sqrt(s). A
    soft cap of None is no cap. `post_norms`: RMSNorm also after attention and after the feed-forward part. `qk_norms`: RMSNorm
    over each head of queries and keys, before RoPE. `surplus_rows`: rows of embeddings, the last ones of the
    `vocabulary_size`, that no piece of the tokenizer belongs to; they count in a softmax, and are never generated.
    """

    name: str
    family: str
    num_layers: int
    pattern: tuple[LayerSpec, ...]
    hidden_dim: int
    intermediate_dim: int
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    vocabulary_size: int = 256_000
    attention_logit_soft_cap: float | None = None
    final_logit_soft_cap: float | None = None
    post_norms: bool = False
    qk_norms: bool = False
    max_position: int = 8192
    surplus_rows: int = 0

    def replace(self, **changes: Any) -> "Architecture":
        """The same shape with some fields changed. `sliding_window` changes every window that there is; None removes it."""
        if "sliding_window" in changes:
            changes["pattern"] = _with_window(changes.get("pattern", self.pattern), changes.pop("sliding_window"))
        return dataclasses.replace(self, **changes)

    @property
    def pieces(self) -> int:
        """Number of tokens that there are: their ids lie below it."""
        return self.vocabulary_size - self.surplus_rows

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What each of the layers is."""
        whole, rest = divmod(self.num_layers, len(self.pattern))
        return self.pattern * whole + self.pattern[:rest]

    @property
    def query_scalar(self) -> float:
        """`query_pre_attn_scalar`, as an integer where it is one: transformers' configurations hold it so."""
        scalar = self.query_pre_attn_scalar
        return int(scalar) if float(scalar).is_integer() else scalar

    @property
    def sliding_window(self) -> int | None:
        """The window of the layers that have one; None where every layer sees everything."""
        return next((spec.window for spec in self.pattern if spec.window is not None), None)

    @property
    def parameter_count(self) -> int:
        """Number of weights, the tied embeddings counted once."""
        attention = 2 * self.hidden_dim * self.head_dim * (self.num_query_heads + self.num_key_value_heads)
        norms = (4 if self.post_norms else 2) * self.hidden_dim + (2 * self.head_dim if self.qk_norms else 0)
        layer = attention + 3 * self.hidden_dim * self.intermediate_dim + norms
        return self.num_layers * layer + self.vocabulary_size * self.hidden_dim + self.hidden_dim


def _with_window(pattern: tuple[LayerSpec, ...], window: int | None) -> tuple[LayerSpec, ...]:
    """`pattern` with another window where it has one, and no longer than it needs to be.

    Raises:
        ValueError: no layer of the pattern has a window.
    """
    if window is not None and all(spec.window is None for spec in pattern):
        raise ValueError(f"no layer has a window, so none can be made {window} long; give another pattern")
    changed = tuple(spec if spec.window is None else dataclasses.replace(spec, window=window) for spec in pattern)
    return changed[:1] if len(set(changed)) == 1 else changed
