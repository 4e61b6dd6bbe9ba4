"""Matmul FLOPs of a traced program, loops and recomputation counted, by part.

The jaxpr is walked rather than XLA's cost analysis read, which counts the body of a loop once and a kernel not at all.

Axes of splash attention's kernels: N query heads, T query time in blocks, S key time in blocks.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Part of the program by a name on the equation's name stack, the first that is found; `rest` is everything else.
PARTS: tuple[tuple[str, str], ...] = (
    ("attention", r"attention|splash\w*"),
    ("log_probs", r"log_probs|token_scores"),
    ("adapters", r"adalora|lora"),
)
_KERNEL_PARTS = (("attention", r"splash\w*|\w*attention\w*"),)
_LARGEST_KNOWN = 1 << 20  # elements of a constant that is followed through calls
Known = Mapping[Any, np.ndarray]


@dataclasses.dataclass(slots=True)
class MatmulFlops:
    """FLOPs of all devices together, by part.

    Attributes:
        parts: FLOPs by part; work that several shards of a `shard_map` repeat counts as often as it is done.
        unknown_loops: `while` loops whose number of turns is not in the program; their bodies are counted once.
        visits: how many splash kernels run, by the (query, key) blocks of a head that each of them visits.
    """

    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0
    visits: dict[int, float] = dataclasses.field(default_factory=dict)

    def add(self, more: "MatmulFlops", times: float = 1) -> None:
        """Adds FLOPs that are done `times` times."""
        self.unknown_loops += more.unknown_loops
        for part, flops in more.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + times * flops
        for blocks, kernels in more.visits.items():
            self.visits[blocks] = self.visits.get(blocks, 0.0) + times * kernels

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def attention(self) -> float:
        return self.parts.get("attention", 0.0)


def matmul_flops(closed: core.ClosedJaxpr) -> MatmulFlops:
    """Counts 2·M·N·K for every `dot_general` that contributes to an output.

    Args:
        closed: of a traced program, `jax.jit(f).trace(*arguments).jaxpr`: gradients are in it, and what a policy computes
            again for them is, too.
    """
    alive, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return _walk(alive, _constants(alive.constvars, closed.consts), "")[0]


def largest_shapes(closed: core.ClosedJaxpr, count: int) -> list[tuple[int, ...]]:
    """Shapes of the largest arrays that the program computes, all devices together, largest first."""
    return sorted(set(_shapes(closed.jaxpr)), key=math.prod, reverse=True)[:count]


def _shapes(jaxpr: core.Jaxpr) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        yield from (tuple(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner, _ in _inner(equation):
            yield from _shapes(inner)


def _inner(equation: Any) -> list[tuple[core.Jaxpr, Sequence[Any]]]:
    """The jaxprs among an equation's parameters, with their constants."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr") and hasattr(item, "consts"):
                found.append((item.jaxpr, item.consts))
            elif hasattr(item, "eqns") and hasattr(item, "invars"):
                found.append((item, ()))
    return found


def _walk(jaxpr: core.Jaxpr, known: Known, names: str) -> tuple[MatmulFlops, list[np.ndarray | None]]:
    """Counts what stands below these names; and the results, as far as they are constants."""
    counts, values = MatmulFlops(), dict(known)
    for equation in jaxpr.eqns:
        name, results = equation.primitive.name, []
        inside = f"{names}/{equation.source_info.name_stack}"
        if name in ("dot_general", "ragged_dot_general"):
            counts.add(MatmulFlops({_part(inside, PARTS): _dot_flops(equation)}))
        elif name in _RULES:
            counts.add(*_RULES[name](equation, values, inside))
        elif name in _HANDING_ON:
            results = [_value(argument, values) for argument in equation.invars]
        else:
            for inner, consts in _inner(equation):  # calls of every kind run their body once
                found, results = _enter(inner, consts, equation.invars, values, inside)
                counts.add(found)
        values |= {v: x for v, x in zip(equation.outvars, results) if x is not None and x.shape == v.aval.shape}
    return counts, [_value(variable, values) for variable in jaxpr.outvars]


def _enter(
    inner: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], known: Known, names: str
) -> tuple[MatmulFlops, list[np.ndarray | None]]:
    """Walks a called jaxpr; constants that are handed to it, or by it to its caller, stay known."""
    values = dict(_constants(inner.constvars, consts))
    if len(arguments) == len(inner.invars):
        for variable, argument in zip(inner.invars, arguments, strict=True):
            value = _value(argument, known)
            if value is not None and value.shape == variable.aval.shape:  # a shard has no constant's whole
                values[variable] = value
    return _walk(inner, values, names)


