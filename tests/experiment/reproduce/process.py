"""A reproduction in one of several processes: run by test_run_processes.py.

    python process.py KILL --out=FOLDER --scale=tiny --corpus=FILE

It trains an autoencoder and two decoders, and measures a few numbers. The process is killed before
it trains stage number KILL, counted from 0; -1 is never.
"""

import dataclasses
import os
import signal
import sys

from memjax.cli.main import main
from memjax.config import Config
from memjax.experiment.reproduce import measure, plan, run

STAGES = {"encoders": ("autoencoder",), "memory": ("at_once", "next_token")}
"""Stages of the few parts, by run."""


def few(*args: object) -> dict[str, Config]:
    """Return the configs of the few parts."""
    configs = plan.configs(*args)
    return {
        name: dataclasses.replace(
            configs[name],
            stages={stage: configs[name].stages[stage] for stage in stages},
            curriculum=stages,
        )
        for name, stages in STAGES.items()
    }


def measure_few() -> None:
    """Train and measure the few parts alone, and judge no claim."""
    run.configs, run.CLAIMS = few, ()
    measure.DECODERS, measure.AUTOENCODERS = STAGES["memory"], {"mixer": "encoders"}
    measure.QUANTISED, measure.PROBES = (), ("autoencoder", "constant")


def die_before(stage: int) -> None:
    """End this process in place of training a stage."""
    train, left = run.train_stage, [stage]

    def disturbed(*args: object) -> object:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return train(*args)

    run.train_stage = disturbed


if __name__ == "__main__":
    measure_few()
    die_before(int(sys.argv[1]))
    sys.exit(main(["reproduce", *sys.argv[2:]]))
