"""The command `memjax report`: the page of a run, or of a store."""

from argparse import Namespace

from memjax.cli.arguments import Arguments, refuse, take
from memjax.files import on_this_machine
from memjax.progress import Reporter

ONLY_STORE = ("model", "against", "out")
ARGUMENTS = Arguments(
    example="memjax report runs/quickstart",
    words={"PATH": "The workdir of a finished run, or a store that `memjax compress` wrote."},
    flags=take(
        model={"what": "with the encoder of the store; by default the released one that has it"},
        against={"what": "the text that was compressed; by default its file beside the store"},
        out={
            "what": "Page of the store; by default NAME.html beside NAME.store",
            "metavar": "FILE",
        },
    ),
    notes="""
    Of a workdir, the command writes the plots and the page report.html again, from the metrics.

    Of a store, it writes one page to look into it, which needs no server: the text that each memory
    gives back with wrong tokens marked, its place in the source, the nearest memories of each, and
    the share of tokens right over the store. For example: memjax report novel.store
    --model=runs/quickstart --against=novel.txt
    """,
)


def run(given: Namespace) -> None:
    """Writes the plots and the page of a workdir from its metrics, or the page of a store."""
    # The metrics of a run in a bucket are on this machine.
    path = on_this_machine(given.path)
    reporter = Reporter()
    # These import JAX: after the flags are checked.
    from memjax.checkpoints.store_folder import is_folder

    if path.is_file() or is_folder(path) or (path.suffix == ".store" and not path.is_dir()):
        from memjax.experiment.report.store_page import write_store_page

        with reporter.active():
            page = write_store_page(
                path, **{name: getattr(given, name) or "" for name in ONLY_STORE}
            )
    else:
        refuse(ARGUMENTS, given, ONLY_STORE, "with a workdir")
        from memjax.experiment.report import write_report

        page = write_report(path)
    reporter.log(str(page))
