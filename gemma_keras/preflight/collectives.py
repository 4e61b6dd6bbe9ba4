"""Every collective of a compiled program: its kind, its bytes, how often, and why."""

import math
import re
from typing import Any, NamedTuple

from gemma_keras.preflight.hlo import Array, Execution, Instruction, Module, arrays, size

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
        times: executions in a step, loops counted.
        bytes: of the larger of operand and result on one device, for one execution.
        group: devices that take part together.
        why: `<phase>: <part>`, from where in the traced program it comes.
        synchronous: whether nothing else runs while it does, where the compiler found no product to hide it behind.
    """

    kind: str
    times: int
    bytes: int
    group: int
    why: str
    synchronous: bool

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, if the collective goes around a ring."""
        around = (self.group - 1) / self.group
        share = {"all-reduce": 2 * around, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(
            self.kind, around
        )
        return self.times * self.bytes * share


def find_collectives(module: Module, devices: int) -> list[Collective]:
    """All collectives in the order of the program; groups of one device, which move nothing, are left out."""
    found = []
    executions = module.executions()
    starts = [execution.instruction for execution in executions if execution.instruction.opcode == "async-start"]
    beside_others = {body.name for start in starts for body in module.called(start)}
    for execution in executions:
        instruction = execution.instruction
        kind, is_start = instruction.opcode.removesuffix("-start"), instruction.opcode.endswith("-start")
        if kind not in KINDS or _continues_another(execution):
            continue
        group = _group_size(instruction, devices)
        moved = max(array.bytes for array in arrays(instruction)) if is_start else size(instruction)
        if kind == "reduce-scatter":
            moved *= 1 if is_start else group
        elif kind == "all-reduce" and execution.computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a fusion of an all-reduce and the slice that each device keeps
        hidden = is_start or _in_parts(instruction) or execution.computation.name in beside_others
        if group > 1:
            found.append(Collective(kind, execution.times, moved, group, reason(_origin(execution)), not hidden))
    return found


def _origin(execution: Execution) -> str:
    """Where in the traced program a collective comes from: its own name, else that of what it moves, else of a neighbour.

    The compiler names what it inserts itself by a number, such as `convert.14`.
    """
    inside = execution.computation
    names = [execution.instruction.metadata.op_name, execution.fusion.metadata.op_name if execution.fusion else ""]
    waiting, seen = [execution.instruction], {execution.instruction.id}
    while waiting and len(seen) < _SEARCHED:
        operands = [operand for operand in inside.operands(waiting.pop(0)) if operand.id not in seen]
        waiting += operands
        seen.update(operand.id for operand in operands)
        names += [operand.metadata.op_name for operand in operands]
    names += [neighbour.metadata.op_name for neighbour in inside.instructions]
    return next((name for name in names if "/" in name), next(filter(None, names), ""))


def _in_parts(instruction: Instruction) -> bool:
    """Whether it is a part of a collective that the compiler spread over several fusions, beside their own work."""
    return b"async_collective_fusion_config" in instruction.backend_config


def _continues_another(execution: Execution) -> bool:
    """Whether this is the middle or the end of such a collective."""
    if not _in_parts(execution.instruction):
        return False
    targets = [i.custom_call_target for i in execution.computation.instructions]
    return "AsyncCollectiveStart" not in targets


def _group_size(instruction: Instruction, devices: int) -> int:
    """Devices in one group, in any of the forms in which XLA writes groups."""
    if instruction.opcode.startswith("collective-permute"):
        return devices if instruction.source_target_pairs else 1
    if instruction.HasField("iota_collective_device_list"):
        return instruction.iota_collective_device_list.num_devices_per_group
    if instruction.HasField("mesh_axes_replica_group_list"):
        groups = instruction.mesh_axes_replica_group_list
        sizes = [axis.size for axis in groups.mesh.axes]
        return math.prod(axis.sub_axis_info.size or sizes[axis.mesh_axis_index] for axis in groups.axes)
    listed = instruction.collective_device_list.replica_groups
    return len(listed[0].replica_ids) if listed else devices


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
    """One line a kind and reason: executions, bytes and bytes sent in a step on each device (synchronously, too); most sent
    first."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for item in collectives:
        _add(lines.setdefault((item.kind, item.why), {"kind": item.kind, "why": item.why, "group": item.group}), item)
    return sorted(lines.values(), key=lambda line: -line["bytes_sent"])


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Executions and bytes of a step by kind."""
    sums: dict[str, dict[str, int]] = {}
    for item in collectives:
        _add(sums.setdefault(item.kind, {}), item)
    return sums


def _add(sums: dict[str, Any], item: Collective) -> None:
    sent = round(item.sent)
    added = {
        "count": item.times, "bytes": item.times * item.bytes, "bytes_sent": sent,
        "synchronous_bytes_sent": sent * item.synchronous,
    }  # fmt: skip
    sums.update((name, sums.get(name, 0) + value) for name, value in added.items())


def largest_arrays(module: Module, count: int) -> list[tuple[Array, str]]:
    """The largest arrays that a step makes on one device, inside of fusions included, with where they come from."""
    seen: dict[tuple[int, ...], tuple[Array, str]] = {}
    for execution in module.executions():
        name = execution.instruction.metadata.op_name
        for array in arrays(execution.instruction):
            if array.dims not in seen or (not seen[array.dims][1] and name):
                seen[array.dims] = (array, name)
    return sorted(seen.values(), key=lambda pair: -pair[0].elements)[:count]
