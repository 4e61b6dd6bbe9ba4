"""The table of weights: one row for each kind, of which everything else that is known of a weight follows.

A row says how a variable is called, what its dimensions are and which of them a product keeps. From that follow where it lies on
a mesh (`parallel.sharding`), along which axes 8-bit weights share a scale (`quantization`), its form as a matrix
(`cpu_matrices`, and Hugging Face's in `hf_names`), its initial values (`forward`), its name in a Keras preset (`keras_files`),
which projections take adapters (`adapters.inject`) and what decays (`training.optimizers`).

Axes: V vocabulary, D model dim, N query heads, K KV heads, H head dim, F ffn dim, r rank, s state of a random generator.
"""

import dataclasses
import enum
import functools
import math
import re
from collections.abc import Iterable, Mapping

from gemma_keras.models.architecture import Architecture

BLOCK = "decoder_block/"  # stands for `decoder_block_7/`, and for `decoder_blocks/` of stacks
EMBEDDINGS = "token_embedding/embeddings"
_BLOCK_NUMBER = re.compile(r"decoder_block(_\d+|s)/")


class Role(enum.Enum):
    """What a weight does."""

    EMBEDDING = "rows that are looked up, and multiplied with for logits"
    MATRIX = "the kernel of a projection"
    SCALE = "of RMSNorm, less 1"
    FACTOR = "a factor of an adapter"
    SINGULAR = "the singular values of an adapter"
    STATE = "no weight, but what a generator of random numbers goes on from"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightKind:
    """One row.

    Attributes:
        path: of the variable; that of a block's begins with `BLOCK`.
        axes: the letter of each dimension, or the letters of those that are flattened into it.
        out: letters of what a product with the weight gives; it sums over the others.
        attribute: of keras-hub's layer, by which Keras files the weight, where it differs from the layer's name.
        hf: Hugging Face's name by family, without `model.layers.7.` and `.weight`; a family that is missing has no such weight.
        gguf: llama.cpp's name, without `blk.7.` and `.weight`.
        input_of: the projection that reads the same input, of several the first.
        halves: whether no other product runs beside this one, so that a CPU multiplies it in two halves.
    """

    path: str
    axes: tuple[str, ...]
    role: Role
    out: str = ""
    attribute: str = ""
    hf: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    gguf: str = ""
    input_of: str = ""
    halves: bool = False

    @property
    def name(self) -> str:
        """Of the projection: `ffw_linear`."""
        return self.path.split("/")[-2]

    @property
    def in_attention(self) -> bool:
        """Whether it is one of the attention layer's."""
        return self.path.startswith(f"{BLOCK}attention/")

    @property
    def outs(self) -> tuple[int, ...]:
        """The dimensions that a product keeps."""
        return tuple(place for place, axis in enumerate(self.axes) if axis in self.out)

    @property
    def ins(self) -> tuple[int, ...]:
        """The dimensions that a product sums over."""
        return tuple(place for place, axis in enumerate(self.axes) if axis not in self.out)

    @property
    def equation(self) -> str:
        """Of the product with `x` [..., ins], for einsum.

        >>> kind_of("decoder_block_0/attention/query/kernel").equation
        '...D,NDH->...NH'
        """
        return f"...{''.join(self.axes[place] for place in self.ins)},{''.join(self.axes)}->...{self.out}"

    @property
    def is_matrix(self) -> bool:
        """Whether it has the form [out, in]; what does can be kept in 8 bits."""
        return self.role in (Role.EMBEDDING, Role.MATRIX)

    @property
    def of_adapter(self) -> bool:
        """Whether an adapter has it; beside adapters all other weights are frozen."""
        return self.role in (Role.FACTOR, Role.SINGULAR, Role.STATE)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: not to norm scales, nor to the singular values of an adapter."""
        return self.role not in (Role.SCALE, Role.SINGULAR)

    def shape(self, architecture: Architecture) -> tuple[int, ...]:
        """Of the weight in a model; of those that the architecture alone does not fix, `KeyError`."""
        sizes = {
            "V": architecture.vocabulary_size,
            "D": architecture.hidden_dim,
            "N": architecture.num_query_heads,
            "K": architecture.num_key_value_heads,
            "H": architecture.head_dim,
            "F": architecture.intermediate_dim,
        }
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self.axes)

    def hf_name(self, family: str, layer: int) -> str:
        """The tensor of a Hugging Face folder."""
        block = f"layers.{layer}." if self.path.startswith(BLOCK) else ""
        return f"model.{block}{self.hf[family]}.weight"

    def gguf_name(self, layer: int) -> str:
        """The tensor of a GGUF file."""
        return f"{f'blk.{layer}.' if self.path.startswith(BLOCK) else ''}{self.gguf}.weight"


def _everywhere(name: str) -> dict[str, str]:
    return {"gemma": name} | _since_gemma2(name)


def _since_gemma2(name: str) -> dict[str, str]:
    return {"gemma2": name, "gemma3_text": name}


def _norm(name: str, hf: Mapping[str, str], gguf: str, axis: str = "D") -> WeightKind:
    return WeightKind(path=f"{BLOCK}{name}/scale", axes=(axis,), out=axis, role=Role.SCALE, hf=hf, gguf=gguf)


def _projection(layer: str, axes: str, out: str, hf: str, gguf: str, attribute: str, **more: str | bool) -> WeightKind:
    return WeightKind(
        path=f"{BLOCK}{layer}/kernel", axes=tuple(axes), out=out, role=Role.MATRIX, hf=_everywhere(hf), gguf=gguf,
        attribute=attribute, **more,  # type: ignore[arg-type]
    )  # fmt: skip


PROJECTIONS = (
    _projection("attention/query", "NDH", "NH", "self_attn.q_proj", "attn_q", "query_dense", halves=True),
    _projection("attention/key", "KDH", "KH", "self_attn.k_proj", "attn_k", "key_dense", input_of="query"),
    _projection("attention/value", "KDH", "KH", "self_attn.v_proj", "attn_v", "value_dense", input_of="query"),
    _projection(
        "attention/attention_output", "NHD", "D", "self_attn.o_proj", "attn_output", "output_dense", halves=True
    ),
    _projection("ffw_gating", "DF", "F", "mlp.gate_proj", "ffn_gate", "gating_ffw"),
    _projection("ffw_gating_2", "DF", "F", "mlp.up_proj", "ffn_up", "gating_ffw_2", input_of="ffw_gating"),
    _projection("ffw_linear", "FD", "D", "mlp.down_proj", "ffn_down", "", halves=True),
)


def _of_adapters(projection: WeightKind) -> Iterable[WeightKind]:
    """What adapters of a projection keep: factors of the flattened kernel, [r, in] and [out, r]."""
    flat_in = "".join(projection.axes[place] for place in projection.ins)
    for method in ("lora", "adalora"):
        stem = f"{projection.path.removesuffix('kernel')}{method}"
        yield WeightKind(path=f"{stem}/lora_A", axes=("r", flat_in), out="r", role=Role.FACTOR)
        yield WeightKind(path=f"{stem}/lora_E", axes=("r",), role=Role.SINGULAR)
        yield WeightKind(path=f"{stem}/lora_B", axes=(projection.out, "r"), out=projection.out, role=Role.FACTOR)
        yield WeightKind(path=f"{stem}/dropout_seed/seed_generator_state", axes=("s",), role=Role.STATE)


# In the order of the forward pass, norms of a block first.
KINDS = (
    WeightKind(
        path=EMBEDDINGS, axes=("V", "D"), out="V", role=Role.EMBEDDING, hf=_everywhere("embed_tokens"),
        gguf="token_embd", attribute="reversible_embedding", halves=True,
    ),
    _norm("pre_attention_norm", _everywhere("input_layernorm"), "attn_norm"),
    _norm("attention/query_norm", {"gemma3_text": "self_attn.q_norm"}, "attn_q_norm", "H"),
    _norm("attention/key_norm", {"gemma3_text": "self_attn.k_norm"}, "attn_k_norm", "H"),
    _norm("post_attention_norm", _since_gemma2("post_attention_layernorm"), "post_attention_norm"),
    _norm(
        "pre_ffw_norm", {"gemma": "post_attention_layernorm"} | _since_gemma2("pre_feedforward_layernorm"), "ffn_norm"
    ),
    _norm("post_ffw_norm", _since_gemma2("post_feedforward_layernorm"), "post_ffw_norm"),
    *PROJECTIONS,
    WeightKind(
        path="final_normalization/scale", axes=("D",), out="D", role=Role.SCALE, hf=_everywhere("norm"),
        gguf="output_norm", attribute="rms_normalization",
    ),
    *(kind for projection in PROJECTIONS for kind in _of_adapters(projection)),
)  # fmt: skip


def by_path(kinds: Iterable[WeightKind]) -> dict[str, WeightKind]:
    """The rows of a table by path.

    Raises:
        ValueError: a weight has two.
    """
    rows: dict[str, WeightKind] = {}
    for kind in kinds:
        if kind.path in rows:
            raise ValueError(f"the table of weights has 2 rows for {kind.path}; expected one")
        rows[kind.path] = kind
    return rows


_BY_PATH = by_path(KINDS)


@functools.cache
def kind_of(path: str) -> WeightKind:
    """The row of a variable, of one block or of the stack of all.

    >>> kind_of("decoder_block_3/ffw_linear/kernel").axes, kind_of("decoder_blocks/ffw_linear/kernel").out
    (('F', 'D'), 'D')

    Raises:
        ValueError: there is none.
    """
    kind = _BY_PATH.get(_BLOCK_NUMBER.sub(BLOCK, path, count=1) if path.startswith("decoder_block") else path)
    if kind is None or path.startswith(BLOCK):
        raise ValueError(f"the table of weights (models/weight_table.py) has 0 rows for {path}; expected one")
    return kind


def model_kinds(family: str) -> tuple[WeightKind, ...]:
    """The rows of a family's own weights, in the order of the table."""
    return tuple(kind for kind in KINDS if family in kind.hf)
