"""The command `memjax inspect`."""

import itertools
import json
from argparse import Namespace
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from memjax.cli.arguments import Arguments, take
from memjax.files import write_text
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.checkpoints.inspect import Array, Contents

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
    """,
)


def run(given: Namespace) -> None:
    """Prints the contents of a checkpoint; reads no array."""
    import jax

    from memjax.checkpoints.inspect import changed, inspect_checkpoint

    # An accelerator here may be busy with the very run that is inspected.
    jax.config.update("jax_platforms", "cpu")
    contents = inspect_checkpoint(given.path)
    if given.out:
        text = json.dumps(contents.to_json(), indent=1)
        if given.out == "-":
            print(text)
            return
        write_text(given.out, f"{text}\n")
    reporter = Reporter()
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
