"""What devices send to one another in a step, from the text of the compiled program.

A collective of n devices, with S the bytes of the whole array it gathers, sums or exchanges, makes every device send, on a ring:
all-reduce 2 (n - 1) / n * S, all-gather, reduce-scatter and all-to-all (n - 1) / n * S, collective-permute S. These are the least any
algorithm can send.

TPU programs hide collectives in two ways that are seen through here. A gather that runs beside a matrix product stands in three
fusions, of which the first starts it. An all-reduce of which a device keeps only its own part is a reduce-scatter. Between slices
there are no collectives but sends to the host's runtime, one for each, that say which collective they are.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from memjax.aot import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ICI, DCN = "ici", "dcn"
"""The network within a slice and the one between slices."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program."""

    name: str
    kind: str
    """One of KINDS."""
    network: str
    bytes: int
    """S: of the whole array, each time."""
    group: int
    """n: devices that take part together; over DCN, slices, each device with those in its place in other slices."""
    times: int
    """How often a step runs it."""
    axes: tuple[str, ...] = ()
    """Mesh axes it goes over; empty where the text or the caller does not say."""
    source: str = ""
    """The operation in the model it was made for."""

    @property
    def sent(self) -> float:
        """Bytes a device sends, each time."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one step."""

    count: int = 0
    ici: float = 0.0
    """Bytes a device sends within its slice."""
    dcn: float = 0.0
    """Bytes it sends to other slices."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.ici + other.ici, self.dcn + other.dcn)


def collectives(program: str | hlo.Module, mesh: Mapping[str, int] | None = None, slice_devices: int = 0) -> list[Collective]:
    """All collectives of a program, each once with the number of times a step runs it; those of one device are left out.

    Args:
      program: `compiled.as_text()`, or what `hlo.parse` made of it.
      mesh: sizes of the mesh's axes in their order (`mesh.shape`), for `axes`. Over several slices the first axis spans them.
      slice_devices: devices that ICI joins, where the program is of more: GPUs of a host, simulated slices. By default all. The program
        of several TPU slices says itself what goes between them.
    """
    module = hlo.parse(program) if isinstance(program, str) else program
    found = []
    for run in hlo.executed(module):
        kind = _kind(run)
        if kind is None:
            continue
        one = _across_slices(run, kind, mesh or {}) if run.instruction.opcode == "send" else None
        one = one or _within(run, kind, module.partitions, mesh or {}, slice_devices)
        if one.group > 1:
            found.append(one)
    return found


def total(found: Iterable[Collective]) -> Traffic:
    """All of them together."""
    traffic = Traffic()
    for one in found:
        sent = one.times * one.sent
        traffic += Traffic(one.times, *((sent, 0.0) if one.network == ICI else (0.0, sent)))
    return traffic


def by_kind(found: Iterable[Collective]) -> dict[str, Traffic]:
    """`total` of every kind there is, in the order of KINDS."""
    found = list(found)
    present = [kind for kind in KINDS if any(one.kind == kind for one in found)]
    return {kind: total(one for one in found if one.kind == kind) for kind in present}


def _kind(run: hlo.Run) -> str | None:
    """Which collective an instruction is or starts; None for all others."""
    instruction, inside = run.instruction, run.computation
    if instruction.opcode == "send":
        kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        return {"ONE_TO_ONE": "collective-permute"}.get(kind, kind.lower().replace("_", "-")) if kind else None
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS or (_goes_on(instruction, inside) and run.fused):
        return None
    return "reduce-scatter" if inside.name.startswith("all-reduce-scatter") else kind


def _goes_on(instruction: hlo.Instruction, inside: hlo.Computation) -> bool:
    """Whether a collective that runs in steps beside other work was started in an earlier fusion."""
    if "async_collective_fusion_config" not in instruction.attributes:
        return False
    readers = (one for one in inside.instructions.values() if instruction.name in one.operands)
    return not any('custom_call_target="AsyncCollectiveStart"' in one.attributes for one in readers)


def _payload(run: hlo.Run) -> int:
    """Bytes of what the device puts in."""
    read = (run.computation.instructions[name] for name in run.instruction.operands)
    return sum(array.bytes for one in read for array in one.arrays)


def _within(run: hlo.Run, kind: str, devices: int, mesh: Mapping[str, int], slice_devices: int) -> Collective:
    instruction = run.instruction
    groups = _pairs(instruction) if kind == "collective-permute" else replica_groups(instruction.attributes, devices)
    group = groups.shape[1]
    crosses = slice_devices > 0 and bool(np.any(groups // slice_devices != groups[:, :1] // slice_devices))
    return Collective(
        name=instruction.name,
        kind=kind,
        network=DCN if crosses else ICI,
        bytes=_payload(run) * (group if kind == "all-gather" else 1),
        group=group,
        times=run.times,
        axes=_axes(groups, devices, mesh, pairs=kind == "collective-permute"),
        source=instruction.attribute(r'op_name="([^"]*)"') or "",
    )


def _across_slices(run: hlo.Run, kind: str, mesh: Mapping[str, int]) -> Collective:
    """A send to the runtime that joins slices; its target is written {slices}x{devices of each}."""
    instruction = run.instruction
    slices = len((instruction.attribute(r'_xla_megascale_target="\{([^}]*)\}') or "").split(","))
    first = run.computation.instructions[instruction.operands[0]]
    put_in = sum(array.bytes for array in first.arrays)
    return Collective(
        name=instruction.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"') or instruction.name,
        kind=kind,
        network=DCN,
        bytes=put_in * (slices if kind == "all-gather" else 1),
        group=slices,
        times=run.times,
        axes=tuple(mesh)[:1],
        source=instruction.attribute(r'op_name="([^"]*)"') or "",
    )


def _pairs(instruction: hlo.Instruction) -> np.ndarray:
    """Source and target of every transfer of a permutation, [pairs, 2]; those of a device to itself are none."""
    text = instruction.attribute(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}") or ""
    pairs = np.array(re.findall(r"(\d+),(\d+)", text), int).reshape(-1, 2)
    moved = pairs[pairs[:, 0] != pairs[:, 1]]
    return moved if len(moved) else np.zeros((1, 1), int)


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """Devices that take part together, [groups, devices of a group].

    A program writes them as

    - `{{0,1},{2,3}}`, or `{}` for all;
    - `[2,4]<=[4,2]T(1,0)`: the numbers from 0 on, laid out as [4, 2], transposed by (1, 0) and laid out again as [2, 4];
    - `mesh['a'=2,'b'=4] {'b'}`: those that differ on the named axes alone; `'b':(2)2` is the part of size 2 of axis b that has a part of
      size 2 before it. Devices that are not in their order stand before the braces, `device_ids=([4,2]T(1,0))`.

    Raises:
      ValueError: there are none, or in another form.
    """
    text = attributes.partition("replica_groups=")[2]
    if match := re.match(r"\{((?:\{[\d,]*\},?)*)\}", text):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[1])]
        return np.array(groups or [range(devices)], int)
    if match := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _laid_out(match[2]).reshape(_numbers(match[1]))
    if match := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text):
        return _mesh_groups(*match.groups())
    raise ValueError(f"replica groups in a form that is not known: {text[:80]!r}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _laid_out(text: str) -> np.ndarray:
    """`[4,2]T(1,0)` as an array."""
    sizes, _, order = text.removesuffix(")").partition("T(")
    numbers = np.arange(math.prod(_numbers(sizes[1:-1]))).reshape(_numbers(sizes[1:-1]))
    return numbers.transpose(_numbers(order)) if order else numbers


def _mesh_groups(axes: str, ids: str | None, named: str) -> np.ndarray:
    """Groups that differ on the named axes of a mesh alone."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([^',=]+)'?=(\d+)", axes)}
    parts = {name: [] for name in sizes}
    for name, before, size in _MESH_AXIS.findall(named):
        parts[name].append((int(before or 1), int(size or sizes[name])))
    # An axis of which a part is named is laid out as several, in their order.
    shape, grouped = [], []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(parts[name]):
            shape += [before // done, part]
            grouped.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    devices = np.arange(math.prod(shape))
    if ids:
        devices = _laid_out(ids) if ids.startswith("[") else np.array(_numbers(ids))
    rest = [place for place in range(len(shape)) if place not in grouped]
    members = math.prod(shape[place] for place in grouped)
    return devices.reshape(shape).transpose([*rest, *grouped]).reshape(-1, members)


_MESH_AXIS = re.compile(r"'?([^',:{}]+)'?(?::\((\d+)\)(\d+))?(?:,|$)")


def _axes(groups: np.ndarray, devices: int, mesh: Mapping[str, int], pairs: bool) -> tuple[str, ...]:
    """Axes of the mesh on which devices of a group differ, if a group is all devices that differ on these alone, or a pair."""
    sizes = dict(mesh)
    whole = math.prod(sizes.values())
    first = next(iter(sizes), None)
    if first and whole > devices and whole % devices == 0 and sizes[first] % (whole // devices) == 0:
        # The program of one slice of several.
        sizes[first] //= whole // devices
    if not sizes or math.prod(sizes.values()) != devices:
        return ()
    places = np.stack(np.unravel_index(groups, tuple(sizes.values())))
    differ = [name for name, place in zip(sizes, places, strict=True) if np.any(place != place[:, :1])]
    return tuple(differ) if pairs or math.prod(sizes[name] for name in differ) == groups.shape[1] else ()
