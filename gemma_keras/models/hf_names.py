"""The table between Keras variable paths and Hugging Face tensor names, with the change of layout both ways.

Keras kernels are [N, D, H] for query, key and value, [N, H, D] for the attention output, [in, out] for the feed-forward
part; PyTorch's are [out, in] with heads flattened. Axes: N heads, H head dim, D model dim, F ffn dim, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from gemma_keras.models.architecture import Architecture

Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class HfTensor:
    """One weight: its Keras path, its Hugging Face name and shape, and the two changes of layout.

    `from_hf` of a contiguous array is a view of it, so what is written into the result lands in the Hugging Face layout.
    `same_layout`: both changes leave the array as it is.
    """

    path: str
    name: str
    hf_shape: tuple[int, ...]
    to_hf: Transform
    from_hf: Transform
    same_layout: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.hf_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the Keras variable. An empty view carries shapes through the change of layout for free."""
        return self.from_hf(np.broadcast_to(np.int8(0), self.hf_shape)).shape


def _same(path: str, name: str, shape: tuple[int, ...]) -> HfTensor:
    return HfTensor(path, name, shape, lambda x: x, lambda x: x, same_layout=True)


def _transposed(path: str, name: str, shape: tuple[int, int]) -> HfTensor:
    return HfTensor(path, name, shape, np.transpose, np.transpose)


def _heads_out(path: str, name: str, heads: int, head_dim: int, dim: int) -> HfTensor:
    """Query, key, value: [N, D, H] against [N·H, D]."""
    shape = (heads * head_dim, dim)
    return HfTensor(
        path,
        name,
        shape,
        lambda x: x.transpose(0, 2, 1).reshape(shape),
        lambda x: x.reshape(heads, head_dim, dim).transpose(0, 2, 1),
    )


def _heads_in(path: str, name: str, heads: int, head_dim: int, dim: int) -> HfTensor:
    """Attention output: [N, H, D] against [D, N·H]."""
    shape = (dim, heads * head_dim)
    return HfTensor(
        path,
        name,
        shape,
        lambda x: x.transpose(2, 0, 1).reshape(shape),
        lambda x: x.reshape(dim, heads, head_dim).transpose(1, 2, 0),
    )


def hf_tensors(architecture: Architecture) -> Iterator[HfTensor]:
    """Every tensor of a Hugging Face Gemma checkpoint of this shape, in the order of the forward pass."""
    dim, ffn, head_dim = architecture.hidden_dim, architecture.intermediate_dim, architecture.head_dim
    queries, keys = architecture.num_query_heads, architecture.num_key_value_heads
    yield _same("token_embedding/embeddings", "model.embed_tokens.weight", (architecture.vocabulary_size, dim))
    for layer in range(architecture.num_layers):
        ours, theirs = f"decoder_block_{layer}", f"model.layers.{layer}"
        for ours_norm, theirs_norm in _norm_names(architecture.post_norms):
            yield _same(f"{ours}/{ours_norm}/scale", f"{theirs}.{theirs_norm}.weight", (dim,))
        for ours_name, theirs_name, heads in (("query", "q", queries), ("key", "k", keys), ("value", "v", keys)):
            path, name = f"{ours}/attention/{ours_name}/kernel", f"{theirs}.self_attn.{theirs_name}_proj.weight"
            yield _heads_out(path, name, heads, head_dim, dim)
        output = f"{ours}/attention/attention_output/kernel"
        yield _heads_in(output, f"{theirs}.self_attn.o_proj.weight", queries, head_dim, dim)
        yield _transposed(f"{ours}/ffw_gating/kernel", f"{theirs}.mlp.gate_proj.weight", (ffn, dim))
        yield _transposed(f"{ours}/ffw_gating_2/kernel", f"{theirs}.mlp.up_proj.weight", (ffn, dim))
        yield _transposed(f"{ours}/ffw_linear/kernel", f"{theirs}.mlp.down_proj.weight", (dim, ffn))
    yield _same("final_normalization/scale", "model.norm.weight", (dim,))


def _norm_names(post_norms: bool) -> tuple[tuple[str, str], ...]:
    """Norms of a block. Gemma 1 calls the norm before the feed-forward part `post_attention_layernorm`."""
    if not post_norms:
        return (("pre_attention_norm", "input_layernorm"), ("pre_ffw_norm", "post_attention_layernorm"))
    return (
        ("pre_attention_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("pre_ffw_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    )
