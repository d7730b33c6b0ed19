"""Roofline model: lower bounds of a step's time on a kind of chip, and the MFU that they allow.

Resources can at best work in parallel, so the longest time is a lower bound of a step's, and the
model FLOPs over it an upper bound of the model FLOPs utilisation (MFU).
"""

import dataclasses
import re
from typing import NamedTuple

from memjax.performance.aot import hlo
from memjax.sharding.chips import Chip


class Work(NamedTuple):
    """Work of one chip per step."""

    model_flops: float
    """FLOPs that the model needs (`flops.model_flops`), divided by the number of chips."""
    hardware_flops: float
    """FLOPs that the program computes (`flops.counted_flops`), divided by the number of chips."""
    hbm_bytes: float
    """Bytes read from HBM and written to it."""
    ici_bytes: float = 0.0
    """Bytes sent to chips of the same slice."""
    dcn_bytes: float = 0.0
    """Bytes sent to other slices."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step's time in seconds, by resource."""

    compute: float
    hbm: float
    ici: float
    dcn: float
    seconds: float
    """Time of the bottleneck."""
    binds: str
    """The bottleneck: compute, hbm, ici or dcn."""
    mfu: float
    """Upper bound of the model FLOPs per second as a share of the chip's peak."""
    intensity: float
    """FLOPs of the program per byte of HBM."""
    ridge: float
    """FLOPs per byte from which the chip's arithmetic, not its HBM, is the bottleneck."""


def roofline(work: Work, chip: Chip) -> Roofline:
    """Return the bounds of a step, from the work of one chip and the rates of its kind.

    Collectives are taken to use all ICI links of a chip at once.
    """
    times = {
        "compute": work.hardware_flops / chip.flops,
        "hbm": work.hbm_bytes / chip.hbm_rate,
        "ici": work.ici_bytes / chip.ici_rate,
        "dcn": work.dcn_bytes / chip.dcn_rate,
    }
    binds = max(times, key=lambda resource: times[resource])
    return Roofline(
        **times,
        seconds=times[binds],
        binds=binds,
        mfu=work.model_flops / chip.flops / times[binds],
        intensity=work.hardware_flops / work.hbm_bytes,
        ridge=chip.flops / chip.hbm_rate,
    )


def hbm_bytes(program: hlo.Module) -> int:
    """Return the bytes that a device reads from and writes to HBM per call of a compiled program.

    Every instruction outside a fusion reads its operands and writes its result. Values that the
    compiler keeps on the chip are excluded; a slice or gather counts only the bytes taken, an
    in-place update only the bytes written, and loops count all their runs. These are the program's
    requests: padding to tiles and repeated reads of a kernel are not included.
    """
    return sum(run.times * _moved(program, run) for run in hlo.executed(program) if not run.fused)


_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""In-place updates of the first operand, and the index of the operand with the new values."""
_VIEWS = ("bitcast", "convert", "copy", "reshape")
"""Operations that a fusion computes only for the elements that are read."""
_FREE = (
    *(
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "partition-id",
        "replica-id",
        "after-all",
    ),
    *(
        "while",
        "conditional",
        "call",
        "async-start",
        "async-update",
        "opt-barrier",
        "add-dependency",
    ),
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
        # Their result includes the input besides the output.
        return in_hbm
    read = sum(
        _read(module, inside, instruction, place) for place in range(len(instruction.operands))
    )
    return read + (0 if opcode == "send" else _written(module, inside, instruction))


def _read(
    module: hlo.Module, inside: hlo.Computation, instruction: hlo.Instruction, place: int
) -> int:
    source = inside.instructions[instruction.operands[place]]
    full = sum(array.bytes for array in source.arrays if not array.on_chip)
    return min(full, _taken(module, inside, instruction, place, full)) if full else 0


def _taken(
    module: hlo.Module, inside: hlo.Computation, reader: hlo.Instruction, place: int, full: int
) -> int:
    """Return the bytes that an instruction needs of an operand of `full` bytes."""
    if place == 0 and reader.opcode in _SLICES:
        return _size(reader)
    if (
        (place == 0 and reader.opcode in _UPDATES)
        or reader.opcode == "tuple"
        or _NO_WORK.search(reader.attributes)
    ):
        return 0
    if reader.opcode != "fusion":
        return full
    inner = module.computations[reader.calls[0]]
    parameter = next(
        one
        for one in inner.instructions.values()
        if one.opcode == "parameter" and one.arguments == str(place)
    )
    return _taken_of(module, inner, parameter.name, full)


def _taken_of(module: hlo.Module, inside: hlo.Computation, name: str, full: int) -> int:
    """Return the bytes that all readers in a fusion need of a value."""
    taken = 0
    for reader in inside.instructions.values():
        for place in (place for place, operand in enumerate(reader.operands) if operand == name):
            viewed = reader.opcode in _VIEWS and reader is not inside.root
            taken += (
                _taken_of(module, inside, reader.name, full)
                if viewed
                else _taken(module, inside, reader, place, full)
            )
    return min(taken, full)


def _written(module: hlo.Module, inside: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Return the bytes of a result that are written to HBM."""
    root = instruction
    if instruction.opcode == "fusion":
        inside = module.computations[instruction.calls[0]]
        root = inside.root
    parts = (
        [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
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
    """Return the bytes written of one array of `full` bytes.

    An array that aliases an operand is written only where it is updated.
    """
    while part is not None and part.opcode == "bitcast":
        part = inside.instructions[part.operands[0]]
    if part is not None and part.opcode in _UPDATES:
        return _size(inside.instructions[part.operands[_UPDATES[part.opcode]]])
    return 0 if aliased else full


def _size(instruction: hlo.Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays)
