"""Time programs, alone or in turns with others, and report them."""

import dataclasses
import itertools
import os
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from memjax.config import Config, ConfigError
from memjax.performance.bench import timing
from memjax.performance.bench.profile import Profile, profile
from memjax.performance.bench.programs import Report, check_program, make_program


@dataclasses.dataclass(frozen=True)
class BenchCase:
    """A config and stage whose programs are timed."""

    label: str
    """Name in reports."""
    config: Config
    stage: str
    program: str = ""
    """Replaces the requested program."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A program of two cases, timed in turns."""

    ours: str
    theirs: str
    program: str
    ratio: timing.Ratio
    """Speed of ours relative to theirs."""
    allowed: float
    """Speed if time were proportional to model FLOPs: theirs over ours."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values; `reached` is the ratio over `allowed`."""
        return dataclasses.asdict(self) | {"reached": self.ratio.value / self.allowed}


@dataclasses.dataclass(frozen=True)
class Result:
    """All measurements of one call of the command."""

    devices: str
    reports: list[Report]
    comparisons: list[Comparison]
    profiles: dict[str, Profile]
    """Profiles by program, if requested."""
    memory: dict[str, int | None]
    """Peaks since the process began (`peak_memory`)."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {
            "devices": self.devices,
            "reports": [report.to_json() for report in self.reports],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "profiles": {name: dataclasses.asdict(found) for name, found in self.profiles.items()},
            "memory": self.memory,
        }


def measure(
    case: BenchCase,
    programs: Sequence[str],
    against: BenchCase | None = None,
    steps: int = 10,
    warmup: int = 2,
    profiled: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> Result:
    """Time programs of a case on all devices.

    Args:
      case: the case.
      programs: names (`programs.PROGRAMS`), timed one after another.
      against: a case whose program takes turns with each of them.
      steps: timed steps of each program, at least one.
      warmup: steps before those, at least one.
      profiled: steps of the case's programs to profile afterwards; 0 for none.
      log: called with the current activity.

    Raises:
      ConfigError: as `make_program`; or the compared programs are of different kinds.
    """
    if against is not None and against.program and set(programs) != {"train"}:
        raise ConfigError(
            f"--program: got {','.join(programs)}, expected train, as --against={against.program}"
            " is a training step"
        )
    sides = [case] if against is None else [case, against]
    for name, side in itertools.product(programs, sides):
        check_program(side.config, side.stage, side.program or name)
    reports, comparisons, profiles = [], [], {}
    for name in programs:
        made = []
        for side in sides:
            log(f"compiling {side.program or name} of {side.label}")
            made.append(make_program(side.config, side.stage, side.program or name))
        log(f"timing {name} of {' and '.join(side.label for side in sides)}")
        seconds = timing.take_turns([program.step for program in made], steps, warmup)
        found = [
            dataclasses.replace(one.report, label=side.label, seconds=tuple(each))
            for side, one, each in zip(sides, made, seconds, strict=True)
        ]
        reports += found
        if len(found) == 2:
            comparisons.append(compare(*found))
        if profiled:
            log(f"profiling {name} of {case.label}")
            profiles[name] = profile(made[0].step, made[0].compiled.as_text(), profiled)
    return Result(devices(), reports, comparisons, profiles, peak_memory())


def compare(ours: Report, theirs: Report) -> Comparison:
    """Compare two programs that were timed in turns."""
    return Comparison(
        ours=ours.label,
        theirs=theirs.label,
        program=ours.program,
        ratio=timing.ratio(ours.seconds, theirs.seconds),
        allowed=theirs.model_flops / ours.model_flops,
    )


def devices() -> str:
    """Return a description of the devices."""
    kind = jax.devices()[0].device_kind
    cores = f" with {os.cpu_count()} cores" if kind == "cpu" else ""
    return f"{jax.device_count()} x {kind}{cores}"


def peak_memory() -> dict[str, int | None]:
    """Return peaks in bytes since the process began, compilation included.

    `resident` is the process's resident memory, which on a CPU is all there is; `device` is the
    largest peak of a device, None if devices do not report it.
    """
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    resident = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"resident": resident, "device": max(peaks, default=None)}
