"""Parse the text of a compiled program: instructions and their numbers of runs.

XLA's own cost analysis counts a loop's body once; a stack of layers is a loop. This parser reads
`compiled.as_text()` of the CPU, GPU and TPU compilers.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Array(NamedTuple):
    """An array of a program."""

    bytes: int
    """Bytes without padding to tiles."""
    on_chip: bool
    """True if the array is in another memory than HBM."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """Arrays of the result; those of a tuple in order."""
    arguments: str
    """Text in parentheses: operands, a constant's value, or a parameter's number."""
    attributes: str
    """Text after the parentheses."""

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Return the names of the instructions that this one reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Return the names of the computations that this one runs, except a loop's condition."""
        found = _CALLS.findall(self.attributes)
        return tuple(name for names in found for name in re.findall(r"%?([\w.\-]+)", names))

    def attribute(self, pattern: str) -> str | None:
        """Return the first group of a regex in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


_CALLS = re.compile(
    r"\b(?:calls|body|to_apply|true_computation|false_computation|branch_computations"
    r"|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


class Computation(NamedTuple):
    """A list of instructions: the program, a loop's body, or the content of a fusion."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def source(self, name: str) -> Instruction:
        """Return the instruction that computes a value, skipping copies."""
        found = self.instructions[name]
        while found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"):
            found = self.instructions[found.operands[0]]
        return found


class Module(NamedTuple):
    """The program of one device."""

    computations: Mapping[str, Computation]
    entry: Computation
    partitions: int
    """Devices that the program was split over; with several TPU slices, those of one."""


class Run(NamedTuple):
    """An instruction in its computation, and its number of runs per call of the program."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool
    """True inside a fusion, whose intermediate values are never written to memory."""


def parse(text: str) -> Module:
    """Parse a program.

    Raises:
      ValueError: the text is no compiled program.
    """
    computations, entry = {}, ""
    for is_entry, name, body in _COMPUTATION.findall(text):
        # A kernel's own attributes may continue on further lines, which are not indented.
        lines = [line for line in body.splitlines() if line.startswith("  ") and " = " in line]
        found = [_instruction(line) for line in lines]
        root = next(one for one, line in zip(found, lines, strict=True) if _ROOT.match(line))
        computations[name] = Computation(name, {one.name: one for one in found}, root)
        entry = name if is_entry else entry
    if entry not in computations:
        raise ValueError("got text with no ENTRY computation, expected a compiled program")
    devices = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
    return Module(computations, computations[entry], math.prod(map(int, devices)))


_COMPUTATION = re.compile(
    r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\) -> [^\n]*\{\n(.*?)^\}(?:, execution_thread=[^\n]*)?$",
    re.MULTILINE | re.DOTALL,
)
_ROOT = re.compile(r"\s*ROOT ")


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    shape = rest[: _closing(rest, 0) + 1] if rest.startswith("(") else rest.split(" ", 1)[0]
    call = rest[len(shape) + 1 :]
    opening = call.index("(")
    closing = _closing(call, opening)
    return Instruction(
        name.removeprefix("%"),
        call[:opening],
        tuple(_array(*match) for match in _ARRAY.findall(shape)),
        call[opening + 1 : closing],
        call[closing + 1 :],
    )


def _closing(text: str, start: int) -> int:
    """Return the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return start + match.start()
    raise ValueError(f"got {text[:80]!r}, expected a closing parenthesis")


_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def _array(kind: str, sizes: str, layout: str) -> Array:
    digits = re.search(r"\d+", kind)
    bits = 8 if kind == "pred" else int(digits[0]) if digits else 0
    count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    # S(1) is the on-chip vector memory of a TPU, higher numbers are scalar memory and flags; HBM
    # has no mark.
    return Array(-(-count * bits // 8), bool(re.search(r"S\([1-9]\d*\)", layout)))


def executed(module: Module) -> Iterator[Run]:
    """Yield every instruction that a call of the program runs, once per place it is run from.

    Loops multiply the number of runs; one without a trip count in the text counts as one. All
    branches of a conditional count as taken.
    """
    yield from _runs(module, module.entry, 1, fused=False)


def _runs(module: Module, computation: Computation, times: int, fused: bool) -> Iterator[Run]:
    for instruction in computation.instructions.values():
        rounds = trips(module, computation, instruction) if instruction.opcode == "while" else 1
        yield Run(instruction, computation, times, fused)
        # The later parts of an asynchronous operation repeat the name of its computation.
        if not instruction.opcode.endswith(("-update", "-done")):
            for name in instruction.calls:
                inner = fused or instruction.opcode not in (
                    "while",
                    "call",
                    "conditional",
                    "async-start",
                )
                yield from _runs(
                    module,
                    module.computations[name],
                    times * (1 if rounds is None else rounds),
                    inner,
                )


def trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return the trip count of a while loop, or None if it is unknown.

    It is the compiler's note, or that of a counter compared with a constant.
    """
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    try:
        return int(known) if known else _counted(module, computation, loop)
    except (ValueError, ZeroDivisionError):
        return None


def _counted(module: Module, computation: Computation, loop: Instruction) -> int:
    """Return the trip count of a loop whose counter goes from and to a constant, by a constant.

    Raises:
      ValueError: it is another loop.
    """
    condition = module.computations[loop.attribute(r"\bcondition=%?([\w.\-]+)") or ""]
    body = module.computations[loop.attribute(r"\bbody=%?([\w.\-]+)") or ""]
    compared = _plain(module, condition.root, "compare")
    if "direction=LT" not in compared.attributes:
        raise ValueError("the counter has no upper bound")
    counter, end = map(condition.source, compared.operands)
    place = int(_require(counter, "get-tuple-element").attribute(r"\bindex=(\d+)") or "")
    start = _element(computation, computation.source(loop.operands[0]), place)
    added = _plain(module, _element(body, body.root, place), "add")
    (step,) = (one for one in map(body.source, added.operands) if one.opcode == "constant")
    first, bound, by = (int(_require(one, "constant").arguments) for one in (start, end, step))
    return max(0, -(-(bound - first) // by))


def _element(computation: Computation, instruction: Instruction, place: int) -> Instruction:
    """Return the source of an element of a tuple."""
    return computation.source(_require(instruction, "tuple").operands[place])


def _plain(module: Module, instruction: Instruction, opcode: str) -> Instruction:
    """Return the instruction, or the only one in a fusion, with the fusion's operands."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.calls[0]]
        sources = [_require(inner.source(name), "parameter") for name in inner.root.operands]
        operands = (instruction.operands[int(source.arguments)] for source in sources)
        arguments = ", ".join(f"%{operand}" for operand in operands)
        instruction = dataclasses.replace(inner.root, arguments=arguments)
    return _require(instruction, opcode)


def _require(instruction: Instruction, opcode: str) -> Instruction:
    if instruction.opcode != opcode:
        raise ValueError(f"got {instruction.opcode}, expected {opcode}")
    return instruction