def _constants(variables: Sequence[Any], values: Sequence[Any]) -> dict[Any, np.ndarray]:
    small = {}
    for variable, value in zip(variables, values):
        if getattr(value, "size", _LARGEST_KNOWN + 1) <= _LARGEST_KNOWN and not isinstance(value, jax.core.Tracer):
            small[variable] = np.asarray(value)
    return small


def _value(argument: Any, known: Known) -> np.ndarray | None:
    if isinstance(argument, core.Literal):
        return np.asarray(argument.val)
    return known.get(argument)


def _part(names: str, parts: tuple[tuple[str, str], ...]) -> str:
    words = re.findall(r"\w+", names)
    for part, pattern in parts:
        if any(re.fullmatch(pattern, word) for word in words):
            return part
    return "rest"


def _dot_flops(equation: Any) -> float:
    """Two operations for each element of the output and of the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)


# What an equation with a body does, and how often.
_Counted = tuple[MatmulFlops, float]


def _scan(equation: Any, known: Known, names: str) -> _Counted:
    body = equation.params["jaxpr"]
    constants = equation.params["num_consts"]
    arguments = [*equation.invars[:constants], *(None for _ in equation.invars[constants:])]
    return _enter(body.jaxpr, body.consts, arguments, known, names)[0], equation.params["length"]


def _while(equation: Any, known: Known, names: str) -> _Counted:
    once = MatmulFlops(unknown_loops=1)
    for inner, consts in _inner(equation):  # the condition and the body
        once.add(_enter(inner, consts, (), known, names)[0])
    return once, 1


def _cond(equation: Any, known: Known, names: str) -> _Counted:
    """Only the branch with the most FLOPs counts."""
    counted = [_enter(inner, consts, equation.invars[1:], known, names)[0] for inner, consts in _inner(equation)]
    return max(counted, key=lambda branch: branch.total), 1


def _shard_map(equation: Any, known: Known, names: str) -> _Counted:
    """The body is one shard's: every device along the mapped axes does its FLOPs."""
    mesh, manual = equation.params["mesh"], equation.params["newly_manual_axes"]
    ((inner, consts),) = _inner(equation)
    return _enter(inner, consts, equation.invars, known, names)[0], math.prod(mesh.shape[axis] for axis in manual)


def _pallas_call(equation: Any, known: Known, names: str) -> _Counted:
    """A kernel's FLOPs: what its author states, else those of its body at every point of the grid that is not skipped."""
    part = _part(f"{names}/{equation.params['name']}", _KERNEL_PARTS)
    estimate = equation.params.get("cost_estimate")
    if estimate is not None and estimate.flops:
        return MatmulFlops({part: float(estimate.flops)}), 1
    points = math.prod(size for size in equation.params["grid_mapping"].grid if isinstance(size, int))
    counts, mask = MatmulFlops(), _block_mask(equation, known)
    share = 1.0
    if mask is not None:
        share = np.count_nonzero(mask) / mask.size
        counts.visits[int(np.count_nonzero(mask)) // len(mask)] = 1
    counts.add(_walk(equation.params["jaxpr"], {}, part)[0], points * share)
    return counts, 1


def _block_mask(equation: Any, known: Known) -> np.ndarray | None:
    """Splash attention's mask i8[N or 1, T blocks, S blocks] (or the other way round), 0 where it skips a block."""
    prefetched = equation.invars[: equation.params["grid_mapping"].num_index_operands]
    masks = [value for value in (_value(argument, known) for argument in prefetched) if value is not None]
    # Splash hands over which block to fetch next, then the block mask: 0 skipped, 1 partly, 2 wholly visible.
    masks = [mask for mask in masks if np.issubdtype(mask.dtype, np.integer) and mask.ndim == 3]
    return masks[1] if len(masks) >= 2 else None


# What gives its operands on as they are; kernels that are made in a jitted function come with their masks through these.
_HANDING_ON = ("sharding_constraint", "copy", "copy_p", "device_put", "optimization_barrier", "name", "pvary")
_RULES = {"scan": _scan, "while": _while, "cond": _cond, "shard_map": _shard_map, "pallas_call": _pallas_call}
