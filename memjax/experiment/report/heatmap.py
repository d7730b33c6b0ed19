"""A page of texts whose tokens are coloured by their attribution.

The page is self-contained and runs no script.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.experiment.report.passages import visible
from memjax.experiment.report.run import ReportError
from memjax.experiment.templates import render, write_page


@dataclasses.dataclass(frozen=True)
class Measure:
    """One value per token."""

    name: str
    """Label that selects the measure."""
    words: str
    """Description, shown after the name and a colon."""
    values: np.ndarray
    """[N, T], an array or lists of lists."""


class HeatmapError(ReportError):
    """Pieces, values or ids are not of the same texts; the message names which."""


def write_heatmap(
    path: str | os.PathLike,
    pieces: Sequence[Sequence[str]],
    measures: Sequence[Measure],
    ids: Any = None,
    counted: Any = None,
    title: str = "Attribution of each token to the memory",
    lead: str = "",
) -> Path:
    """Write the page and return its path.

    A token's colour is its value between the minimum and the maximum of its text; the maximum is
    darkest. The tooltip shows the value and the token's id.

    Args:
      path: path of the page.
      pieces: N texts of T strings, one per token, as from `Tokenizer.pieces`.
      measures: measures to choose from; the page shows one at a time.
      ids: [N, T] token ids, for tooltips.
      counted: [N, T], False where a token has no value; by default all tokens have one.
      title: title of the page.
      lead: a sentence below the title: what was measured.

    Raises:
      HeatmapError: there are no texts or no measures, or shapes differ.
    """
    HeatmapError.require(
        measures and len(pieces),
        f"{path}: got {len(pieces)} texts and {len(measures)} measures, expected at least one of"
        " each",
    )
    shape = (len(pieces), len(pieces[0]))
    given = {f"values of {measure.name}": measure.values for measure in measures} | {
        "ids": ids,
        "counted": counted,
    }
    for what, array in given.items():
        HeatmapError.require(
            array is None or np.shape(array) == shape,
            f"{path}: got {what} of shape {np.shape(array)}, expected {shape} as the pieces",
        )
    HeatmapError.require(
        all(len(text) == shape[1] for text in pieces),
        f"{path}: got texts of {sorted({len(text) for text in pieces})} pieces, expected equal"
        " lengths",
    )
    counted = np.ones(shape, bool) if counted is None else np.asarray(counted, bool)
    for measure in measures:
        HeatmapError.require(
            np.isfinite(np.asarray(measure.values)[counted]).all(),
            f"{path}: got NaNs or infinities in the values of {measure.name}, expected finite"
            " numbers",
        )
    texts = [
        _text(
            [visible(piece) for piece in text],
            measures,
            row,
            None if ids is None else ids[row],
            counted[row],
        )
        for row, text in enumerate(pieces)
    ]
    context = {"title": title, "lead": lead, "measures": measures, "texts": texts}
    return write_page(path, render("report/heatmap.html.jinja", {}, **context))


def shares(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Scale the values [T] of a text from 0 (minimum) to 1 (maximum).

    The result is 0 where a token is not counted, and everywhere if all counted values are equal.
    """
    used = values[counted]
    if not used.size or np.ptp(used) == 0:
        return np.zeros(values.shape)
    return np.where(counted, (values - used.min()) / np.ptp(used), 0.0)


def _text(
    pieces: Sequence[str], measures: Sequence[Measure], row: int, ids: Any, counted: np.ndarray
) -> dict[str, Any]:
    """Return the template's variables of one text: its tokens, and the ends of every scale."""
    values = [np.asarray(measure.values[row], np.float64) for measure in measures]
    colours = [shares(one, counted) for one in values]
    ends = [
        (_number(one[counted].min()), _number(one[counted].max())) if counted.any() else ("–", "–")
        for one in values
    ]
    tokens = []
    for t, piece in enumerate(pieces):
        title = [f"token {t}" if ids is None else f"token {t}, id {int(ids[t])}"]
        title += (
            [
                f"{measure.name} {_number(one[t])}"
                for measure, one in zip(measures, values, strict=True)
            ]
            if counted[t]
            else ["no value"]
        )
        style = ";".join(
            f"--a{i}:{round(float(colour[t]), 3):g}" for i, colour in enumerate(colours)
        )
        # An empty piece would have no area for the tooltip.
        tokens.append(
            {
                "text": piece or "∅",
                "title": "\n".join(title),
                "style": style,
                "counted": counted[t],
            }
        )
    return {"tokens": tokens, "ends": ends}


def _number(value: float) -> str:
    return f"{value:.6g}"
