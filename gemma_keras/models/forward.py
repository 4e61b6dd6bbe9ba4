"""One functional forward pass through the layers of keras-hub's Gemma backbone.

The backbone is built without memory; its weights live in a plain `dict` from variable path to array. Layers are called
through the backbone (`block.attention.query_dense(x, training=...)`), so a layer that replaces a projection is used as it
is. Attention and RoPE are ours: keras-hub drops the soft cap on TPU, and scales queries by 1/sqrt(head_dim) whatever it
is told (gemma_decoder_block.py passes `query_head_dim_normalize=True`), which is wrong for 27b.

Axes: B batch, T time, N query heads, K KV heads, H head dim, D model dim, V vocabulary, L layers.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.ad_checkpoint import checkpoint_name
from keras_hub.models import Backbone, Gemma3Backbone, GemmaBackbone

from gemma_keras.models.architecture import NORM_EPSILON, ROPE_BASE, Architecture
from gemma_keras.models.attention_kernels.grouped_query import attention, packed_attention
from gemma_keras.models.kv_cache import Context
from gemma_keras.models.stacking import STACKS, is_stacked
from gemma_keras.models.weight_protocol import as_weight, plain, row
from gemma_keras.models.weight_sharding import variable_axes
from gemma_keras.models.weight_table import EMBEDDINGS, Role, kind_of
from gemma_keras.parallel.plan import ATTENDED, DOWN, GATE, ONE_DEVICE, PROJECTED, UP, ComputePlan
from gemma_keras.parallel.sharding import all_gathered, vocabulary_lookup

Params = dict[str, jax.Array]
NewKeysValues = tuple[jax.Array, jax.Array]
Angles = dict[tuple[float, float], tuple[jax.Array, jax.Array]]  # by `LayerSpec.rope`


def build_backbone(architecture: Architecture, dtype: str) -> Backbone:
    """keras-hub's backbone without weights: under a second and no memory for any size.

    `dtype` is a Keras policy: "float32", "bfloat16", or "mixed_bfloat16" (float32 weights, bfloat16 matmuls). The shape is
    attached as `backbone.architecture`. Variables hold abstract values, which raise when they are used outside `forward`.
    """
    # Windows, RoPE and the query scale are missing: they belong to the attention, which is ours.
    arguments = dict(
        vocabulary_size=architecture.vocabulary_size,
        num_layers=architecture.num_layers,
        num_query_heads=architecture.num_query_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        hidden_dim=architecture.hidden_dim,
        head_dim=architecture.head_dim,
        use_post_ffw_norm=architecture.post_norms,
        use_post_attention_norm=architecture.post_norms,
        layer_norm_epsilon=NORM_EPSILON,
        dtype=dtype,
    )
    built = []

    def build() -> None:
        # Inside a stateless scope Keras defers initialisation to the scope's end, which here is still abstract.
        with keras.StatelessScope():
            if architecture.qk_norms:
                backbone = Gemma3Backbone(
                    intermediate_dim=architecture.intermediate_dim, image_size=1, use_query_key_norm=True, **arguments
                )
            else:
                backbone = GemmaBackbone(intermediate_dim=2 * architecture.intermediate_dim, **arguments)
        backbone.architecture = architecture
        built.append(backbone)

    jax.eval_shape(build)
    return built[0]


def variable_shapes(backbone: Backbone) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every weight by variable path, in the backbone's order."""
    return {weight.path: jax.ShapeDtypeStruct(tuple(weight.shape), weight.dtype) for weight in backbone.weights}


def initial_params(backbone: Backbone, seed: int) -> Params:
    """Random weights for pretraining: norm scales 0 (RMSNorm multiplies by 1 + scale), everything else N(0, 1/fan_in).

    Embeddings are N(0, 1/D): times sqrt(D) they enter the first block with variance 1, and as the output matrix they give
    logits of variance 1. Each weight depends on the seed and its own path only.
    """
    return {path: _initial_weight(path, spec, seed) for path, spec in variable_shapes(backbone).items()}


