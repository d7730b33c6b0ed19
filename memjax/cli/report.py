"""The command `memjax report`."""

from argparse import Namespace
from pathlib import Path

from memjax.cli.arguments import Arguments, take
from memjax.progress import Reporter

ARGUMENTS = Arguments(
    example="memjax report runs/quickstart",
    words={"PATH": "The workdir of a finished run."},
    flags=take(),
)


def run(given: Namespace) -> None:
    """Writes the plots and the page of a workdir from its metrics."""
    from memjax.experiment.report import write_report

    # The metrics of a run in a bucket are on this machine.
    page = write_report(Path(given.path.partition("://")[2] or given.path))
    Reporter().log(str(page))
