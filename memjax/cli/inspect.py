"""The command `memjax inspect PATH [--config=full] [--json]`."""

import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from memjax.checkpoints.inspect import Array, Contents, changed, flat, inspect_checkpoint, totals
from memjax.cli.arguments import read_one

EXAMPLE = "memjax inspect runs/quickstart"
WIDTH = 160
"""Columns where the output is no terminal."""


def run(args: Sequence[str]) -> int:
    """Prints what a checkpoint is and holds; reads no array."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("json", False, "Write everything as JSON, for programs.", flag_values=values)
    flags.DEFINE_enum(
        "config",
        "changed",
        ["changed", "full"],
        "Settings to show: those that are not the defaults, or all.",
        flag_values=values,
    )
    found = read_one(args, values, __doc__ or "", EXAMPLE, (), "one folder of checkpoints")
    if found is None:
        return 0
    path, given = found
    # An accelerator here may be busy with the very run that is looked at.
    jax.config.update("jax_platforms", "cpu")
    contents = inspect_checkpoint(path)
    if given["json"]:
        print(json.dumps(contents.to_json(), indent=1))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_facts(contents))
    console.print(_parameters(contents))
    for key, value in (flat if given["config"] == "full" else changed)(contents.config).items():
        console.print(f"config.{key}={json.dumps(value)}", markup=False, soft_wrap=True)
    return 0


def _facts(contents: Contents) -> Table:
    """One line for each thing the checkpoint says of itself."""
    meta, stage = contents.meta, contents.stage
    facts = {
        "checkpoint": str(contents.path),
        "stage": f"{meta['stage']} ({stage['family']})",
        "step": f"{meta['step']} of {stage['steps']} (there are {', '.join(map(str, contents.steps))})",
        "stages": ", ".join(f"{name} ({max(steps)})" for name, steps in contents.stages.items()),
        "objectives": ", ".join(f"{weight:g} {name}" for name, weight in stage["objectives"].items()),
        "held out": ", ".join(f"{name} {value:.4f}" for name, value in meta.get("metrics", {}).items()),
        "trained for": f"{timedelta(seconds=round(meta['seconds']))}",
        "next row": f"{meta['next_row']:,}",
        "tokenizer": meta["tokenizer"] or "not known",
        "format": str(meta["format_version"]),
        "written on": ", ".join(f"{axis} {size}" for axis, size in contents.mesh.items()) or "one device",
        "parameters": _amount(contents.parameters),
        "trainable": _amount(array for array in contents.parameters if array.trainable),
        "frozen": _amount(array for array in contents.parameters if not array.trainable),
        "optimizer": _amount(contents.optimizer),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _amount(arrays: Iterable[Array]) -> str:
    sums = totals(arrays)
    return f"{sums['count']:,} numbers, {decimal(sums['bytes'])}"


def _parameters(contents: Contents) -> Table:
    """Every parameter, under the part of the model it belongs to."""
    table = Table("parameter", "shape", "dtype", "size", "trained", "layout")
    table.columns[3].justify = "right"
    for part, arrays in itertools.groupby(sorted(contents.parameters, key=lambda array: (_part(array), array.path)), _part):
        members = list(arrays)
        table.add_section()
        table.add_row(part or "(model)", "", "", decimal(sum(array.bytes for array in members)), "", "", style="bold")
        for array in members:
            table.add_row(
                f"  {array.path.removeprefix(f'{part}/')}",
                "×".join(map(str, array.shape)),
                str(array.dtype),
                decimal(array.bytes),
                "yes" if array.trainable else "frozen",
                _layout(array.sharding),
            )
    return table


def _part(array: Array) -> str:
    """The first two folders of its path."""
    return "/".join(array.path.split("/")[:-1][:2])


def _layout(sharding: tuple[Any, ...] | None) -> str:
    """Mesh axes of the dimensions, `-` for none."""
    if not any(sharding or ()):
        return "whole"
    return ", ".join("+".join(axes) if isinstance(axes, (list, tuple)) else axes or "-" for axes in sharding or ())