def _initial_weight(path: str, spec: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    kind = kind_of(path)
    if kind.role is Role.SCALE:
        return jnp.zeros(spec.shape, spec.dtype)
    fan_in = math.prod(spec.shape[axis] for axis in kind.ins)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    return (jax.random.normal(key, spec.shape, jnp.float32) / math.sqrt(fan_in)).astype(spec.dtype)


def layer_angles(architecture: Architecture, positions: jax.Array) -> Angles:
    """The `rope_angles` of i32[B, T] positions that each layer finds under its `rope`, computed once for all that share it."""
    ropes = dict.fromkeys(spec.rope for spec in architecture.pattern)
    return {rope: rope_angles(positions, architecture.head_dim, *rope) for rope in ropes}


def rope_angles(
    positions: jax.Array, head_dim: int, base: float = ROPE_BASE, scaling: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) f32[B, T, 1, H/2] of position / scaling · base^(-2i/H).

    Always float32, and by a product rather than the einsum of keras-hub's layer: TPUs round the operands of a float32
    einsum to bfloat16, which knows integers up to 256 only.
    """
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling != 1:
        frequencies = frequencies / scaling
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates dimensions i and i + H/2 of `x` [B, T, heads, H] by the i-th angle, in float32 (transformers' layout)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def forward(
    backbone: Backbone,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    training: bool = False,
    context: Context | None = None,
    angles: Angles | None = None,
    plan: ComputePlan = ONE_DEVICE,
) -> Any:
    """Hidden states [B, T, D] after the final norm, in the compute dtype; with a context, the pair (hidden, new_keys_values).

    `tokens`, `positions`, `segment_ids` i32[B, T]; segment 0 is padding, and a token sees its own segment only. Without a
    context, positions have to rise by one from token to token within a segment, as the batches of `data` do. `params`
    maps the path of every weight, or of every stack of weights, to its value (cast to the variable's dtype); other variables
    of the backbone, such as seeds, may be among them. `training` is handed to the projections, for adapters with dropout.
    `plan` says on which devices and with which kernels; it changes the result by rounding only.

    With a context, the tokens go on where it ends, and see it besides each other: the prompt in one call or several, then a
    token a call. `new_keys_values` are theirs, for `KVCache.write`. Positions of -1 are padding then; there are no segments.
    `angles` are the `layer_angles` of the positions, where the caller has them: in a loop, XLA:CPU computes cosines
    for every layer anew, whatever the barrier.
    """
    with jax.named_scope("token_embedding"):
        x = plan.residual(_embed(backbone, params, tokens, plan))
    if angles is None:
        # Behind a barrier, lest every layer computes cosines of its own.
        angles = jax.lax.optimization_barrier(layer_angles(backbone.architecture, positions))

    def block(layer: int, params: Params, x: jax.Array) -> tuple[jax.Array, NewKeysValues | None]:
        with _scope(backbone.transformer_layers[layer], params, plan):
            project = functools.partial(_projected, params=params, training=training)
            own = angles[backbone.architecture.layers[layer].rope]
            return _decoder_block(backbone, layer, x, own, positions, segment_ids, project, context, plan)

    new_keys_values = []
    if is_stacked(params):
        assert context is None, "stacks are for training"
        x = _scan_blocks(backbone, params, x, lambda layer, params, x: block(layer, params, x)[0], plan)
    else:
        for layer in range(backbone.architecture.num_layers):
            run = functools.partial(block, layer)
            x, own = (plan.recomputed(run) if context is None else run)(params, x)
            new_keys_values.append(own)
    with _scope(backbone.layer_norm, params, plan):
        hidden = backbone.layer_norm(x)
    return hidden if context is None else (hidden, tuple(new_keys_values))


def _scan_blocks(
    backbone: Backbone,
    params: Params,
    x: jax.Array,
    block: Callable[[int, Params, jax.Array], jax.Array],
    plan: ComputePlan,
) -> jax.Array:
    """All blocks on stacked parameters: a scan whose step is the pattern of the layers once, two blocks for Gemma 2.

    The layers of its first repetition stand for all others; blocks of one that breaks off follow one by one.
    """
    layers, period = backbone.architecture.num_layers, len(backbone.architecture.pattern)
    rounds, rest = divmod(layers, period)
    stacks = {path: stack for path, stack in params.items() if path.startswith(STACKS)}
    # The loop's part of a stack is a second copy of it where layers are left over. So rows of frozen weights are taken from the
    # whole stack; of trained ones that would sum gradients over the whole stack in every round.
    adapted = any(kind_of(path).of_adapter for path in stacks)
    frozen = {path: stack for path, stack in stacks.items() if rest and adapted and not kind_of(path).of_adapter}
    parts = {path: stack for path, stack in stacks.items() if path not in frozen}

    def run(x: jax.Array, layer: int, parts: Params, at: int, place: jax.Array | int) -> jax.Array:
        # Rows are taken within the block, lest the backward pass keeps a copy of each.
        def of_row(parts: Params, frozen: Params, x: jax.Array) -> jax.Array:
            with jax.named_scope("weights"):
                own = {path: row(stack, at) for path, stack in parts.items()}
                own |= {path: row(stack, place) for path, stack in frozen.items()}
            return block(
                layer, {path.replace(STACKS, f"decoder_block_{layer}/"): value for path, value in own.items()}, x
            )

        return plan.recomputed(of_row)(parts, frozen, x)

    def step(x: jax.Array, item: tuple[jax.Array, Params]) -> tuple[jax.Array, None]:
        number, parts = item
        for layer in range(period):
            x = run(x, layer, parts, layer, number * period + layer)
        return x, None

    if rounds:
        whole = _each_array(parts, lambda stack: stack[: rounds * period])
        grouped = _each_array(whole, lambda stack: stack.reshape(rounds, period, *stack.shape[1:]))
        x, _ = jax.lax.scan(step, x, (jnp.arange(rounds), grouped))
    for layer in range(rounds * period, layers):
        x = run(x, layer, parts, layer, layer)
    return x


def _each_array(weights: Params, change: Callable[[jax.Array], jax.Array]) -> Params:
    """Weights whose arrays are changed, in their order."""
    return {path: jax.tree.map(change, weight) for path, weight in weights.items()}


def _embed(backbone: Backbone, params: Params, tokens: jax.Array, plan: ComputePlan) -> jax.Array:
    """Embeddings [B, T, D] times sqrt(D), the factor rounded to the compute dtype."""
    dtype = backbone.token_embedding.compute_dtype
    x = as_weight(params[EMBEDDINGS]).lookup(tokens, dtype, functools.partial(vocabulary_lookup, plan=plan))
    return x * jnp.asarray(math.sqrt(x.shape[-1]), x.dtype)


def _scope(layer: keras.layers.Layer, params: Params, plan: ComputePlan) -> keras.StatelessScope:
    """Gives a layer's variables their values. Entered within a block, so that what `plan` gathers is freed after it."""
    mapping = [
        (variable, plain(params[variable.path], variable.dtype))
        for variable in layer.variables
        if variable.path in params
    ]
    for missing in (weight.path for weight in layer.weights if weight.path not in params):
        raise KeyError(missing)
    if plan.mesh is not None:
        with jax.named_scope("weights"):
            mapping = [
                (variable, all_gathered(plan, *variable_axes(variable.path), value)) for variable, value in mapping
            ]
    return keras.StatelessScope(state_mapping=mapping, initialize_variables=False)


def _projected(layer: keras.layers.Layer, x: jax.Array, *, params: Params, training: bool) -> jax.Array:
    """`layer` applied to `x`; by its kernel, where that wants to multiply and no adapter is around it."""
    if type(layer) in (keras.layers.EinsumDense, keras.layers.Dense):
        kernel = as_weight(params[layer.kernel.path])
        if kernel.multiplies:
            return kernel.project(x, kind_of(layer.kernel.path))
    return layer(x, training=training)


def _decoder_block(
    backbone: Backbone,
    layer: int,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    positions: jax.Array,
    segment_ids: jax.Array | None,
    project: Callable[..., jax.Array],
    context: Context | None,
    plan: ComputePlan,
) -> tuple[jax.Array, NewKeysValues | None]:
    """Block `layer` of the backbone: attention, then feed-forward, each around a residual stream `x` [B, T, D].

    `project(layer, x)` applies a projection. With a context, the keys and values [B, K, T, H] come with the result.
    """
    block = backbone.transformer_layers[layer]
    post_norms, window = backbone.architecture.post_norms, backbone.architecture.layers[layer].window
    normed = block.pre_attention_norm(x)
    # Named before norms and RoPE, for the norms' backward pass needs what they are given; RoPE's needs nothing.
    query = checkpoint_name(plan.features(project(block.attention.query_dense, normed)), PROJECTED)
    key = checkpoint_name(plan.features(project(block.attention.key_dense, normed)), PROJECTED)
    value = checkpoint_name(plan.features(project(block.attention.value_dense, normed)), PROJECTED)
    if backbone.architecture.qk_norms:
        query, key = block.attention.query_norm(query), block.attention.key_norm(key)
    with jax.named_scope("rope"):
        query, key = apply_rope(query, angles), apply_rope(key, angles)
    new_keys_values = None
    settings: dict[str, Any] = {
        "scale": backbone.architecture.query_pre_attn_scalar**-0.5,
        "logit_soft_cap": backbone.architecture.attention_logit_soft_cap,
    }
    if context is None:
        heads = packed_attention(
            query, key, value, segment_ids, window=window, kernel=plan.attention, mesh=plan.mesh, **settings
        )
    else:
        new_keys_values = (key.swapaxes(1, 2), value.swapaxes(1, 2))
        heads = attention(query, context.sources(layer, *new_keys_values, positions, window), **settings)
    attended = checkpoint_name(plan.residual(project(block.attention.output_dense, heads)), ATTENDED)
    x = x + (block.post_attention_norm(attended) if post_norms else attended)
    normed = block.pre_ffw_norm(x)
    gate = checkpoint_name(plan.features(project(block.gating_ffw, normed)), GATE)
    up = checkpoint_name(plan.features(project(block.gating_ffw_2, normed)), UP)
    fed = plan.residual(project(block.ffw_linear, _gated_gelu(gate, up)))
    fed = checkpoint_name(fed, DOWN)
    return x + (block.post_ffw_norm(fed) if post_norms else fed), new_keys_values


@jax.checkpoint
def _gated_gelu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gelu(gate)·up [B, T, F]; only its arguments are kept for the backward pass."""
    return jax.nn.gelu(gate, approximate=True) * up


def logits(backbone: Backbone, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits f32[..., V] of `hidden` [..., D] over the tied embeddings, with the final soft cap."""
    values = as_weight(params[EMBEDDINGS]).project(hidden, kind_of(EMBEDDINGS), jnp.float32)
    cap = backbone.architecture.final_logit_soft_cap
    return values if cap is None else cap * jnp.tanh(values / cap)


def only_pieces(architecture: Architecture, scores: jax.Array) -> jax.Array:
    """Scores [..., V] of tokens, -inf for rows of embeddings that no token belongs to; what is taken is chosen from these."""
    if not architecture.surplus_rows:
        return scores
    return jnp.where(jnp.arange(architecture.vocabulary_size) < architecture.pieces, scores, -jnp.inf)
