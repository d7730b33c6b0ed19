"""Traffic between devices in a step, from the text of the compiled program.

In a collective of n devices, with S the bytes of the whole array that it gathers, sums or
exchanges, a ring makes every device send: all-reduce 2 (n - 1) / n * S; all-gather, reduce-scatter
and all-to-all (n - 1) / n * S; collective-permute S. No algorithm can send less.

TPU programs hide collectives in ways that are resolved here. A gather that runs beside a matrix
product is split into three fusions, of which the first starts it. An all-reduce of which a device
keeps only its own part is a reduce-scatter. Between slices there are no collectives but sends to
the host's runtime, one per collective, each with the kind of its collective.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from memjax.performance.aot import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ICI, DCN = "ici", "dcn"
"""The network within a slice and the one between slices."""


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    """One of KINDS."""
    network: str
    bytes: int
    """S: bytes of the whole array, per run."""
    group: int
    """n: participating devices; over DCN, slices, each device with those at its index in other
    slices."""
    times: int
    """Number of runs per step."""

    @property
    def sent(self) -> float:
        """Return the bytes that a device sends per run."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one step."""

    count: int = 0
    ici: float = 0.0
    """Bytes that a device sends within its slice."""
    dcn: float = 0.0
    """Bytes that a device sends to other slices."""


def collectives(program: hlo.Module) -> list[Collective]:
    """Return all collectives of a program, each once with its number of runs per step.

    Collectives of one device are omitted.
    """
    kinds = ((run, _kind(run)) for run in hlo.executed(program))
    found = (_collective(run, kind, program.partitions) for run, kind in kinds if kind)
    return [one for one in found if one.group > 1]


def total(found: Iterable[Collective]) -> Traffic:
    """Return the traffic of all collectives together."""
    sent = {ICI: 0.0, DCN: 0.0}
    count = 0
    for one in found:
        count += one.times
        sent[one.network] += one.times * one.sent
    return Traffic(count, sent[ICI], sent[DCN])


def by_kind(found: Iterable[Collective]) -> dict[str, Traffic]:
    """Return `total` per kind, in the order of KINDS."""
    found = list(found)
    present = [kind for kind in KINDS if any(one.kind == kind for one in found)]
    return {kind: total(one for one in found if one.kind == kind) for kind in present}


def _kind(run: hlo.Run) -> str | None:
    """Return the collective that an instruction is or starts; None for all others."""
    instruction, inside = run.instruction, run.computation
    if instruction.opcode == "send":
        kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        return (
            {"ONE_TO_ONE": "collective-permute"}.get(kind, kind.lower().replace("_", "-"))
            if kind
            else None
        )
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS or (_started_earlier(instruction, inside) and run.fused):
        return None
    return "reduce-scatter" if inside.name.startswith("all-reduce-scatter") else kind


def _started_earlier(instruction: hlo.Instruction, inside: hlo.Computation) -> bool:
    """Return whether an asynchronous collective was started in an earlier fusion."""
    if "async_collective_fusion_config" not in instruction.attributes:
        return False
    readers = (one for one in inside.instructions.values() if instruction.name in one.operands)
    return not any('custom_call_target="AsyncCollectiveStart"' in one.attributes for one in readers)


def _collective(run: hlo.Run, kind: str, devices: int) -> Collective:
    instruction = run.instruction
    network, group, read = ICI, 0, instruction.operands
    if instruction.opcode == "send":
        # To the runtime that joins slices; the target is {slices}x{devices per slice}.
        slices = instruction.attribute(r'_xla_megascale_target="\{([^}]*)\}') or ""
        network, group, read = DCN, len(slices.split(",")), read[:1]
    elif kind == "collective-permute":
        group = 2 if _moves(instruction) else 1
    else:
        group = group_size(instruction.attributes, devices)
    arrays = (array for name in read for array in run.computation.instructions[name].arrays)
    whole = sum(array.bytes for array in arrays) * (group if kind == "all-gather" else 1)
    return Collective(kind, network, whole, group, run.times)


def _moves(permutation: hlo.Instruction) -> bool:
    """Return whether any device of a permutation sends to another one."""
    pairs = permutation.attribute(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}") or ""
    return any(source != target for source, target in re.findall(r"(\d+),(\d+)", pairs))


def group_size(attributes: str, devices: int) -> int:
    """Return the number of devices that participate in a collective together.

    A program writes the groups of devices as

    - `{{0,1},{2,3}}`, or `{}` for all;
    - `[2,4]<=[4,2]T(1,0)`: two groups of four, and the order of devices;
    - `mesh['a'=2,'b'=4] {'b'}`: devices that differ only on the named axes; `'b':(2)2` is the part
      of size 2 of axis b that has a part of size 2 before it. The order of devices, if it is not
      ascending, precedes the braces: `device_ids=([4,2]T(1,0))`.

    Raises:
      ValueError: there are none, or their form is unknown.
    """
    text = attributes.partition("replica_groups=")[2]
    if match := re.match(r"\{(?:\{([\d,]*)\}.*?)?\}", text):
        return len(match[1].split(",")) if match[1] else devices
    if match := re.match(r"\[\d+,(\d+)\]<=\[", text):
        return int(match[1])
    if match := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'?([^',=]+)'?=(\d+)", match[1]))
        named = re.findall(r"'?([^',:{}]+)'?(?::\(\d+\)(\d+))?(?:,|$)", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    raise ValueError(f"replica_groups: got an unknown form: {text[:80]!r}")
