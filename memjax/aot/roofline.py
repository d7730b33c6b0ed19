"""How fast a step could be on a kind of chip: the time of each resource if it were alone, and the share of the peak that leaves.

Resources work beside one another at best, so the longest time is a lower bound of a step's, and the model FLOPs over it an upper bound
of the model FLOPs utilisation (MFU).
"""

import dataclasses
import re

from memjax.aot import hlo
from memjax.aot.topologies import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip has to do in a step."""

    model_flops: float
    """What the model needs (`flops.model_flops`), divided by the number of chips."""
    hardware_flops: float
    """What the program computes (`flops.counted_flops`), divided by the number of chips."""
    hbm_bytes: float
    """Read from HBM and written to it."""
    ici_bytes: float = 0.0
    """Sent to chips of its slice."""
    dcn_bytes: float = 0.0
    """Sent to other slices."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step takes at least, by resource."""

    compute: float
    hbm: float
    ici: float
    dcn: float
    mfu: float
    """Model FLOPs a second as a share of the chip's peak, at most."""
    intensity: float
    """FLOPs the program has for a byte of HBM."""
    ridge: float
    """FLOPs for a byte from which on the chip's arithmetic, and not its HBM, is what binds."""

    @property
    def seconds(self) -> float:
        """Of the resource that binds."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def binds(self) -> str:
        """The resource that takes longest: compute, hbm, ici or dcn."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda resource: getattr(self, resource))


def roofline(work: Work, chip: Chip, ici_links: int = 0) -> Roofline:
    """Bounds of a step.

    Args:
      work: of one chip.
      chip: what it is done on.
      ici_links: links that collectives use at once, two for each axis of the torus they go along; by default all a chip has.
    """
    ici_rate = chip.ici_rate * (ici_links or chip.ici_links) / chip.ici_links
    compute, hbm = work.hardware_flops / chip.flops, work.hbm_bytes / chip.hbm_rate
    ici, dcn = work.ici_bytes / ici_rate, work.dcn_bytes / chip.dcn_rate
    return Roofline(
        compute=compute,
        hbm=hbm,
        ici=ici,
        dcn=dcn,
        mfu=work.model_flops / chip.flops / max(compute, hbm, ici, dcn),
        intensity=work.hardware_flops / work.hbm_bytes,
        ridge=chip.flops / chip.hbm_rate,
    )


def hbm_bytes(program: str | hlo.Module) -> int:
    """Bytes a device reads from HBM and writes to it in one call of a compiled program.

    Every instruction outside a fusion reads its operands and writes its result; what the compiler keeps on the chip is left out, of a
    slice or a gather only what is taken counts, of an update in place only what is put in, and loops count their rounds. It is
    what the program asks for: padding to tiles and what a kernel reads more than once are not in it.
    """
    module = hlo.parse(program) if isinstance(program, str) else program
    return sum(run.times * _moved(module, run) for run in hlo.executed(module) if not run.fused)


_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""What changes its first operand in place, and the operand that holds what is put in."""
_VIEWS = ("bitcast", "convert", "copy", "reshape")
"""In a fusion, what is computed for those elements alone that are read of it."""
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"),
    *("while", "conditional", "call", "async-start", "async-update", "opt-barrier", "add-dependency"),
)
_NO_WORK = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast|AsyncCollectiveDone)"')


def _moved(module: hlo.Module, run: hlo.Run) -> int:
    instruction, inside = run.instruction, run.computation
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or _NO_WORK.search(instruction.attributes):
        return 0
    in_hbm = sum(array.bytes for array in instruction.arrays if not array.on_chip)
    if opcode == "slice-start":
        whole, taken, *_ = instruction.arrays
        return taken.bytes * ((not whole.on_chip) + (not taken.on_chip))
    if opcode in ("copy-start", "all-gather-start", "collective-permute-start", "recv"):
        # Their result names what is read beside what is written.
        return in_hbm
    read = sum(_read(module, inside, instruction, place) for place in range(len(instruction.operands)))
    return read + (0 if opcode == "send" else _written(module, inside, instruction))


def _read(module: hlo.Module, inside: hlo.Computation, instruction: hlo.Instruction, place: int) -> int:
    source = inside.instructions[instruction.operands[place]]
    full = sum(array.bytes for array in source.arrays if not array.on_chip)
    return min(full, _taken(module, inside, instruction, place, full)) if full else 0


def _taken(module: hlo.Module, inside: hlo.Computation, reader: hlo.Instruction, place: int, full: int) -> int:
    """Bytes of an operand of `full` bytes that an instruction needs."""
    if place == 0 and reader.opcode in _SLICES:
        return _size(reader)
    if (place == 0 and reader.opcode in _UPDATES) or reader.opcode == "tuple" or _NO_WORK.search(reader.attributes):
        return 0
    if reader.opcode != "fusion":
        return full
    inner = module.computations[reader.calls[0]]
    parameter = next(one for one in inner.instructions.values() if one.opcode == "parameter" and one.arguments == str(place))
    return _taken_of(module, inner, parameter.name, full)


def _taken_of(module: hlo.Module, inside: hlo.Computation, name: str, full: int) -> int:
    """Bytes that all readers of a value in a fusion need of it."""
    taken = 0
    for reader in inside.instructions.values():
        for place in (place for place, operand in enumerate(reader.operands) if operand == name):
            viewed = reader.opcode in _VIEWS and reader is not inside.root
            taken += _taken_of(module, inside, reader.name, full) if viewed else _taken(module, inside, reader, place, full)
    return min(taken, full)


def _written(module: hlo.Module, inside: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Bytes of a result that go to HBM."""
    root = instruction
    if instruction.opcode == "fusion":
        inside = module.computations[instruction.calls[0]]
        root = inside.root
    parts = [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(instruction.arrays):
        parts = [None] * len(instruction.arrays)
    places = instruction.attribute(r"output_to_operand_aliasing=\{(.*?\)\})") or ""
    aliased = {int(place or 0) for place in re.findall(r"\{(\d*)\}: \(", places)}
    return sum(
        _put_in(inside, part, array.bytes, place in aliased)
        for place, (part, array) in enumerate(zip(parts, instruction.arrays, strict=True))
        if not array.on_chip
    )


def _put_in(inside: hlo.Computation, part: hlo.Instruction | None, full: int, aliased: bool) -> int:
    """Bytes written of one array of `full` bytes; one that stands in an operand's place is written only where it is updated."""
    while part is not None and part.opcode == "bitcast":
        part = inside.instructions[part.operands[0]]
    if part is not None and part.opcode in _UPDATES:
        return _size(inside.instructions[part.operands[_UPDATES[part.opcode]]])
    return 0 if aliased else full


def _size(instruction: hlo.Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays)
