"""The command `memjax train --config=FILE --workdir=DIR [--config.KEY=VALUE ...]`."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from memjax.cli.allocator import keep_freed_memory
from memjax.cli.arguments import read_flags

EXAMPLE = "memjax train --config=configs/quickstart.py --workdir=runs/quickstart"


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags."""
    flags.DEFINE_string("workdir", None, "Where checkpoints, numbers and the page go.", flag_values=values)


def run(args: Sequence[str]) -> int:
    """Trains, and prints what came of it."""
    config, values = read_flags(args, EXAMPLE, define_flags, ("workdir",))
    workdir: Any = values["workdir"].value
    keep_freed_memory()
    # These import JAX: after the allocator is set and the flags are known to be right.
    from memjax.sharding import connect
    from memjax.training import run_experiment

    connect()
    run_experiment(config, workdir)
    return 0
