"""Adapters into a keras-hub backbone, and out of it again by merging.

Model code knows nothing of adapters: an `AdaptedDense` takes the place of a projection and is called like it. What an adapter
does is its own affair (`base.Adapter`).
Parameters are dictionaries from variable path to array, as everywhere in this package.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import keras

from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.protocol import Adapter
from gemma_keras.adapters.registry import ADAPTERS
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.forward import Params
from gemma_keras.models.stacking import stack_path
from gemma_keras.models.weight_table import PROJECTIONS

_PROJECTIONS = {kind.name: kind for kind in PROJECTIONS}
TARGETS = tuple(_PROJECTIONS)
INPUTS = tuple(name for name, kind in _PROJECTIONS.items() if not kind.input_of)


class AdaptedDense(keras.layers.Layer):
    """A projection with its adapter."""

    def __init__(self, base: keras.layers.EinsumDense, adapter: Adapter):
        super().__init__(name=base.name, dtype=base.dtype_policy)
        self.base = base
        self.adapter = adapter

    def build(self, input_shape) -> None:
        self.adapter.build(input_shape)
        self.built = True

    def call(self, x, training: bool = False):
        return self.adapter.apply(self.base, x, training=training)


@dataclasses.dataclass(frozen=True)
class AdaptedMatrix:
    """Where one adapted projection keeps its variables; `name` is the path that they share."""

    name: str
    adapter: Adapter
    kernel: str

    def path(self, variable: str) -> str:
        """The path of one of the adapter's weights, such as `lora_A`."""
        return getattr(self.adapter, variable).path


def add_adapters(backbone: keras.Model, config: AdapterConfig) -> list[AdaptedMatrix]:
    """Replaces every target projection of every block by an `AdaptedDense`; returns them in the order of the layers.

    No memory is taken: variables are created abstractly, as those of the backbone were. Initial values come from
    `initial_adapter_params`.

    Raises:
        UserError: a target is not one of `TARGETS`.
    """
    unknown = sorted(set(config.targets) - set(TARGETS))
    if unknown:
        raise UserError(f"adapter.targets has {unknown[0]!r}; expected some of {', '.join(TARGETS)}.")
    jax.eval_shape(lambda: _replace_projections(backbone, config))
    return adapted_matrices(backbone)


def adapted_matrices(backbone: keras.Model) -> list[AdaptedMatrix]:
    """The adapted projections of a backbone; empty without adapters."""
    found = []
    for block in backbone.transformer_layers:
        for owner, attribute in _projections(block, TARGETS):
            layer = getattr(owner, attribute)
            if isinstance(layer, AdaptedDense):
                kernel = layer.base.kernel.path
                found.append(AdaptedMatrix(kernel.rsplit("/", 1)[0], layer.adapter, kernel))
    return found


def initial_adapter_params(matrices: list[AdaptedMatrix], seed: int) -> Params:
    """Initial values by path, drawn from the seed and the matrix's place alone."""
    params: Params = {}
    for index, matrix in enumerate(matrices):
        values = matrix.adapter.initial_values(jax.random.fold_in(jax.random.key(seed), index))
        params |= {matrix.path(name): value for name, value in values.items()}
    return params


@dataclasses.dataclass(frozen=True)
class AdapterStack:
    """The adapters of one projection in all blocks: each of their weights is a stack [L, ...] (`models.stacking`)."""

    name: str
    adapter: Adapter
    matrices: tuple[AdaptedMatrix, ...]

    def path(self, variable: str) -> str:
        """The path of one of the stacks, such as that of `lora_A`."""
        return stack_path(self.matrices[0].path(variable))[0]

    def shape(self, variable: str) -> tuple[int, ...]:
        """The shape [L, ...] of that stack."""
        return (len(self.matrices), *getattr(self.adapter, variable).shape)


def adapter_stacks(matrices: list[AdaptedMatrix]) -> list[AdapterStack]:
    """Matrices by projection, in the order in which the first block has them."""
    stacks: dict[str, list[AdaptedMatrix]] = {}
    for matrix in matrices:
        stacks.setdefault(stack_path(matrix.name)[0], []).append(matrix)
    return [AdapterStack(name, rows[0].adapter, tuple(rows)) for name, rows in stacks.items()]


