"""Programs timed, alone or in turns with those they are compared with, and what is reported of them."""

import dataclasses
import itertools
import os
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from memjax.aot.topologies import peak_flops
from memjax.bench import timing
from memjax.bench.profile import Profile, profile
from memjax.bench.programs import Program, check_program, make_program
from memjax.config import Config, ConfigError


@dataclasses.dataclass(frozen=True)
class Subject:
    """Whose programs are timed."""

    label: str
    """What reports call it."""
    config: Config
    stage: str
    program: str = ""
    """In place of the one that is asked for."""


@dataclasses.dataclass(frozen=True)
class Report:
    """One program, over all devices; a step is one run of it."""

    label: str
    stage: str
    program: str
    rows: int
    tokens: int
    """Read in a step; of `generate` those said."""
    parameters: int
    model_flops: float
    """Of a step, by memjax.aot.flops.FORMULA."""
    compile_seconds: float
    planned_bytes: int
    """On a device, as the compiler planned it: arguments, results and temporaries."""
    seconds: tuple[float, ...]
    """Of every timed step, in their order."""
    peak: float | None
    """FLOP/s of bfloat16 products of all devices; None where it is not known."""

    @property
    def median(self) -> float:
        """Seconds a step."""
        return timing.spread(self.seconds)["median"]

    def to_json(self) -> dict[str, Any]:
        """As plain values, with what follows from the median."""
        rate = self.model_flops / self.median
        return dataclasses.asdict(self) | {
            "seconds": list(self.seconds),
            "spread": timing.spread(self.seconds),
            "tokens_per_second": self.tokens / self.median,
            "model_flops_per_second": rate,
            "mfu": None if self.peak is None else rate / self.peak,
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The same program of two subjects, timed in turns."""

    ours: str
    theirs: str
    program: str
    ratio: timing.Ratio
    """How many times as fast ours is."""
    allowed: float
    """How many times as fast it would be if time were model FLOPs: theirs over ours."""

    def to_json(self) -> dict[str, Any]:
        """As plain values; `reached` is the share of `allowed` that the ratio is."""
        return dataclasses.asdict(self) | {"reached": self.ratio.value / self.allowed}


@dataclasses.dataclass(frozen=True)
class Result:
    """All that one call of the command measured."""

    devices: str
    reports: list[Report]
    comparisons: list[Comparison]
    profiles: dict[str, Profile]
    """By program, if asked for."""
    memory: dict[str, int | None]
    """Peaks since the process began (`peak_memory`)."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "devices": self.devices,
            "reports": [report.to_json() for report in self.reports],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "profiles": {
                name: dataclasses.asdict(found) | {"products": found.products} for name, found in self.profiles.items()
            },
            "memory": self.memory,
        }


def measure(
    subject: Subject,
    programs: Sequence[str],
    against: Subject | None = None,
    steps: int = 10,
    warmup: int = 2,
    profiled: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Times programs of a subject on all devices.

    Args:
      subject: whose.
      programs: names (`programs.PROGRAMS`), timed one after another.
      against: whose program takes turns with each of them.
      steps: timed steps of each program.
      warmup: steps before those, at least one.
      profiled: steps of the subject's programs that are recorded after those; 0 is none.
      say: told what is being done.

    Raises:
      ConfigError: as `make_program`; or a number of steps is impossible, or programs are compared that are not of one kind.
    """
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 1), ("profile", profiled, 0)):
        if value < least:
            raise ConfigError(f"--{name}={value} must be {least} or more")
    if against is not None and against.program and set(programs) != {"train"}:
        raise ConfigError(f"--against={against.program} is a training step: --program={','.join(programs)} must be train")
    sides = [subject] if against is None else [subject, against]
    for name, side in itertools.product(programs, sides):
        check_program(side.config, side.stage, side.program or name)
    reports, comparisons, profiles = [], [], {}
    for name in programs:
        made = []
        for side in sides:
            say(f"compiling {side.program or name} of {side.label}")
            made.append(make_program(side.config, side.stage, side.program or name))
        say(f"timing {name} of {' and '.join(side.label for side in sides)}")
        seconds = timing.take_turns([program.step for program in made], steps, warmup)
        found = [report(*one) for one in zip(sides, made, seconds, strict=True)]
        reports += found
        if len(found) == 2:
            comparisons.append(compare(*found))
        if profiled:
            say(f"recording {name} of {subject.label}")
            profiles[name] = profile(made[0].step, made[0].compiled.as_text(), profiled)
    return Result(devices(), reports, comparisons, profiles, peak_memory())


def report(subject: Subject, program: Program, seconds: Sequence[float]) -> Report:
    """What is said of a program that took those seconds."""
    each = peak_flops(jax.devices()[0].device_kind)
    return Report(
        label=subject.label,
        stage=subject.stage,
        program=program.name,
        rows=program.stage.rows,
        tokens=program.tokens,
        parameters=program.parameters,
        model_flops=program.flops,
        compile_seconds=program.compile_seconds,
        planned_bytes=program.planned_bytes,
        seconds=tuple(seconds),
        peak=None if each is None else each * jax.device_count(),
    )


def compare(ours: Report, theirs: Report) -> Comparison:
    """Two programs that were timed in turns."""
    return Comparison(
        ours=ours.label,
        theirs=theirs.label,
        program=ours.program,
        ratio=timing.ratio(ours.seconds, theirs.seconds),
        allowed=theirs.model_flops / ours.model_flops,
    )


def devices() -> str:
    """What the programs run on, in words."""
    kind = jax.devices()[0].device_kind
    cores = f" with {os.cpu_count()} cores" if kind == "cpu" else ""
    return f"{jax.device_count()} x {kind}{cores}"


def peak_memory() -> dict[str, int | None]:
    """Peaks in bytes since the process began, compilation included.

    `resident` is the process's resident memory, which on a CPU is all there is; `device` the most that was in use of a device, None where
    devices do not say.
    """
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    resident = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"resident": resident, "device": max(peaks, default=None)}
