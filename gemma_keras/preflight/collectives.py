"""Every collective of a compiled program: its kind, its bytes, how often, and why."""

import dataclasses
import math
import re
from collections import defaultdict
from typing import Any

from gemma_keras.preflight.hlo import Array, Execution, Instruction, Module

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
    """One collective of the program text.

    Attributes:
        times: executions in a step, loops counted.
        bytes: of the larger of operand and result on one device, for one execution.
        group: devices that take part together.
        why: `<phase>: <part>`, from where in the traced program it comes.
        op_name: that place in full.
    """

    kind: str
    times: int
    bytes: int
    group: int
    why: str
    op_name: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, if the collective goes around a ring."""
        around = (self.group - 1) / self.group
        share = {"all-reduce": 2 * around, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(
            self.kind, around
        )
        return self.times * self.bytes * share


def find_collectives(module: Module, devices: int) -> list[Collective]:
    """All collectives in the order of the text; groups of one device, which move nothing, are left out."""
    found = []
    for execution in module.executions():
        kind = execution.instruction.opcode.removesuffix("-start")
        if kind not in KINDS or _continues_another(execution):
            continue
        group = _group_size(execution.instruction, devices)
        if group > 1:
            found.append(_collective(kind, execution, module, group))
    return found


def _collective(kind: str, execution: Execution, module: Module, group: int) -> Collective:
    instruction = execution.instruction
    if kind == "all-reduce" and execution.computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a fusion of an all-reduce and the slice that each device keeps
    name = _origin(execution)
    size = instruction.bytes
    if kind == "reduce-scatter" and instruction.opcode.startswith("reduce-scatter"):
        size *= group
    elif instruction.opcode.endswith("-start"):
        size = max((array.bytes for array in instruction.arrays), default=0)
    return Collective(kind, execution.times, size, group, reason(name), name)


def _origin(execution: Execution) -> str:
    """Where in the traced program a collective comes from: its own name, else that of what it moves, else of a neighbour.

    The compiler names what it inserts itself by a number, such as `convert.14`.
    """
    names = [execution.instruction.op_name, execution.fusion.op_name if execution.fusion else ""]
    waiting, seen = [execution.instruction], {execution.instruction.name}
    while waiting and len(seen) < _SEARCHED:
        operands = [execution.computation.get(name) for name in waiting.pop(0).operands if name not in seen]
        waiting += [operand for operand in operands if operand is not None]
        seen.update(operand.name for operand in operands if operand is not None)
        names += [operand.op_name for operand in operands if operand is not None]
    names += [neighbour.op_name for neighbour in execution.computation.instructions]
    return next((name for name in names if "/" in name), next(filter(None, names), ""))


def _continues_another(execution: Execution) -> bool:
    """Whether this is the middle or the end of a collective that the compiler spread over several fusions."""
    if "async_collective_fusion_config" not in execution.instruction.attributes:
        return False
    targets = [i.setting("custom_call_target") for i in execution.computation.instructions]
    return "AsyncCollectiveStart" not in targets


def _group_size(instruction: Instruction, devices: int) -> int:
    """Devices in one group, in any of the forms in which XLA writes groups."""
    text = instruction.attributes
    if "collective-permute" in instruction.opcode:
        return devices if "source_target_pairs" in text else 1
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    if iota:
        return int(iota[2])
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*\{([^}]*)\}", text)
    if axes:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return devices


_SEARCHED = 32  # instructions before a collective that are asked for a name

# The part of the model by the first of these names on the path of the operation.
_PARTS = (
    ("log_probs", "token log-probabilities"),
    ("token_scores", "token log-probabilities"),
    ("token_embedding", "embedding"),
    ("embed", "embedding"),
    ("attention_output", "attention output"),
    ("query", "query"),
    ("key", "key"),
    ("value", "value"),
    ("attention", "attention"),
    ("ffw_gating_2", "ffw up"),
    ("ffw_gating", "ffw gate"),
    ("ffw_linear", "ffw down"),
    ("penalty", "penalty"),
    ("allocator", "rank allocation"),
    ("optimizer", "optimizer"),
    ("clip", "clipping"),
    (r"\w*norm(alization)?", "norm"),
    ("rope", "rotation of queries and keys"),
    ("weights", "weights"),
    ("squeeze", "weights"),  # one block's row of a stack
    ("rematted_computation/sharding_constraint", "weights"),  # the residual stream's own is kept, not computed again
)


def reason(op_name: str) -> str:
    """Phase and part of the step that an operation belongs to.

    >>> reason("jit(step)/transpose(jvp(ffw_gating))/dot_general")
    'backward: ffw gate'
    """
    phase = "step"
    if "rematted_computation" in op_name:
        phase = "computed again"
    elif "transpose(" in op_name:
        phase = "backward"
    elif "jvp(" in op_name:
        phase = "forward"
    for word, part in _PARTS:
        if re.search(rf"(?<![a-z_]){word}(?![a-z_]|_2)", op_name):
            return f"{phase}: {part}"
    last = op_name.rstrip("/").rpartition("/")[2] or "unnamed"
    return f"{phase}: {last}"


def summed(collectives: list[Collective]) -> list[dict[str, Any]]:
    """One line a kind and reason: executions, bytes and bytes sent in a step on each device; most sent first."""
    groups: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for item in collectives:
        groups[item.kind, item.why].append(item)
    lines = [
        {"kind": kind, "why": why, "group": group[0].group, **_sums(group)} for (kind, why), group in groups.items()
    ]
    return sorted(lines, key=lambda line: -line["bytes_sent"])


def _sums(group: list[Collective]) -> dict[str, int]:
    return {
        "count": sum(item.times for item in group),
        "bytes": sum(item.times * item.bytes for item in group),
        "bytes_sent": round(sum(item.sent for item in group)),
    }


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Executions and bytes of a step by kind."""
    sums: dict[str, dict[str, int]] = {}
    for item in collectives:
        line = sums.setdefault(item.kind, {"count": 0, "bytes": 0, "bytes_sent": 0})
        line["count"] += item.times
        line["bytes"] += item.times * item.bytes
        line["bytes_sent"] += round(item.sent)
    return sums


def largest_arrays(module: Module, count: int) -> list[tuple[Array, str]]:
    """The largest arrays that a step makes on one device, inside of fusions included, with where they come from."""
    seen: dict[tuple[int, ...], tuple[Array, str]] = {}
    for execution in module.executions():
        for array in execution.instruction.arrays:
            if array.dims not in seen or (not seen[array.dims][1] and execution.instruction.op_name):
                seen[array.dims] = (array, execution.instruction.op_name)
    return sorted(seen.values(), key=lambda pair: -pair[0].elements)[:count]
