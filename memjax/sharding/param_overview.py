"""An overview of a stage's parameters and of their layout over the devices."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from memjax.config import Rules
from memjax.progress import Reporter
from memjax.sharding.rules import Placement, placements


def report_params(
    reporter: Reporter,
    name: str,
    params: Mapping[str, Any],
    trainable: Mapping[str, Any],
    rules: Rules,
    mesh: jax.sharding.Mesh,
) -> None:
    """Report the number of parameters and, over several devices, a table of all of them.

    Args:
      reporter: output.
      name: the stage.
      params: all parameters, arrays or abstract.
      trainable: the trainable parameters among them.
      rules: `config.mesh.rules`.
      mesh: the devices.
    """
    lines = placements(params, trainable, rules, mesh)
    count = sum(math.prod(line.shape) for line in lines)
    moving = sum(math.prod(line.shape) for line in lines if line.trainable)
    held = sum(line.bytes_per_device for line in lines)
    reporter.log(
        f"{name}: {_number(count)} parameters, {_number(moving)} of them trained;"
        f" {held / 2**20:,.1f} MiB per device"
    )
    if mesh.size > 1:
        axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        reporter.table(
            f"{name} over {mesh.size} devices ({axes})",
            ("parameter", "shape", "dtype", "split", "KiB per device", ""),
            map(_row, lines),
            "split: mesh axis of each dimension, – where it is whole",
            left=4,
        )


def _row(line: Placement) -> tuple[str, ...]:
    split = " ".join("–" if axis is None else str(axis) for axis in line.spec) or "whole"
    kib = f"{line.bytes_per_device / 1024:,.1f}"
    frozen = "" if line.trainable else "frozen"
    return line.path, " ".join(map(str, line.shape)), line.dtype, split, kib, frozen


def _number(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
