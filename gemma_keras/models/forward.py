"""One functional forward pass through the layers of keras-hub's Gemma backbone.

The backbone is built without memory; its weights live in a plain `dict` from variable path to array. Layers are called
through the backbone (`block.attention.query_dense(x, training=...)`), so a layer that replaces a projection is used as it
is. Attention and RoPE are ours: keras-hub drops the soft cap on TPU, and scales queries by 1/sqrt(head_dim) whatever it
is told (gemma_decoder_block.py passes `query_head_dim_normalize=True`), which is wrong for 27b.

Axes: B batch, T query time, S cache slots, N query heads, K KV heads, H head dim, D model dim, V vocabulary, L layers.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras_hub.models import GemmaBackbone

from gemma_keras.models.architectures import NORM_EPSILON, ROPE_BASE, Architecture
from gemma_keras.models.attention import attention

Params = dict[str, jax.Array]
EMBEDDINGS = "token_embedding/embeddings"


def build_backbone(architecture: Architecture, dtype: str) -> GemmaBackbone:
    """keras-hub's backbone without weights: under a second and no memory for any size.

    `dtype` is a Keras policy: "float32", "bfloat16", or "mixed_bfloat16" (float32 weights, bfloat16 matmuls). The shape is
    attached as `backbone.architecture`. Variables hold abstract values, which raise when they are used outside `forward`.
    """
    built = []

    def build() -> None:
        # Inside a stateless scope Keras defers initialisation to the scope's end, which here is still abstract.
        with keras.StatelessScope():
            backbone = GemmaBackbone(
                vocabulary_size=architecture.vocabulary_size,
                num_layers=architecture.num_layers,
                num_query_heads=architecture.num_query_heads,
                num_key_value_heads=architecture.num_key_value_heads,
                hidden_dim=architecture.hidden_dim,
                intermediate_dim=2 * architecture.intermediate_dim,
                head_dim=architecture.head_dim,
                use_post_ffw_norm=architecture.post_norms,
                use_post_attention_norm=architecture.post_norms,
                attention_logit_soft_cap=architecture.attention_logit_soft_cap,
                final_logit_soft_cap=architecture.final_logit_soft_cap,
                use_sliding_window_attention=architecture.sliding_window is not None,
                sliding_window_size=architecture.sliding_window or 4096,
                layer_norm_epsilon=NORM_EPSILON,
                dtype=dtype,
            )
        backbone.architecture = architecture
        built.append(backbone)

    jax.eval_shape(build)
    return built[0]


def variable_shapes(backbone: GemmaBackbone) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every weight by variable path, in the backbone's order."""
    return {weight.path: jax.ShapeDtypeStruct(tuple(weight.shape), weight.dtype) for weight in backbone.weights}


def initial_params(backbone: GemmaBackbone, seed: int) -> Params:
    """Random weights for pretraining: norm scales 0 (RMSNorm multiplies by 1 + scale), everything else N(0, 1/fan_in).

    Embeddings are N(0, 1/D): times sqrt(D) they enter the first block with variance 1, and as the output matrix they give
    logits of variance 1. Each weight depends on the seed and its own path only.
    """
    return {path: _initial_weight(path, spec, seed) for path, spec in variable_shapes(backbone).items()}