def dropout_seeds(stacks: list[AdapterStack], key: jax.Array) -> Params:
    """Seeds u32[L, 2] of the adapters' dropout for one forward pass, by path; empty without dropout.

    Projections with the same input share a mask, which costs a third of three and drops as much.
    """
    seeds: Params = {}
    for stack in stacks:
        if stack.adapter.dropout_seed is not None:
            projection = stack.name.rsplit("/", 1)[1]
            own = jax.random.fold_in(key, INPUTS.index(_PROJECTIONS[projection].input_of or projection))
            rows = jax.random.key_data(jax.random.split(own, len(stack.matrices)))
            seeds[stack_path(stack.adapter.dropout_seed.state.path)[0]] = rows
    return seeds


def disable_adapters(adapted: Iterable[AdaptedMatrix | AdapterStack], params: Params) -> Params:
    """The same parameters with these adapters disabled: the model as it would be without them."""
    off = dict(params)
    for place in adapted:
        disabled = place.adapter.disabled(_weights_of(place, params))
        off |= {place.path(name): value for name, value in disabled.items()}
    return off


def _weights_of(place: AdaptedMatrix | AdapterStack, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """An adapter's weights by name."""
    return {name: params[place.path(name)] for name in place.adapter.weight_names}


class MergedParams(Mapping[str, jax.Array]):
    """The parameters of the plain backbone, each adapted kernel computed when it is asked for and not kept.

    The weights of adapters are not listed.
    """

    def __init__(self, matrices: list[AdaptedMatrix], params: Mapping[str, jax.Array]):
        self._params = params
        self._matrices = {matrix.kernel: matrix for matrix in matrices}
        adapters = {matrix.path(name) for matrix in matrices for name in matrix.adapter.weight_names}
        self._paths = {path: None for path in params if path not in adapters}  # a dict keeps their order

    def __getitem__(self, path: str) -> jax.Array:
        if path not in self._paths:
            raise KeyError(path)
        kernel, matrix = self._params[path], self._matrices.get(path)
        if matrix is None:
            return kernel
        return matrix.adapter.merge(kernel, _weights_of(matrix, self._params))

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def merge(matrices: list[AdaptedMatrix], params: Params) -> Params:
    """All of `MergedParams` at once."""
    return dict(MergedParams(matrices, params))


def _projections(block: keras.layers.Layer, targets) -> list[tuple[keras.layers.Layer, str]]:
    """Owner and attribute of each target; those of attention come first."""
    kinds = [_PROJECTIONS[target] for target in targets]
    own = [(block.attention, kind.attribute) for kind in kinds if kind.in_attention]
    return own + [(block, kind.attribute or kind.name) for kind in kinds if not kind.in_attention]


def _replace_projections(backbone: keras.Model, config: AdapterConfig) -> None:
    with keras.StatelessScope():
        for block in backbone.transformer_layers:
            for owner, attribute in _projections(block, config.targets):
                _replace(owner, attribute, config)


def _replace(owner: keras.layers.Layer, attribute: str, config: AdapterConfig) -> None:
    """Puts an `AdaptedDense` in the place of `owner.attribute`, with variable paths below the projection's own."""
    base = getattr(owner, attribute)
    axes = EinsumAxes.of(base.equation, tuple(base.kernel.shape))
    dtype = "float32" if base.compute_dtype == "float32" else f"mixed_{base.compute_dtype}"
    adapted = AdaptedDense(base, ADAPTERS[config.method](axes, config, dtype))
    # A built layer locks its tracker, and would keep listing the projection that is replaced.
    owner._tracker.unlock()
    owner._layers.remove(base)
    setattr(owner, attribute, adapted)
    owner._tracker.lock()
    with contextlib.ExitStack() as scopes:
        for name in base.kernel.path.split("/")[:-2]:
            scopes.enter_context(keras.name_scope(name))
        adapted.build((None, None, *axes.input_dims))
