"""Pallas kernels of a compiled program, and the bytes that a step moves between HBM and the cores."""

import base64
import re
from typing import Any, NamedTuple

from gemma_keras.preflight.collectives import reason
from gemma_keras.preflight.hlo import Array, Computation, Instruction, Module, arrays, size

# Instructions that only name what is there, or whose work is done by the instructions inside.
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-update", "async-done", "copy-done", "opt-barrier",
    "optimization-barrier", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "add-dependency",
}  # fmt: skip
_SLICING = ("dynamic-slice", "slice", "gather")


class Kernel(NamedTuple):
    """One call of a Pallas kernel in the program.

    Attributes:
        times: executions in a step, loops counted.
        soft_cap: whether the compiled kernel has a tanh; None where its code cannot be read.
        phase: forward, backward or computed again.
    """

    name: str
    times: int
    soft_cap: bool | None
    phase: str


def find_kernels(module: Module) -> list[Kernel]:
    """All calls of Pallas kernels, in the order of the program."""
    found = []
    for execution in module.executions():
        instruction = execution.instruction
        if instruction.custom_call_target == "tpu_custom_call":
            name = re.sub(r"(\.\d+|\.clone)+$", "", instruction.name)
            phase = reason(instruction.metadata.op_name).partition(":")[0]
            found.append(Kernel(name, execution.times, _has_tanh(instruction), phase))
    return found


def _has_tanh(instruction: Instruction) -> bool | None:
    """The kernel's code is MLIR bytecode, which begins by listing the operations that it uses."""
    body = re.search(rb'"body":"([A-Za-z0-9+/=]+)"', instruction.backend_config)
    if body is None:
        return None
    code = base64.b64decode(body[1])
    return b"math.tanh" in code if code.startswith(b"ML\xefR") else None


def summed_kernels(kernels: list[Kernel]) -> list[dict[str, Any]]:
    """One line a name and phase: executions in a step, and whether all of them have the soft cap."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for kernel in kernels:
        line = lines.setdefault(
            (kernel.name, kernel.phase),
            {"name": kernel.name, "phase": kernel.phase, "count": 0, "soft_cap": kernel.soft_cap},
        )
        line["count"] += kernel.times
        line["soft_cap"] = line["soft_cap"] and kernel.soft_cap
    return list(lines.values())


def hbm_bytes(module: Module) -> int:
    """Bytes that a step reads from and writes to HBM on one device, what stays inside a fusion or on chip left out.

    Of an array that a fusion slices, or updates in place, only the slice counts; of one that it hands on as it is, such as the
    buffers of a collective that goes on beside it, nothing.
    """
    total = 0
    for execution in module.executions():
        if execution.fusion is None and execution.instruction.opcode not in _FREE:
            total += execution.times * _moved(execution.instruction, execution.computation, module)
    return total


def _in_hbm(found: list[Array]) -> int:
    return sum(array.bytes for array in found if not array.in_vmem)


def _moved(instruction: Instruction, computation: Computation, module: Module) -> int:
    made = arrays(instruction)
    if instruction.opcode == "copy-start":  # (to, from, context)
        return _in_hbm(made[:2])
    if instruction.opcode == "slice-start":  # ((from), to, context)
        return made[1].bytes * (not made[0].in_vmem) + _in_hbm(made[1:2])
    if instruction.opcode == "fusion":
        return _moved_by_fusion(instruction, computation, module)
    read = [_in_hbm(arrays(operand)) for operand in computation.operands(instruction)]
    written = _in_hbm(made)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):  # (from, to)
        written -= sum(read)
    elif instruction.opcode in _SLICING:
        # One that is a computation of its own runs beside others, mostly into on-chip memory.
        read[:1] = [min(read[0], size(instruction) if instruction is computation.root else written)]
    elif instruction.opcode == "dynamic-update-slice":
        read[0], written = 0, read[1]
    return sum(read) + written


def _moved_by_fusion(instruction: Instruction, computation: Computation, module: Module) -> int:
    (body,) = module.called(instruction)
    handed_on = {alias.operand_index for alias in instruction.output_operand_aliasing}
    read = [
        min(whole, _used(body, _parameter(body, place), module))
        for place, operand in enumerate(computation.operands(instruction))
        if place not in handed_on and (whole := _in_hbm(arrays(operand)))
    ]
    taken_over = {tuple(alias.output_shape_index) for alias in instruction.output_operand_aliasing}
    is_tuple = body.root.opcode == "tuple"
    roots = body.operands(body.root) if is_tuple else [body.root]
    made = arrays(instruction)
    if len(roots) != len(made):  # such as the beginning of a collective: (its operand, its result, flags)
        return sum(read) + _in_hbm([array for at, array in enumerate(made) if (at,) not in taken_over])
    written = [
        min(array.bytes, _written(body, root, module))
        for at, (array, root) in enumerate(zip(made, roots, strict=True))
        if not array.in_vmem and ((at,) if is_tuple else ()) not in taken_over
    ]
    return sum(read) + sum(written)


def _parameter(body: Computation, place: int) -> int:
    return next(i.id for i in body.instructions if i.opcode == "parameter" and i.parameter_number == place)


def _used(body: Computation, array: int, module: Module) -> int:
    """Bytes that a fusion's body reads of one of its arrays, by its id; `size` of it at most."""
    whole, used = size(body.by_id[array]), 0
    if array == body.root.id:
        return whole
    for user in body.instructions:
        places = [place for place, operand in enumerate(user.operand_ids) if operand == array]
        if not places or user.opcode == "tuple" or (user.opcode == "dynamic-update-slice" and places == [0]):
            continue
        if user.opcode == "bitcast":
            used += _used(body, user.id, module)
        elif user.opcode in _SLICING and places == [0]:
            used += size(user)
        elif user.opcode == "fusion":
            (inner,) = module.called(user)
            if _without_bitcasts(inner, inner.root).opcode == "parameter":  # another name for it
                used += _used(body, user.id, module)
            else:
                used += sum(_used(inner, _parameter(inner, place), module) for place in places)
        else:
            return whole
    return min(used, whole)


def _written(body: Computation, root: Instruction, module: Module) -> int:
    """Bytes that a fusion writes for one of its results."""
    root = _without_bitcasts(body, root)
    if root.opcode == "dynamic-update-slice":
        return size(body.operands(root)[1])
    if root.opcode == "fusion":
        (inner,) = module.called(root)
        return _written(inner, inner.root, module)
    return size(root)


def _without_bitcasts(body: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = body.operands(instruction)[0]
    return instruction
