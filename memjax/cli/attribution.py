"""The instrument attribution of `memjax measure`: how much of each token comes from the memory."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from memjax.data import open_rows
from memjax.evaluation.instruments import attribution
from memjax.experiment.report.heatmap import Measure, write_heatmap
from memjax.files import write_json
from memjax.inference import TrainedModel, texts
from memjax.objectives import uncertainty
from memjax.progress import Reporter
from memjax.sharding import leads

TEXTS = 16
"""Texts on a page, unless --limit is given."""


def attribute(
    model: TrainedModel, names: Sequence[str], given: Namespace, page: Path, reporter: Reporter
) -> None:
    """Writes a page of held-out texts, their values, and with --save those of a whole split.

    Args:
      model: the stage.
      names: of `attribution.MEASURES`.
      given: the flags of `memjax measure`.
      page: the page to write; the values are written beside it, as JSON.
      reporter: shows progress.
    """
    model, batch, seed = texts.with_data(model, given.data or ""), given.batch_size, given.seed
    codec, tokenizer = model.codec(given.recall_objective or ""), model.required_tokenizer
    for name in names:
        attribution.check_measure(codec, name)
    packing = model.config.data.packing
    length = given.sequence_length or model.config.data.sequence_length
    folder = model.data / f"rows-{length}"
    rows = open_rows(folder, given.split, tokenizer.fingerprint) if given.save else None
    limit = given.limit or TEXTS
    shown = texts.held_out(model.data, codec.length, limit, tokenizer, packing=packing)
    with reporter.active():
        found = {
            name: attribution.attribute(codec, model.params, shown, name, batch, seed)
            for name in names
        }
    if leads():
        _write(page, model, shown, attribution.scored(codec, shown), found, reporter)
    if rows is None:
        return
    with reporter.active():
        attribution.write_attributions(
            given.save,
            codec,
            model.params,
            rows,
            names[0],
            batch,
            not given.unscaled,
            seed,
        )
    reporter.log(
        f"{given.save}: {names[0]} of {len(rows)} {given.split} sequences of {rows.row_tokens}"
        " tokens"
    )


def _write(
    page: Path,
    model: TrainedModel,
    shown: np.ndarray,
    counted: np.ndarray,
    found: Mapping[str, np.ndarray],
    reporter: Reporter,
) -> None:
    """Writes the page and the JSON file, and logs a line per measure."""
    pieces = [model.required_tokenizer.pieces(text) for text in shown]
    measures = [Measure(name, attribution.MEASURES[name], values) for name, values in found.items()]
    lead = (
        f"{len(shown)} held-out texts of {shown.shape[1]} tokens, by the stage {model.stage}"
        f" at step {model.step}."
    )
    write_heatmap(page, pieces, measures, shown, counted, lead=lead)
    means = {
        name: uncertainty.ratio(values.sum(axis=1), counted.sum(axis=1))
        for name, values in found.items()
    }
    for name, mean in means.items():
        reporter.log(f"{name}: {mean} per token")
    contents = {
        "checkpoint": model.path,
        "stage": model.stage,
        "step": model.step,
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
    values = page.with_suffix(".json")
    write_json(values, uncertainty.to_json(contents), indent=1)
    reporter.log(f"{page}: {len(shown)} texts; their values are in {values}")
