"""The command `memjax measure`: instruments on the memories of a trained stage."""

from argparse import Namespace
from collections.abc import Sequence

from memjax.cli.arguments import Arguments, UsageError, close_match, file_beside, refuse, take
from memjax.cli.flags import STAGE_PATH
from memjax.cli.joined import joined
from memjax.evaluation.instruments import suite
from memjax.progress import Reporter

ATTRIBUTION = "attribution"
ATTRIBUTIONS = (
    "occlusion_loss", "occlusion_l1", "occlusion_cosine", "noise", "gradient", "entropy",
)  # fmt: skip
"""The attribution measures; the first is the default."""
OBJECTIVES = ("blank_copy", "copy", "plain_copy", "blank_recall", "recall")
ONLY_SAVE = ("split", "sequence_length", "unscaled")
ARGUMENTS = Arguments(
    example="memjax measure runs/quickstart --instruments=information,attribution:gradient",
    words={"PATH": STAGE_PATH},
    flags=take(
        instruments={
            "what": f"{', '.join(suite.INSTRUMENTS)}; {ATTRIBUTION}, or {ATTRIBUTION}:MEASURE. By"
            f" default all but {ATTRIBUTION}",
        },
        recall_objective={"choices": OBJECTIVES},
        limit={"what": "held-out texts; by default 256, and 16 for attribution", "minimum": 2},
        data={},
        corpus={"what": "recall of another corpus"},
        batch_size={"what": "Texts", "default": 32},
        seed={"default": 0},
        out={
            "what": "Write all numbers to this file; by default instruments.json in the stage's"
            " folder",
            "metavar": "FILE",
        },
        save={
            "what": f"the {ATTRIBUTION} of all sequences of a split to this file (.npy), for"
            " config.data.attributions"
        },
        split={"choices": ("train", "validation"), "default": "train"},
        sequence_length={"what": "by default config.data.sequence_length of the stage"},
        unscaled={},
    ),
    notes=f"""
    Reads held-out text of the stage's run and prints a table per instrument; `memjax report` shows
    the numbers on the run's page. The stage needs a decoder that reads memories: family
    autoencoder, oracle or memory_model. `memjax probe` measures any encoder. By default a memory
    model reconstructs from memories alone, by blank_copy. A model trained to recall chunks by their
    places reconstructs by blank_recall, or by recall if it was trained on that alone. Results of
    other texts, or of another step or objective, in --out are replaced.

    The instrument {ATTRIBUTION} computes how much of each token comes from the memory. It writes a
    page of coloured texts, attribution.html, and the values, attribution.json, beside --out. Its
    measures are {", ".join(ATTRIBUTIONS)} (of oracles). --save, --split, --sequence_length,
    --unscaled and --seed belong to it; the objective complement_weighted needs attributions that
    span [0, 1], the other weightings --unscaled ones.
    """,
)


def run(given: Namespace) -> None:
    """Measures, prints and writes."""
    names, measures = split_instruments(given.instruments or tuple(suite.INSTRUMENTS))
    UsageError.require(
        not given.save or len(measures) == 1,
        f"--save: {len(measures)} attribution measures, expected one. Pass for example"
        f" --instruments={ATTRIBUTION}:{ATTRIBUTIONS[0]}.",
    )
    if not given.save:
        refuse(ARGUMENTS, given, ONLY_SAVE, "without --save")
    with joined(given) as reporter:
        _measure(given, names, measures, reporter)


def _measure(
    given: Namespace, names: Sequence[str], measures: Sequence[str], reporter: Reporter
) -> None:
    # These import JAX: after the flags are checked.
    from memjax.files import check_writable
    from memjax.inference import load
    from memjax.sharding import leads

    model = load(given.path)
    out = file_beside(given, model.folder, suite.FILE)
    check_writable(out)
    if names:
        with reporter.active():
            subject = suite.prepare_subject(
                model,
                given.recall_objective or "",
                given.limit or 256,
                given.data or "",
                given.corpus or "",
                given.batch_size,
            )
        for name in names:  # Each is written before the next one begins.
            with reporter.active():
                found = suite.run_instruments(subject, [name])
            for table in suite.tables_of(found):
                reporter.table(*table)
            if leads():
                suite.write_found(out, found)
        reporter.log(f"all numbers, with curves, in {out}")
    if measures:
        from memjax.cli.attribution import attribute

        attribute(model, measures, given, out.with_name("attribution.html"), reporter)


def split_instruments(chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """The instruments of the suite, and the attribution measures.

    Raises:
      UsageError: a name is unknown.
    """
    known = (*suite.INSTRUMENTS, ATTRIBUTION, *(f"{ATTRIBUTION}:{name}" for name in ATTRIBUTIONS))
    for name in chosen:
        UsageError.require(
            name in known,
            f"--instruments: {name!r}, expected some of {', '.join(known)}."
            f"{close_match(name, known)}",
        )
    names = [name for name in chosen if name in suite.INSTRUMENTS]
    others = [name.partition(":")[2] for name in chosen if name not in suite.INSTRUMENTS]
    measures = [name or ATTRIBUTIONS[0] for name in others]
    return list(dict.fromkeys(names)), list(dict.fromkeys(measures))
