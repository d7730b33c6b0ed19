"""The command `memjax attribute --checkpoint=STAGE [--measure=NAMES] [--out=attribution.html]`: what each token takes from the memory.

Held-out texts are read with their memories and without, and a page shows their tokens coloured by how much it mattered; --json writes the
values. Measures are named with commas: occlusion_l1, occlusion_cosine, occlusion_loss, noise, gradient and, of oracles, entropy
(memjax/instruments/attribution.py says what they are):

    memjax attribute --checkpoint=runs/a/stages/autoencoder --measure=occlusion_loss,gradient

With --dataset, one measure of all rows of a split is written too, for another run of the same text, vocabulary and row length to be weighed by:

    memjax attribute --checkpoint=runs/a/stages/oracle --measure=occlusion_l1 --dataset=runs/a/attributions.npy
    memjax train --config=weighted.py --workdir=runs/b --config.data.attributions=runs/a/attributions.npy

Each text of the file is scaled to [0, 1], as the objective complement_weighted needs; the other weightings take --noscaled. The command runs
on one device.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from memjax.cli.arguments import read_own

EXAMPLE = "memjax attribute --checkpoint=runs/a/stages/autoencoder --measure=occlusion_loss --out=attribution.html"


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "Folder of the stage whose memories it is about.", flag_values=values)
    flags.DEFINE_list("measure", ["occlusion_loss"], "One measure, or several with commas.", flag_values=values)
    flags.DEFINE_string("out", "attribution.html", "Page to write.", flag_values=values)
    flags.DEFINE_string("json", None, "File to write the values to.", flag_values=values)
    flags.DEFINE_integer("limit", 16, "Held-out texts on the page, at most.", 1, flag_values=values)
    flags.DEFINE_string("data", None, "Data folder of a workdir; by default that of the checkpoint's.", flag_values=values)
    flags.DEFINE_string("dataset", None, "File (.npy) to write one measure of all rows of a split to.", flag_values=values)
    flags.DEFINE_enum("split", "train", ("train", "validation"), "Of --dataset; training reads train.", flag_values=values)
    flags.DEFINE_integer(
        "row_tokens", 0, "Of --dataset: tokens in a row; 0 is the checkpoint's config.data.row_tokens.", 0, flag_values=values
    )
    flags.DEFINE_boolean("scaled", True, "Of --dataset: scale each text to [0, 1].", flag_values=values)
    flags.DEFINE_string("ask", "blank_copy", "How a memory model is asked: blank_copy, copy or plain_copy.", flag_values=values)
    flags.DEFINE_integer("batch", 16, "Texts at a time.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "What noise is drawn from.", flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Writes the page and whatever else is asked for."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("checkpoint", "measure", "out"))
    if given is None:
        return 0
    if "://" in given["checkpoint"] and not given["data"]:
        raise flags.IllegalFlagValueError(
            f"--data is missing: a checkpoint in a bucket ({given['checkpoint']}) has no data beside it"
        )
    if given["dataset"] and len(given["measure"]) > 1:
        raise flags.IllegalFlagValueError(
            f"--dataset holds one measure, not {', '.join(given['measure'])}; name one by --measure"
        )
    _attribute(given)
    return 0


def _attribute(given: dict[str, Any]) -> None:
    # These import JAX: after the flags are known to be right.
    from memjax.data import open_rows
    from memjax.instruments import attribution, texts
    from memjax.instruments.system import open_system
    from memjax.training.progress import Reporter

    reporter, batch, seed = Reporter(), given["batch"], given["seed"]
    trained = open_system(given["checkpoint"], given["ask"])
    data = Path(given["data"]) if given["data"] else trained.data
    system, tokenizer = _with_tokenizer(trained, data)
    names = list(dict.fromkeys(given["measure"]))
    for name in names:
        attribution.check_measure(system, name)
    folder = data / f"rows-{given['row_tokens'] or trained.config.data.row_tokens}"
    rows = open_rows(folder, given["split"], tokenizer.fingerprint) if given["dataset"] else None
    shown = texts.held_out(data, system.length, given["limit"], tokenizer)
    found = {}
    with reporter.bar("attribute", len(names) * texts.batch_count(shown, batch)) as bar:
        for name in names:
            found[name] = attribution.attribute(system, trained.params, shown, name, batch, bar.advance, seed)
    _write(given, trained, shown, attribution.scored(system, shown), found, tokenizer, reporter)
    if rows is not None:
        with reporter.bar(f"attribute {given['split']}", len(rows)) as bar:
            attribution.write_attributions(
                given["dataset"], system, trained.params, rows, names[0], batch, given["scaled"], bar.advance, seed
            )
        reporter.say(f"{given['dataset']}: {names[0]} of {len(rows)} {given['split']} rows of {rows.row_tokens} tokens")


def _with_tokenizer(trained: Any, data: Path) -> tuple[Any, Any]:
    """The system and its tokenizer; imported weights do not know theirs, and take that of the data.

    Raises:
      TokenizerError: there is none.
      RowsError: it is of another vocabulary than the model.
    """
    import dataclasses

    from memjax.data import RowsError, Tokenizer
    from memjax.instruments.system import special_ids

    if trained.tokenizer is not None:
        return trained.system, trained.tokenizer
    tokenizer = Tokenizer.load(data)
    if tokenizer.vocabulary != trained.system.vocabulary:
        raise RowsError(
            f"{data}: of a vocabulary of {tokenizer.vocabulary}, while {trained.folder} was trained with {trained.system.vocabulary}"
        )
    return dataclasses.replace(trained.system, ids=special_ids(tokenizer)), tokenizer


def _write(
    given: dict[str, Any], trained: Any, shown: Any, counted: Any, found: dict[str, Any], tokenizer: Any, reporter: Any
) -> None:
    """The page, the JSON file, and a line for each measure."""
    import json

    from memjax.instruments import attribution, uncertainty
    from memjax.report.heatmap import Measure, write_heatmap

    pieces = [tokenizer.pieces(text) for text in shown]
    measures = [Measure(name, attribution.MEASURES[name], values) for name, values in found.items()]
    lead = f"{len(shown)} held-out texts of {shown.shape[1]} tokens, by the stage {trained.stage} at step {trained.step}."
    path = write_heatmap(given["out"], pieces, measures, shown, counted, lead=lead)
    means = {name: uncertainty.ratio(values.sum(axis=1), counted.sum(axis=1)) for name, values in found.items()}
    for name, mean in means.items():
        reporter.say(f"{name}: {mean} a token")
    reporter.say(f"{path}: {len(shown)} texts")
    if given["json"]:
        told = {
            "checkpoint": str(trained.folder),
            "stage": trained.stage,
            "step": trained.step,
            "means": means,
            "texts": [
                {
                    "ids": ids,
                    "pieces": pieces[row],
                    "scored": counted[row],
                    "values": {name: values[row] for name, values in found.items()},
                }
                for row, ids in enumerate(shown)
            ],
        }
        Path(given["json"]).write_text(json.dumps(uncertainty.to_json(told), indent=1) + "\n", encoding="utf-8")
        reporter.say(f"{given['json']}: their values")
