"""The command `memjax train`."""

from argparse import Namespace

from memjax.cli.arguments import Arguments, read_config, take

ARGUMENTS = Arguments(
    example="memjax train --config=configs/quickstart.py --workdir=runs/quickstart",
    flags=take(
        config={"required": True},
        workdir={"required": True},
        compilation_cache={},
        profile={"what": "START:STOP of every stage, into WORKDIR/stages/NAME/profile"},
    ),
    configs=("config",),
)


def run(given: Namespace) -> None:
    """Trains the stages of a config, evaluates them and writes the report."""
    config = read_config("config", given.config, given.overrides["config"])
    # After the flags are checked: these import JAX.
    from memjax.experiment.run import run_experiment
    from memjax.sharding import connect

    connect()
    run_experiment(
        config,
        given.workdir,
        profile=given.profile,
        compilation_cache=given.compilation_cache,
    )
