"""The command `memjax inspect`."""

import itertools
import json
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from memjax.cli.arguments import Arguments, take
from memjax.files import write_text
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.checkpoints.inspect import Array, Contents
    from memjax.training.status import Progress, Session

ARGUMENTS = Arguments(
    example="memjax inspect runs/quickstart",
    words={
        "PATH": "A workdir, the folder of a stage, its folder `checkpoints`, or one step there."
    },
    flags=take(
        out={
            "what": "Write all contents to this file, as JSON (- is standard output)",
            "metavar": "FILE",
        }
    ),
    notes="""
    Prints the stage, its metrics, every parameter and the settings that are not the defaults. It
    reads metadata only and needs none of the devices that wrote the checkpoint.

    Of a workdir it first prints the status of the run, from its first minute on and while it
    trains: goodput, and for each session tokens per second, MFU, seconds that saves held up the
    steps, and the reason of its end. PATH may be in a bucket (gs://BUCKET/FOLDER).
    """,
)


def run(given: Namespace) -> None:
    """Prints the status of a run and the contents of a checkpoint; reads no array."""
    import jax

    from memjax.checkpoints.inspect import inspect_checkpoint
    from memjax.checkpoints.reading import absolute, trained_stages
    from memjax.training.status import FILE, StatusError, read_status, status_json

    # An accelerator here may be busy with the very run that is inspected.
    jax.config.update("jax_platforms", "cpu")
    path, sessions, damage = absolute(given.path), [], ""
    if (path / FILE).exists():
        try:
            sessions = read_status(path)
        except StatusError as error:
            damage = f"{error}. The next start of the run replaces it"
    # A run has a status before its first checkpoint.
    early = (sessions or damage) and not trained_stages(path)
    contents = None if early else inspect_checkpoint(path)
    if given.out:
        found = contents.to_json() if contents else {}
        text = json.dumps(found | {"status": status_json(sessions) if sessions else None}, indent=1)
        if given.out == "-":
            print(text)
            return
        write_text(given.out, f"{text}\n")
    reporter = Reporter()
    if damage:
        reporter.log(damage)
    if sessions:
        show_status(sessions, reporter)
    if contents:
        _show_contents(contents, reporter)


def show_status(sessions: "Sequence[Session]", reporter: Reporter) -> None:
    """Prints the status of a run: its state, the use of its time, and its sessions."""
    from memjax.training.status import shares

    last, used = sessions[-1], shares(sessions)
    ago = timedelta(seconds=round(max(time.time() - last.updated, 0.0)))
    parts = {
        "steps": used.counted,
        "steps that were lost": used.lost,
        **used.apart,
        "starting": used.starting,
        "between sessions": used.between,
    }
    facts = {
        "run": f"{last.state}, {ago} ago: {last.reason}".removesuffix(": "),
        "goodput": f"{used.goodput:.1%} of {timedelta(seconds=round(used.total))}",
        "time": ", ".join(f"{name} {x / used.total:.1%}" for name, x in parts.items() if x),
    }
    reporter.table("", ("", ""), list(facts.items()), left=2)
    reporter.table("", SESSIONS, itertools.chain(*map(_session, sessions)), left=len(SESSIONS))


SESSIONS = ("began, UTC", "took", "devices", "stage", "steps", "tokens/s", "MFU", "saves", "end")


def _session(session: "Session") -> Iterator[tuple[str, ...]]:
    """A row per stage of a session; the first has what concerns all."""
    stages = [(name, *_progress(progress)) for name, progress in session.stages.items()]
    stall = session.apart.get("saves", 0.0) / max(session.saves, 1)
    first = (
        f"{datetime.fromtimestamp(session.began, UTC):%Y-%m-%d %H:%M:%S}",
        f"{timedelta(seconds=round(session.updated - session.began))}",
        f"{session.devices} x {session.device_kind}",
    )
    end = (
        f"{session.saves}, {stall:.2g} s each" if session.saves else "",
        f"{session.state}: {session.reason}".removesuffix(": "),
    )
    for place, stage in enumerate(stages or [("",) * 4]):
        yield (*first, *stage, *end) if place == 0 else ("", "", "", *stage, "", "")


