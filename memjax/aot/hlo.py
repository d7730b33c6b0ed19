"""Reads the text of a compiled program (`compiled.as_text()`): its instructions and how often each is run.

XLA's own cost analysis looks at a loop's body once; a stack of layers is a loop. This reads what CPU, GPU and TPU compilers print.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program."""

    bytes: int
    """Without padding to tiles."""
    on_chip: bool
    """Whether it lies in another memory than HBM."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """Of the result, those of a tuple one after another."""
    arguments: str
    """What stands in parentheses: operands, or a constant's value, or a parameter's number."""
    attributes: str
    """What stands behind them."""

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions this one reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations this one runs, but for a loop's condition."""
        found = _CALLS.findall(self.attributes)
        return tuple(name for names in found for name in re.findall(r"%?([\w.\-]+)", names))

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regex in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


_CALLS = re.compile(
    r"\b(?:calls|body|to_apply|true_computation|false_computation|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions: the program, a loop's body, or what a fusion computes."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def source(self, name: str) -> Instruction:
        """The instruction whose value stands under that name, past copies of it."""
        found = self.instructions[name]
        while found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"):
            found = self.instructions[found.operands[0]]
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: what one device runs."""

    computations: Mapping[str, Computation]
    entry: Computation
    partitions: int
    """Devices the program was split over; of one TPU slice, where there are several."""


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction where it stands, and how often a call of the program runs it."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool
    """Whether it is inside a fusion, whose values in between are never written to memory."""
    trips_known: bool = True
    """False of a loop whose number of rounds the text does not say; it counts as one."""


def parse(text: str) -> Module:
    """The program in a text.

    Raises:
      ValueError: it is no compiled program.
    """
    computations, name, lines, entry = {}, "", [], ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif name and _END.match(line):
            found = [_instruction(line) for line in lines]
            root = next(one for one, line in zip(found, lines, strict=True) if line.lstrip().startswith("ROOT "))
            computations[name] = Computation(name, {one.name: one for one in found}, root)
            name = ""
        elif name and line.startswith("  ") and " = " in line:
            # What a kernel says of itself may go on in further lines, which are not indented.
            lines.append(line)
    if entry not in computations:
        raise ValueError("the text is no compiled program: it has no ENTRY computation")
    partitions = re.search(r"\bnum_partitions=(\d+)", text)
    replicas = re.search(r"\breplica_count=(\d+)", text)
    devices = int(partitions[1] if partitions else 1) * int(replicas[1] if replicas else 1)
    return Module(computations, computations[entry], devices)


_END = re.compile(r"^\}(, execution_thread=.*)?$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    shape = rest[: _closing(rest, 0) + 1] if rest.startswith("(") else rest.split(" ", 1)[0]
    call = rest[len(shape) + 1 :]
    opening = call.index("(")
    closing = _closing(call, opening)
    return Instruction(name.removeprefix("%"), call[:opening], _arrays(shape), call[opening + 1 : closing], call[closing + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return start + match.start()
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(_array(*match) for match in _ARRAY.findall(shape))


def _array(kind: str, sizes: str, layout: str) -> Array:
    digits = re.search(r"\d+", kind)
    bits = 8 if kind == "pred" else int(digits[0]) if digits else 0
    count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    # S(1) is the on-chip vector memory of a TPU, higher numbers are scalar memory and flags; HBM is not marked.
    return Array(-(-count * bits // 8), bool(re.search(r"S\([1-9]\d*\)", layout)))


def executed(module: Module) -> Iterator[Run]:
    """Every instruction a call of the program runs, once for each place it is run from; loops multiply.

    Of a conditional every branch counts as if it were taken.
    """
    yield from _runs(module, module.entry, 1, fused=False)


def _runs(module: Module, computation: Computation, times: int, fused: bool) -> Iterator[Run]:
    for instruction in computation.instructions.values():
        rounds = trips(module, computation, instruction) if instruction.opcode == "while" else 1
        yield Run(instruction, computation, times, fused, rounds is not None)
        # The later parts of an asynchronous operation name its computation again.
        if not instruction.opcode.endswith(("-update", "-done")):
            for name in instruction.calls:
                inner = fused or instruction.opcode not in ("while", "call", "conditional", "async-start")
                yield from _runs(module, module.computations[name], times * (1 if rounds is None else rounds), inner)


def unknown_loops(module: Module) -> list[str]:
    """Names of the loops that count as one round because the text does not say how many they have."""
    return sorted({run.instruction.name for run in executed(module) if not run.trips_known})


def trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Rounds of a while loop: as the compiler notes it, or of a counter that goes up to a constant; None where neither says."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition = module.computations[loop.attribute(r"\bcondition=%?([\w.\-]+)") or ""]
    compared = _plain(module, condition, condition.root)
    if compared is None or compared.opcode != "compare" or "direction=LT" not in compared.attributes:
        return None
    counter, bound = (condition.source(name) for name in compared.operands)
    place = counter.attribute(r"\bindex=(\d+)")
    if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or place is None:
        return None
    start = _constant(computation, _element(computation, computation.source(loop.operands[0]), int(place)))
    body = module.computations[loop.attribute(r"\bbody=%?([\w.\-]+)") or ""]
    step = _step(module, body, int(place))
    return None if start is None or not step else max(0, -(-(int(bound.arguments) - start) // step))


def _step(module: Module, body: Computation, place: int) -> int | None:
    """What a round adds to the counter."""
    name = _element(body, body.root, place)
    added = _plain(module, body, body.source(name)) if name else None
    if added is None or added.opcode != "add":
        return None
    steps = [_constant(body, name) for name in added.operands]
    return next((step for step in steps if step is not None), None)


def _plain(module: Module, computation: Computation, instruction: Instruction) -> Instruction | None:
    """The instruction itself, or the one that a fusion of one instruction stands for, with the fusion's operands."""
    if instruction.opcode != "fusion":
        return instruction
    inner = module.computations[instruction.calls[0]]
    sources = [inner.source(name) for name in inner.root.operands]
    if any(source.opcode != "parameter" for source in sources):
        return None
    operands = ", ".join(f"%{instruction.operands[int(source.arguments)]}" for source in sources)
    return dataclasses.replace(inner.root, arguments=operands)


def _element(computation: Computation, instruction: Instruction, place: int) -> str | None:
    return instruction.operands[place] if instruction.opcode == "tuple" else None


def _constant(computation: Computation, name: str | None) -> int | None:
    found = computation.source(name) if name else None
    return int(found.arguments) if found is not None and re.fullmatch(r"-?\d+", found.arguments) else None
