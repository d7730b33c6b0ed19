"""The command `memjax measure --checkpoint=STAGE`: how much the memories of a trained stage hold, by instruments.

    memjax measure --checkpoint=runs/quickstart/stages/autoencoder
    memjax measure --checkpoint=runs/quickstart/stages/combined --ask=copy --instruments=information,recall --limit=64

reads held-out text of the stage's own run, prints a table an instrument, and writes `instruments.json` beside the checkpoints, which
`memjax report` shows on the run's page. Stages of families autoencoder, oracle and memory_model have decoders that read memories; any
encoder is measured by `memjax probe`.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from memjax.cli.arguments import read_own

EXAMPLE = "memjax measure --checkpoint=runs/quickstart/stages/autoencoder"
INSTRUMENTS = (
    "information", "recall", "compression", "quantisation", "sensitivity", "capacity", "generalisation", "retrieval", "access",
)  # fmt: skip
WIDTH = 160
"""Columns where the output is no terminal."""
ASKS = ("blank_copy", "copy", "plain_copy")


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "Folder of the stage.", flag_values=values)
    flags.DEFINE_list("instruments", list(INSTRUMENTS), "Which ones, with commas.", flag_values=values)
    flags.DEFINE_enum("ask", "blank_copy", ASKS, "How a memory model is asked for what it holds.", flag_values=values)
    flags.DEFINE_integer("limit", 256, "Held-out texts, at most.", 2, flag_values=values)
    flags.DEFINE_string("corpus", "", "Another corpus, for generalisation, as config.data.corpus.", flag_values=values)
    flags.DEFINE_string("data", "", "Data folder of a workdir; by default that of the checkpoint's.", flag_values=values)
    flags.DEFINE_integer("batch", 32, "Texts at a time.", 1, flag_values=values)
    flags.DEFINE_string("out", "", "JSON file; by default instruments.json in the stage's folder.", flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Measures, prints and writes."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("checkpoint",))
    if given is None:
        return 0
    for name in given["instruments"]:
        if name not in INSTRUMENTS:
            raise flags.IllegalFlagValueError(f"--instruments has no {name!r}; there are {', '.join(INSTRUMENTS)}")
    # These import JAX: after the flags are known to be right.
    from memjax.instruments.suite import FILE, prepare_subject, run_instruments, write_found
    from memjax.instruments.system import open_system
    from memjax.report.instruments import tables
    from memjax.training.progress import Reporter

    reporter = Reporter()
    trained = open_system(given["checkpoint"], given["ask"])
    subject = prepare_subject(trained, given["limit"], given["data"], given["corpus"], given["batch"])
    found = run_instruments(subject, given["instruments"], reporter.bar)
    if not reporter.console.is_terminal:
        reporter.console.width = WIDTH
    for table in tables(found):
        reporter.console.print(table.rich())
    out = Path(given["out"] or trained.folder / FILE)
    write_found(out, found)
    reporter.say(f"all numbers, with curves, in {out}")
    return 0