def _progress(progress: "Progress") -> tuple[str, str, str]:
    lost = progress.last - progress.kept
    steps = f"{progress.first} to {progress.last} of {progress.total}"
    return (
        f"{steps}, {lost} lost" if lost else steps,
        f"{progress.tokens_per_second:,.0f}" if progress.seconds else "",
        f"{progress.mfu:.1%}" if progress.mfu is not None else "",
    )


def _show_contents(contents: "Contents", reporter: Reporter) -> None:
    from memjax.checkpoints.inspect import changed

    facts = [(name, value) for name, value in _facts(contents).items() if value]
    reporter.table("", ("", ""), facts, left=2)
    columns = ("parameter", "shape", "dtype", "size", "trained", "layout")
    reporter.table("", columns, _parameters(contents))
    for key, value in changed(contents.config).items():
        reporter.log(f"config.{key}={json.dumps(value)}")


def _facts(contents: "Contents") -> dict[str, str]:
    """The facts in the metadata of the checkpoint; those that it lacks are empty."""
    meta, stage = contents.meta, contents.stage
    return {
        "checkpoint": str(contents.path),
        "stage": f"{meta['stage']} ({stage['family']})",
        "step": f"{meta['step']} of {stage['steps']} (there are"
        f" {', '.join(map(str, contents.steps))})",
        "stages": ", ".join(f"{name} ({max(steps)})" for name, steps in contents.stages.items()),
        "objectives": ", ".join(
            f"{weight:g} {name}" for name, weight in stage["objectives"].items()
        ),
        "held out": ", ".join(
            f"{name} {value:.4f}" for name, value in meta.get("metrics", {}).items()
        ),
        "trained for": f"{timedelta(seconds=round(meta['seconds']))}",
        "next row": f"{meta['next_row']:,}",
        "tokenizer": meta["tokenizer"] or "unknown",
        "format": str(meta["format_version"]),
        "written on": ", ".join(f"{axis} {size}" for axis, size in contents.mesh.items())
        or "one device",
        "parameters": _amount(contents.parameters),
        "trainable": _amount(array for array in contents.parameters if array.trainable),
        "frozen": _amount(array for array in contents.parameters if not array.trainable),
        "optimizer": _amount(contents.optimizer),
    }


def _amount(arrays: "Iterable[Array]") -> str:
    from memjax.checkpoints.inspect import totals

    sums = totals(arrays)
    return f"{sums['count']:,} numbers, {decimal(sums['bytes'])}"


def _parameters(contents: "Contents") -> Iterator[tuple[str, ...]]:
    """A row per part of the model, with those of its parameters below."""
    ordered = sorted(contents.parameters, key=lambda array: (_part(array), array.path))
    for part, members in itertools.groupby(ordered, _part):
        arrays = list(members)
        yield (part or "(model)", "", "", decimal(sum(array.bytes for array in arrays)), "", "")
        for array in arrays:
            yield (
                f"  {array.path.removeprefix(f'{part}/')}",
                "×".join(map(str, array.shape)),
                str(array.dtype),
                decimal(array.bytes),
                "yes" if array.trainable else "frozen",
                _layout(array.sharding),
            )


def _part(array: "Array") -> str:
    """The first two folders of an array's path."""
    return "/".join(array.path.split("/")[:-1][:2])


def _layout(sharding: tuple[Any, ...] | None) -> str:
    """The mesh axes of an array's dimensions, `-` for none."""
    if not any(sharding or ()):
        return "whole"
    return ", ".join(
        "+".join(axes) if isinstance(axes, (list, tuple)) else axes or "-"
        for axes in sharding or ()
    )
