"""Reads a compiled program: its computations, loops with their turns, sizes of arrays.

The messages are XLA's own, as tensorflow carries them. What is found in them is the business of `collectives` and
`kernels`; shapes are those of one device.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gemma_keras import runtime

Instruction = Any  # XLA's `HloInstructionProto`
_VMEM = 1  # the memory space of what lies on chip


class Array(NamedTuple):
    """One array of an instruction's result; `in_vmem`: it lies in on-chip memory, not in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_vmem: bool

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        return self.elements * (max(int(bits[0]) // 8, 1) if bits else self.dtype == "pred")


def arrays(instruction: Instruction) -> list[Array]:
    """The arrays of the result: one, or those of a tuple."""
    return list(_arrays(instruction.shape))


def _arrays(shape: Any) -> Iterator[Array]:
    dtype = shape.DESCRIPTOR.fields_by_name["element_type"].enum_type.values_by_number[shape.element_type].name.lower()
    if dtype == "tuple":
        for part in shape.tuple_shapes:
            yield from _arrays(part)
    else:
        yield Array(dtype, tuple(shape.dimensions), shape.layout.memory_space == _VMEM)


def size(instruction: Instruction) -> int:
    """Bytes of the result."""
    return sum(array.bytes for array in arrays(instruction))


class Computation:
    """A function of the program: the entry, a loop's body, a fusion. Its instructions are in the order of execution."""

    def __init__(self, message: Any, order: Sequence[int]):
        self.name = message.name
        self.by_id: dict[int, Instruction] = {instruction.id: instruction for instruction in message.instructions}
        self.instructions = [self.by_id[i] for i in order or self.by_id]
        self.root = self.by_id[message.root_id]

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.by_id[i] for i in instruction.operand_ids]


class Execution(NamedTuple):
    """An instruction, how often a step executes it, the computation it stands in, and the fusion around it, if any."""

    instruction: Instruction
    times: int
    computation: Computation
    fusion: Instruction | None


def message_of(compiled: Any) -> bytes:
    """A compiled program of jax as XLA's `HloModuleProto`."""
    return compiled.runtime_executable().hlo_modules()[0].as_serialized_hlo_module_proto()


class Module:
    """A compiled program.

    Args:
        serialized: XLA's `HloModuleProto`.
    """

    def __init__(self, serialized: bytes):
        message = runtime.read_hlo(serialized)
        orders: Any = message.schedule.sequences
        self._entry = message.entry_computation_id
        self._computations = {
            c.id: Computation(c, orders[c.id].instruction_ids if c.id in orders else ()) for c in message.computations
        }

    def called(self, instruction: Instruction) -> list[Computation]:
        """The computations that an instruction runs; of a loop its body, then its condition."""
        if instruction.opcode not in ("while", "conditional", "fusion", "call", "async-start"):
            return []
        return [self._computations[i] for i in instruction.called_computation_ids]

    def executions(self) -> list[Execution]:
        """Every instruction that a step executes, those inside of fusions included."""
        return list(self._walk(self._computations[self._entry], 1, None))

    def _walk(self, computation: Computation, times: int, fusion: Instruction | None) -> Iterator[Execution]:
        for instruction in computation.instructions:
            yield Execution(instruction, times, computation, fusion)
            turns, bodies = 1, self.called(instruction)
            if instruction.opcode == "while":
                turns, bodies = self._turns(instruction, computation), bodies[:1]
            for body in bodies:
                yield from self._walk(body, times * turns, instruction if instruction.opcode == "fusion" else fusion)

    def _turns(self, loop: Instruction, around: Computation) -> int:
        """Turns of a loop whose counter stays below a constant; 1 where that is not told. TPU's compiler states none."""
        body, condition = self.called(loop)
        tests = [condition.root, *(i for fused in self.called(condition.root) for i in fused.instructions)]
        limits = [n for i in (*condition.instructions, *tests[1:]) if (n := _constant(i)) is not None]
        counters = [i.tuple_index for i in condition.instructions if i.opcode == "get-tuple-element"]
        if (len(limits), len(counters)) != (1, 1) or all(i.comparison_direction != "LT" for i in tests):
            return 1
        start = _element(around, around.operands(loop)[0], counters[0])
        while start.opcode in ("copy", "bitcast", "reshape"):
            start = around.operands(start)[0]
        step = _element(body, body.root, counters[0])
        strides = [_constant(i) for i in body.operands(step)] if step.opcode == "add" else []
        return max(1, math.ceil((limits[0] - (_constant(start) or 0)) / next(filter(None, strides), 1)))


def _constant(instruction: Instruction) -> int | None:
    """The number that a constant stands for; rings of products have counters without a sign."""
    if instruction.opcode != "constant" or instruction.shape.dimensions:
        return None
    return next(iter((*instruction.literal.s32s, *instruction.literal.u32s)), None)


def _element(computation: Computation, source: Instruction, index: int) -> Instruction:
    """What element `index` of a tuple is made of; the tuple itself where it is made elsewhere."""
    return computation.operands(source)[index] if source.opcode == "tuple" else source
