"""A step's time by operation, from JAX's profiler, for CPUs and GPUs.

On CPUs an operation is started by one thread and may end in another, several run at once, and each
may use all cores: the seconds of operations sum to more than the wall time. So every moment is
divided equally among the operations that run in it, and the times in a table sum to the time of the
step.
"""

import collections
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxlib import xla_client

from memjax.config import ConfigError
from memjax.performance.aot import hlo

PRODUCTS, NOTHING = "matrix products", "nothing"
"""Kinds besides the operations' own: matrix products, also inside fusions, and moments without an
operation."""
AROUND = ("while", "call", "conditional", "async-start")
"""Operations that only contain others."""
SHOWN = 15
"""Number of single operations of each kind in a profile."""


class Event(NamedTuple):
    """One run of an operation, in nanoseconds of the same clock."""

    name: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of one operation, or of all of a kind, in a step."""

    name: str
    kind: str
    seconds: float
    """Wall time per step."""
    share: float
    """Share of the step's time."""
    runs: float
    """Runs per step, on all devices."""
    source: str = ""
    """For a single operation, the part of the model that it comes from."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """A step's time by kind of operation, and by the longest single operations of every kind."""

    steps: int
    """Number of profiled steps."""
    kinds: tuple[Share, ...]
    operations: tuple[Share, ...]
    products: float
    """Share of matrix products in the time."""


def profile(step: Callable[[], Any], text: str, steps: int) -> Profile:
    """Profile steps of a program.

    Args:
      step: runs the program once; it has run before.
      text: text of the compiled program.
      steps: number of steps.

    Raises:
      ConfigError: the platform's profiler does not report operations, or would end this process.
    """
    ConfigError.require(
        not tpu_compiler_loaded() or jax.default_backend() == "tpu",
        "--profile: the TPU compiler is loaded in this process. Use a process that has not"
        " loaded it",
    )
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                jax.block_until_ready(step())
        (file,) = Path(folder).rglob("*.xplane.pb")
        recorded = events(jax.profiler.ProfileData.from_file(str(file)))
    program = hlo.parse(text)
    ConfigError.require(
        {event.name for event in recorded} & _instructions(program).keys(),
        f"--profile is not supported on {jax.devices()[0].platform}, whose profiler does not"
        " report operations. Omit it",
    )
    return aggregate(recorded, program, steps)


def tpu_compiler_loaded() -> bool:
    """Return whether libtpu is loaded.

    Every profile includes libtpu's profiler, which faults without a TPU (libtpu 0.0.51).
    """
    return xla_client.pjrt_plugin_loaded("tpu")


def events(data: Any) -> list[Event]:
    """Return the operations in a `jax.profiler.ProfileData`, until their results are ready.

    An operation of a CPU that continues after the thread that started it has a second event, `end:
    NAME`, which its first one points to.
    """
    found = [
        (event, dict(event.stats))
        for plane in data.planes
        for line in plane.lines
        for event in line.events
    ]
    ends = {
        stats.get("_c"): event.end_ns for event, stats in found if event.name.startswith("end: ")
    }
    return [
        Event(stats["hlo_op"], event.start_ns, max(event.end_ns, ends.get(stats.get("_p"), 0.0)))
        for event, stats in found
        if "hlo_op" in stats
    ]


def aggregate(recorded: Iterable[Event], program: hlo.Module, steps: int) -> Profile:
    """Return the profile of `steps` runs of a program; events of other programs are skipped."""
    known = _instructions(program)
    recorded = [
        event
        for event in recorded
        if event.name in known and known[event.name].opcode not in AROUND
    ]
    taken = wall_time(recorded)
    whole = sum(taken.values())
    runs = collections.Counter(event.name for event in recorded)

    def share(name: str, kind: str, operations: Sequence[str], source: str = "") -> Share:
        nanoseconds = sum(taken[operation] for operation in operations)
        total = sum(runs[operation] for operation in operations)
        return Share(
            name, kind, nanoseconds / steps / 1e9, nanoseconds / whole, total / steps, source
        )

    kinds: dict[str, list[str]] = {}
    for name in taken:
        kind = _kind(program, known[name]) if name in known else NOTHING
        kinds.setdefault(kind, []).append(name)
    single = [
        share(name, kind, [name], known[name].attribute(r'op_name="([^"]*)"') or "")
        for kind, names in kinds.items()
        for name in sorted(names, key=lambda name: -taken[name])[:SHOWN]
        if name in known
    ]
    shares = _longest_first(share(kind, kind, names) for kind, names in kinds.items())
    return Profile(
        steps=steps,
        kinds=shares,
        operations=_longest_first(single),
        products=sum(one.share for one in shares if one.name == PRODUCTS),
    )


def _longest_first(shares: Iterable[Share]) -> tuple[Share, ...]:
    return tuple(sorted(shares, key=lambda share: -share.seconds))


def wall_time(recorded: Iterable[Event]) -> dict[str, float]:
    """Return nanoseconds by name, with every moment divided equally among its events.

    NOTHING has the moments without events.
    """
    changes = sorted(
        [(event.start, 1, event.name) for event in recorded]
        + [(event.end, -1, event.name) for event in recorded],
        key=lambda change: change[0],
    )
    taken: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    for (start, change, name), (end, _, _) in itertools.pairwise(changes):
        running[name] += change
        several = running.total()
        for other, count in running.items():
            taken[other] += (end - start) * count / several if several else 0.0
        taken[NOTHING] += 0.0 if several else end - start
        if not running[name]:
            del running[name]
    return dict(taken)


def _instructions(program: hlo.Module) -> dict[str, hlo.Instruction]:
    return {
        name: one
        for computation in program.computations.values()
        for name, one in computation.instructions.items()
    }


def _kind(program: hlo.Module, instruction: hlo.Instruction) -> str:
    return PRODUCTS if _multiplies(program, instruction) else instruction.opcode


def _multiplies(program: hlo.Module, instruction: hlo.Instruction) -> bool:
    """Return whether an operation is or contains a matrix product.

    It may be XLA's own, fused with others, or a library's for CPUs or GPUs.
    """
    if instruction.opcode == "custom-call":
        return any(word in instruction.attributes for word in ("matmul", "gemm", "dot"))
    fused = instruction.calls if instruction.opcode == "fusion" else ()
    inside = (one for name in fused for one in program.computations[name].instructions.values())
    return instruction.opcode == "dot" or any(_multiplies(program, one) for one in inside)
