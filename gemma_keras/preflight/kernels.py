"""Pallas kernels of a compiled program, and the bytes that a step moves between HBM and the cores."""

import base64
import dataclasses
import re
from typing import Any

from gemma_keras.preflight.collectives import reason
from gemma_keras.preflight.hlo import Array, Computation, Instruction, Module

# Instructions that only name what is there, or whose work is done by the instructions inside.
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-update", "async-done", "copy-done", "opt-barrier",
    "optimization-barrier", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "add-dependency",
}  # fmt: skip
_SLICING = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """One call of a Pallas kernel in the program text.

    Attributes:
        times: executions in a step, loops counted.
        soft_cap: whether the compiled kernel has a tanh; None where its code cannot be read.
        phase: forward, backward or computed again.
    """

    name: str
    times: int
    soft_cap: bool | None
    phase: str
    op_name: str


def find_kernels(module: Module) -> list[Kernel]:
    """All calls of Pallas kernels, in the order of the text."""
    found = []
    for execution in module.executions():
        instruction = execution.instruction
        if instruction.opcode == "custom-call" and instruction.setting("custom_call_target") == "tpu_custom_call":
            name = re.sub(r"(\.\d+|\.clone)+$", "", instruction.name)
            phase = reason(instruction.op_name).partition(":")[0]
            found.append(Kernel(name, execution.times, _has_tanh(instruction), phase, instruction.op_name))
    return found


def _has_tanh(instruction: Instruction) -> bool | None:
    """The kernel's code is MLIR bytecode, which begins by listing the operations that it uses."""
    body = re.search(r'"body":"([A-Za-z0-9+/=]+)"', instruction.attributes)
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

    Of an array that a fusion slices only the slice counts.
    """
    total = 0
    for execution in module.executions():
        if execution.fusion is None and execution.instruction.opcode not in _FREE:
            total += execution.times * _moved(execution.instruction, execution.computation, module)
    return total


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if not array.in_vmem)


def _moved(instruction: Instruction, computation: Computation, module: Module) -> int:
    if instruction.opcode == "copy-start":  # (to, from, context)
        return _in_hbm(instruction.arrays[:2])
    if instruction.opcode in ("slice-start", "dynamic-slice-start"):  # (from, to, ...), of which only the slice moves
        return instruction.arrays[1].bytes + _in_hbm(instruction.arrays[1:2])
    operands = [computation.get(name) for name in instruction.operands]
    read = [_in_hbm(operand.arrays) if operand is not None else 0 for operand in operands]
    written = _in_hbm(instruction.arrays)
    bodies = instruction.called("calls") if instruction.opcode == "fusion" else []
    if bodies:
        body = module.computations[bodies[0]]
        read = [min(whole, _used(body, place, whole)) for place, whole in enumerate(read)]
        if body.root.opcode == "dynamic-update-slice":
            written = min(written, _size(body, body.root.operands[1]))
    elif instruction.opcode in _SLICING:
        read[:1] = [min(read[0], written)]
    elif instruction.opcode == "dynamic-update-slice":
        read[0], written = 0, read[1]
    return sum(read) + written


def _size(body: Computation, name: str) -> int:
    found = body.get(name)
    return found.bytes if found is not None else 0


def _used(body: Computation, place: int, whole: int) -> int:
    """Bytes of a fusion's operand that its body reads."""
    parameter = next((i for i in body.instructions if i.opcode == "parameter" and i.literal == str(place)), None)
    if parameter is None:
        return whole
    users = [i for i in body.instructions if parameter.name in i.operands]
    if users and all(user.opcode in _SLICING for user in users):
        return sum(user.bytes for user in users)
    if users and all(user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name for user in users):
        return 0
    return whole