def _initial_weight(path: str, spec: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    if path.endswith("/scale"):
        return jnp.zeros(spec.shape, spec.dtype)
    fan_in = math.prod(spec.shape[:-1])  # attention_output [N, H, D] and ffw [D, F], [F, D]
    if path == EMBEDDINGS:
        fan_in = spec.shape[-1]
    elif path.endswith(("query/kernel", "key/kernel", "value/kernel")):  # [N, D, H]
        fan_in = spec.shape[1]
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    return (jax.random.normal(key, spec.shape, jnp.float32) / math.sqrt(fan_in)).astype(spec.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keys and values already computed, a slot a token.

    `keys` and `values`: one [B, S, K, H] a layer; `positions` and `segments` i32[B, S] say what a slot holds (segment 0:
    nothing); the next tokens of all rows go to slot `index` (i32 scalar) and those after it. Rows of different lengths
    keep their own positions: padding has segment 0 and is never seen.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    positions: jax.Array
    segments: jax.Array
    index: jax.Array


def init_cache(backbone: GemmaBackbone, batch: int, length: int, dtype: Any = None) -> Cache:
    """An empty cache of `length` slots; `dtype` is by default that of the backbone's computations."""
    architecture: Architecture = backbone.architecture
    shape = (batch, length, architecture.num_key_value_heads, architecture.head_dim)
    dtype = dtype or backbone.token_embedding.compute_dtype
    layers = range(architecture.num_layers)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
        positions=jnp.zeros((batch, length), jnp.int32),
        segments=jnp.zeros((batch, length), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


def rope_angles(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) f32[B, T, 1, H/2] of position · base^(-2i/H).

    Always float32, and by a product rather than the einsum of keras-hub's layer: TPUs round the operands of a float32
    einsum to bfloat16, which knows integers up to 256 only. Computed once and used by every layer.
    """
    frequencies = ROPE_BASE ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates dimensions i and i + H/2 of `x` [B, T, heads, H] by the i-th angle, in float32 (transformers' layout)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def forward(
    backbone: GemmaBackbone,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    training: bool = False,
    cache: Cache | None = None,
) -> Any:
    """Hidden states [B, T, D] after the final norm, in the compute dtype; with a cache, the pair (hidden, new cache).

    `tokens`, `positions`, `segment_ids` i32[B, T]; segment 0 is padding, and a token sees its own segment only. Without a
    cache, positions have to rise by one from token to token within a segment, as the batches of `data` do. `params`
    maps the path of every weight to its value (cast to the variable's dtype); paths of other variables of the backbone,
    such as seeds, may be among them. `training` is handed to the projections, for the sake of adapters with dropout.

    With a cache, keys and values of the T new tokens are stored at slots `cache.index` ... + T - 1 of every row, then all S
    slots are attended to: the whole prompt in one call (T = its length), then one token a call. The caller sees to it that
    the slots suffice.
    """
    with keras.StatelessScope(state_mapping=_state_mapping(backbone, params), initialize_variables=False):
        if cache is not None:
            cache = dataclasses.replace(
                cache,
                positions=_write(cache.positions, positions, cache.index),
                segments=_write(cache.segments, segment_ids, cache.index),
            )
        x = backbone.token_embedding(tokens)
        x = x * jnp.asarray(math.sqrt(x.shape[-1]), x.dtype)
        angles = rope_angles(positions, backbone.architecture.head_dim)
        for layer in range(backbone.architecture.num_layers):
            x, cache = _decoder_block(backbone, layer, x, angles, positions, segment_ids, training, cache)
        hidden = backbone.layer_norm(x)
    if cache is None:
        return hidden
    return hidden, dataclasses.replace(cache, index=cache.index + tokens.shape[1])


def _state_mapping(backbone: GemmaBackbone, params: Params) -> list[tuple[keras.Variable, jax.Array]]:
    mapping = [(weight, params[weight.path]) for weight in backbone.weights]
    known = {id(weight) for weight in backbone.weights}
    others = (variable for variable in backbone.variables if id(variable) not in known)
    return mapping + [(variable, params[variable.path]) for variable in others if variable.path in params]


def _write(buffer: jax.Array, update: jax.Array, index: jax.Array) -> jax.Array:
    """`update` put into slots `index` ... of `buffer`, both [B, slots, ...]."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, update.astype(buffer.dtype), index, axis=1)


def _decoder_block(
    backbone: GemmaBackbone,
    layer: int,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    positions: jax.Array,
    segment_ids: jax.Array,
    training: bool,
    cache: Cache | None,
) -> tuple[jax.Array, Cache | None]:
    """Block `layer` of the backbone: attention, then feed-forward, each around a residual stream `x` [B, T, D]."""
    block = backbone.transformer_layers[layer]
    architecture = backbone.architecture
    normed = block.pre_attention_norm(x)
    query = apply_rope(block.attention.query_dense(normed, training=training), angles)
    key = apply_rope(block.attention.key_dense(normed, training=training), angles)
    value = block.attention.value_dense(normed, training=training)
    key_positions, key_segments = positions, segment_ids
    if cache is not None:
        key, value = _write(cache.keys[layer], key, cache.index), _write(cache.values[layer], value, cache.index)
        key_positions, key_segments = cache.positions, cache.segments
        cache = dataclasses.replace(cache, keys=_set(cache.keys, layer, key), values=_set(cache.values, layer, value))
    heads = attention(
        query, key, value, query_positions=positions, key_positions=key_positions, query_segments=segment_ids,
        key_segments=key_segments, scale=architecture.query_pre_attn_scalar**-0.5,
        logit_soft_cap=architecture.attention_logit_soft_cap, window=architecture.window(layer), in_order=cache is None,
    )  # fmt: skip
    attended = block.attention.output_dense(heads, training=training)
    x = x + (block.post_attention_norm(attended) if architecture.post_norms else attended)
    normed = block.pre_ffw_norm(x)
    gated = jax.nn.gelu(block.gating_ffw(normed, training=training), approximate=True)
    fed = block.ffw_linear(gated * block.gating_ffw_2(normed, training=training), training=training)
    return x + (block.post_ffw_norm(fed) if architecture.post_norms else fed), cache


def _set(items: tuple[jax.Array, ...], index: int, item: jax.Array) -> tuple[jax.Array, ...]:
    return (*items[:index], item, *items[index + 1 :])


def logits(backbone: GemmaBackbone, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits f32[..., V] of `hidden` [..., D] over the tied embeddings, with the final soft cap."""
    embeddings = params[EMBEDDINGS].astype(hidden.dtype)
    values = jnp.einsum("...d,vd->...v", hidden, embeddings, preferred_element_type=jnp.float32)
    cap = backbone.architecture.final_logit_soft_cap
    return values if cap is None else cap * jnp.tanh(values / cap)
