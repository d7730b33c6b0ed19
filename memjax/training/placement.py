"""What a stage's parameters are and where they lie: said when it starts."""

import math

import jax
from rich.table import Table

from memjax.config import Config
from memjax.sharding import Placement, placements
from memjax.training.progress import Reporter
from memjax.training.step import TrainState


def say_placement(reporter: Reporter, name: str, config: Config, mesh: jax.sharding.Mesh, state: TrainState) -> None:
    """One line of sums, and over several devices a table of all parameters.

    Args:
      reporter: who says it.
      name: the stage.
      config: where the rules are.
      mesh: the devices.
      state: arrays or abstract.
    """
    lines = placements(state.params, state.trainable, config.mesh.rules, mesh)
    count = sum(_size(line) for line in lines)
    moving = sum(_size(line) for line in lines if line.trainable)
    held = sum(line.bytes_a_device for line in lines)
    reporter.say(f"{name}: {_number(count)} parameters, {_number(moving)} of them trained; {held / 2**20:,.1f} MiB a device")
    if mesh.size > 1:
        reporter.console.print(_table(name, lines, mesh))


def _table(name: str, lines: list[Placement], mesh: jax.sharding.Mesh) -> Table:
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    table = Table(
        title=f"{name} over {mesh.size} devices ({axes})", caption="split: mesh axis of each dimension, – where it is whole"
    )
    for column in ("parameter", "shape", "dtype", "split", "KiB a device", ""):
        table.add_column(column, justify="right" if column == "KiB a device" else "left")
    for line in lines:
        split = " ".join("–" if axis is None else str(axis) for axis in line.spec) or "whole"
        shape = " ".join(map(str, line.shape))
        table.add_row(
            line.path, shape, line.dtype, split, f"{line.bytes_a_device / 1024:,.1f}", "" if line.trainable else "frozen"
        )
    return table


def _size(line: Placement) -> int:
    return math.prod(line.shape)


def _number(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
