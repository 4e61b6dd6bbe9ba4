"""Reads a compiled program's text: computations, loops with their turns, sizes of arrays.

What is found in it is the business of `collectives` and `kernels`; shapes are those of one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {
    "pred": 1, "s2": 1, "u2": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_START = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array of an instruction's result; `in_vmem`: it lies in on-chip memory, not in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_vmem: bool

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.elements * BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result: one, or those of a tuple."""
        return tuple(
            Array(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), "S(1)" in layout)
            for dtype, dims, layout in _SHAPE.findall(self.shape)
        )

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def op_name(self) -> str:
        """Where in the traced program it comes from, such as `jit(step)/transpose(jvp(attention))/dot_general`."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return _NAME.findall(found[1]) if found else []

    def setting(self, name: str) -> str:
        """A value between quotes, such as `custom_call_target`; empty where there is none."""
        found = re.search(rf'\b{name}="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass
class Computation:
    """A function of the program: the entry, a loop's body, a fusion."""

    name: str
    instructions: list[Instruction] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    def get(self, name: str) -> Instruction | None:
        """The instruction of that name."""
        return self._by_name.get(name)

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """An instruction, how often a step executes it, the computation it stands in, and the fusion around it, if any."""

    instruction: Instruction
    times: int
    computation: Computation
    fusion: Instruction | None


@dataclasses.dataclass(slots=True)
class Module:
    """A compiled program.

    Attributes:
        unknown_loops: names of loops whose number of turns the text does not tell; they count as one.
    """

    computations: dict[str, Computation]
    entry: str
    unknown_loops: list[str] = dataclasses.field(default_factory=list)

    def executions(self) -> list[Execution]:
        """Every instruction that a step executes, those inside of fusions included."""
        self.unknown_loops = []
        return list(self._walk(self.computations[self.entry], 1, None))

    def _walk(self, computation: Computation, times: int, fusion: Instruction | None) -> Iterator[Execution]:
        for instruction in computation.instructions:
            yield Execution(instruction, times, computation, fusion)
            turns, inside = 1, fusion
            if instruction.opcode == "while":
                turns = self._turns(instruction, computation)
            if instruction.opcode == "fusion":
                inside = instruction
            for name in self._bodies(instruction):
                yield from self._walk(self.computations[name], times * turns, inside)

    def _bodies(self, instruction: Instruction) -> list[str]:
        kind = instruction.opcode
        if kind == "while":
            return instruction.called("body")
        if kind == "conditional":
            names = ("branch_computations", "true_computation", "false_computation")
            return [name for attribute in names for name in instruction.called(attribute)]
        if kind in ("fusion", "call", "async-start"):
            return instruction.called("calls") or instruction.called("to_apply")
        return []

    def _turns(self, loop: Instruction, around: Computation) -> int:
        """Turns of a loop: stated by the compiler, or from its counter's start, step and limit."""
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if stated:
            return int(stated[1])
        condition = self.computations[loop.called("condition")[0]]
        body = self.computations[loop.called("body")[0]]
        limit, index = self._limit(condition)
        if limit is None:
            self.unknown_loops.append(loop.name)
            return 1
        start = _start(around, loop.operands[0], index)
        return max(1, math.ceil((limit - start) / _stride(body, index)))

    def _limit(self, condition: Computation) -> tuple[int | None, int]:
        """What the counter stays below, and its place in the loop's tuple."""
        constants = {i.name: int(i.literal) for i in condition.instructions if re.fullmatch(r"-?\d+", i.literal)}
        for compare in (condition.root, *self._inner(condition.root)):
            if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
                continue
            names = compare.operands if compare is condition.root else condition.root.operands
            limits = [constants[name] for name in names if name in constants]
            places = [_index(condition.get(name)) for name in names if name not in constants]
            if len(limits) == 1 and places:
                return limits[0], places[0]
            inside = [int(i.literal) for i in self._inner(condition.root) if re.fullmatch(r"-?\d+", i.literal)]
            if len(inside) == 1:
                return inside[0], places[0] if places else 0
        return None, 0

    def _inner(self, instruction: Instruction) -> list[Instruction]:
        return [i for name in self._bodies(instruction) for i in self.computations[name].instructions]


def _index(element: Instruction | None) -> int:
    found = re.search(r"\bindex=(\d+)", element.attributes) if element else None
    return int(found[1]) if found else 0


def _start(computation: Computation, name: str, index: int) -> int:
    """The number that element `index` of a tuple holds; 0 where it cannot be told."""
    source = computation.get(name)
    if source is not None and source.opcode == "tuple":
        source = computation.get(source.operands[index])
    while source is not None and source.opcode in ("copy", "bitcast", "reshape"):
        source = computation.get(source.operands[0])
    return int(source.literal) if source is not None and re.fullmatch(r"-?\d+", source.literal) else 0


def _stride(body: Computation, index: int) -> int:
    """What one turn adds to the counter; 1 where it cannot be told."""
    root = body.root
    step = body.get(root.operands[index]) if root.opcode == "tuple" and index < len(root.operands) else None
    if step is None or step.opcode != "add":
        return 1
    numbers = [body.get(name) for name in step.operands]
    found = [int(n.literal) for n in numbers if n is not None and re.fullmatch(r"\d+", n.literal)]
    return found[0] if found and found[0] > 0 else 1


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    lines: list[str] = []

    def finish() -> None:
        if current is not None and lines:
            current.instructions.append(_instruction(" ".join(lines)))
        lines.clear()

    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
        elif line == "}":
            finish()
            current = None
        elif _START.match(line):
            finish()
            lines.append(line)
        elif lines:  # attributes may go over several lines
            lines.append(line)
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    found = _START.match(line)
    assert found
    rest = line[found.end() :]
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", shape_end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=found[1],
        shape=rest[:shape_end],
        opcode=rest[shape_end:opening].strip(),
        operands=tuple(_NAME.findall(inside)),
        literal=inside if "%" not in inside else "",
        attributes=rest[closing + 1 :],
        is_root=line.lstrip().startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`."""
    depth = 0
    for bracket in re.finditer(r"[()]", text[opening:]):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return opening + bracket.start()
    raise ValueError(f"no closing bracket in {text[:100]!r}")
