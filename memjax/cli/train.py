"""The command `memjax train`."""

from argparse import Namespace

from memjax.cli.allocator import keep_freed_memory
from memjax.cli.arguments import Arguments, read_config, take

ARGUMENTS = Arguments(
    example="memjax train --config=configs/quickstart.py --workdir=runs/quickstart",
    flags=take(
        config={"required": True},
        workdir={"required": True},
        profile={"what": "START:STOP of every stage, into WORKDIR/stages/NAME/profile"},
    ),
    configs=("config",),
)


def run(given: Namespace) -> None:
    """Trains the stages of a config, evaluates them and writes the report."""
    config = read_config("config", given.config, given.overrides["config"])
    keep_freed_memory()
    # These import JAX: after the allocator is set and the flags are checked.
    from memjax.experiment.run import run_experiment
    from memjax.sharding import connect

    connect()
    run_experiment(config, given.workdir, profile=given.profile)
