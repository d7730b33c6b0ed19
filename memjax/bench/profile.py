"""Where a step's time goes, by operation: what a CPU or GPU was doing at each moment, as JAX's profiler recorded it.

On CPUs an operation is started by one thread and may end in another, several run at once, and each may use all cores: seconds of
operations add up to more than those of the clock. So every moment is shared out equally among the operations that run in it, and what
a table shows adds up to the time of the step.
"""

import collections
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxlib import xla_client

from memjax.aot import hlo
from memjax.config import ConfigError

PRODUCTS, NOTHING = "matrix products", "nothing"
"""Kinds beside the operations' own names: products, also fused with what is around them, and moments in which no operation runs."""
AROUND = ("while", "call", "conditional", "async-start")
"""Operations that are only others."""
SHOWN = 15
"""Single operations that a profile names."""


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of an operation, in nanoseconds of the same clock."""

    name: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Share:
    """What an operation, or all of a kind, take of a step."""

    name: str
    kind: str
    seconds: float
    """Of a step, of the clock."""
    share: float
    """Of the step."""
    runs: float
    """In a step, on all devices."""
    source: str = ""
    """Of a single operation: the part of the model it is from."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """A step by kind of operation, and the single operations that take most of it; the longest first."""

    steps: int
    """That were recorded."""
    kinds: tuple[Share, ...]
    operations: tuple[Share, ...]

    @property
    def products(self) -> float:
        """Share of the time that goes into matrix products."""
        return sum(kind.share for kind in self.kinds if kind.name == PRODUCTS)


def profile(step: Callable[[], Any], text: str, steps: int) -> Profile:
    """Records steps of a program.

    Args:
      step: runs the program once; it has run before.
      text: of the compiled program.
      steps: to record.

    Raises:
      ConfigError: the profiler of this platform does not say which operation runs when, or would end this process.
    """
    if tpu_compiler_loaded() and jax.default_backend() != "tpu":
        raise ConfigError("--profile: the TPU compiler is loaded in this process; profile in one that has not loaded it")
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                jax.block_until_ready(step())
        (file,) = Path(folder).rglob("*.xplane.pb")
        recorded = events(jax.profiler.ProfileData.from_file(str(file)))
    program = hlo.parse(text)
    if not {event.name for event in recorded} & _instructions(program).keys():
        raise ConfigError(
            f"--profile: the profiler says of {jax.devices()[0].platform} devices not which operation runs when; leave it out"
        )
    return aggregate(recorded, program, steps)


def tpu_compiler_loaded() -> bool:
    """Whether libtpu is: its profiler, which every recording asks too, faults where there is no TPU (libtpu 0.0.51)."""
    return xla_client.pjrt_plugin_loaded("tpu")


def events(data: Any) -> list[Event]:
    """Operations in a `jax.profiler.ProfileData`, each from its start to where its results are there.

    A CPU's operation that goes on when the thread that started it does not has a second event, `end: NAME`, which its first one points to.
    """
    found = [(event, dict(event.stats)) for plane in data.planes for line in plane.lines for event in line.events]
    ends = {stats.get("_c"): event.end_ns for event, stats in found if event.name.startswith("end: ")}
    return [
        Event(stats["hlo_op"], event.start_ns, max(event.end_ns, ends.get(stats.get("_p"), 0.0)))
        for event, stats in found
        if "hlo_op" in stats
    ]


def aggregate(recorded: Iterable[Event], program: hlo.Module, steps: int) -> Profile:
    """The profile of `steps` runs of a program; events of other programs are left out."""
    known = _instructions(program)
    recorded = [event for event in recorded if event.name in known and known[event.name].opcode not in AROUND]
    taken = wall_time(recorded)
    whole = sum(taken.values())
    runs = collections.Counter(event.name for event in recorded)

    def share(name: str, kind: str, operations: Sequence[str], source: str = "") -> Share:
        nanoseconds = sum(taken[operation] for operation in operations)
        total = sum(runs[operation] for operation in operations)
        return Share(name, kind, nanoseconds / steps / 1e9, nanoseconds / whole, total / steps, source)

    kinds: dict[str, list[str]] = {}
    for name in taken:
        kinds.setdefault(_kind(program, known.get(name)), []).append(name)
    single = [
        share(name, kind, [name], known[name].attribute(r'op_name="([^"]*)"') or "")
        for kind, names in kinds.items()
        for name in names
        if name in known
    ]
    return Profile(
        steps=steps,
        kinds=_longest_first(share(kind, kind, names) for kind, names in kinds.items()),
        operations=_longest_first(single)[:SHOWN],
    )


def _longest_first(shares: Iterable[Share]) -> tuple[Share, ...]:
    return tuple(sorted(shares, key=lambda share: -share.seconds))


def wall_time(recorded: Iterable[Event]) -> dict[str, float]:
    """Nanoseconds by name, every moment shared out equally among the events that it is in; NOTHING has those between events."""
    changes = sorted(
        [(event.start, 1, event.name) for event in recorded] + [(event.end, -1, event.name) for event in recorded],
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
    return {name: one for computation in program.computations.values() for name, one in computation.instructions.items()}


def _kind(program: hlo.Module, instruction: hlo.Instruction | None) -> str:
    if instruction is None:
        return NOTHING
    return PRODUCTS if _multiplies(program, instruction) else instruction.opcode


def _multiplies(program: hlo.Module, instruction: hlo.Instruction) -> bool:
    """Whether an operation is or holds a matrix product: XLA's own, fused with others, or of a library for CPUs or GPUs."""
    if instruction.opcode == "custom-call":
        return any(word in instruction.attributes for word in ("matmul", "gemm", "dot"))
    fused = instruction.calls if instruction.opcode == "fusion" else ()
    inside = (one for name in fused for one in program.computations[name].instructions.values())
    return instruction.opcode == "dot" or any(_multiplies(program, one) for one in inside)
