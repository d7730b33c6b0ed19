"""The command `memjax report --workdir=DIR`."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from memjax.report import write_report


def run(args: Sequence[str]) -> int:
    """Writes the plots and the page of a workdir again."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "A workdir that `memjax train` has finished.", flag_values=values)
    values(list(args))
    if values["workdir"].value is None:
        raise flags.IllegalFlagValueError("--workdir is missing; for example: memjax report --workdir=runs/quickstart")
    workdir = values["workdir"].value
    # Of a run in a bucket the numbers lie here.
    print(write_report(Path(workdir.partition("://")[2] or workdir)))
    return 0
