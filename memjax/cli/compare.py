"""The command `memjax compare`."""

from argparse import Namespace

from memjax.cli.arguments import Arguments, take
from memjax.errors import MemjaxError

ARGUMENTS = Arguments(
    example="memjax compare --names=memory_model,rmt,icae --out=runs/compare",
    flags=take(
        names={"what": "of architectures, all of them by default"},
        list={"what": "the architectures with their kind and status"},
        out={"what": "Folder of this comparison alone", "metavar": "FOLDER"},
        scale={"choices": ("tiny", "small", "pod"), "default": "small"},
        seeds={"default": [0, 1, 2]},
    ),
    notes="""
    Every architecture trains on the same sequences with the same optimizer, and keeps at most the
    same number of bits of a text. The task is to recall values by their keys from chunks that were
    written. The command writes compare.html: tables at equal stored bits, at equal training FLOPs,
    and for sequences up to four times as long, with controls and intervals over the seeds.

    A run takes about three CPU-minutes at --scale=small. An interrupted comparison resumes with the
    runs that are missing, and other names add rows to the page of the folder.
    """,
)


def run(given: Namespace) -> None:
    """Lists the architectures, or trains and compares them."""
    # These import JAX: after the flags are checked.
    from memjax.experiment.compare.plan import listing
    from memjax.experiment.compare.run import compare

    if given.list:
        print("\n".join(listing()))
        return
    MemjaxError.require(given.out, "--out: missing, expected a folder. Name one, or use --list.")
    compare(given.out, given.scale, tuple(given.names or ()), tuple(given.seeds))
