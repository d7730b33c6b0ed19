"""Texts whose tokens are coloured by their attribution: one page that needs no other file and runs no script."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from memjax.report.passages import visible
from memjax.report.run import ReportError

CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t\r"} | {0x0D: "\u240d", 0x7F: "\u2421"}
"""Characters that HTML forbids or swallows, as the pictures Unicode has of them."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One value a token."""

    name: str
    """What it is selected by."""
    words: str
    """What it is, in a sentence's part: follows the name and a colon."""
    values: np.ndarray
    """[N, T]; lists of lists do as well."""


class HeatmapError(ReportError):
    """Pieces, values or ids are not of the same texts; the message says which."""


def write_heatmap(
    path: str | os.PathLike,
    pieces: Sequence[Sequence[str]],
    measures: Sequence[Measure],
    ids: Any = None,
    counted: Any = None,
    title: str = "What each token takes from the memory",
    lead: str = "",
) -> Path:
    """Writes the page and returns its path.

    A token's colour is its value between the least and the largest of its text, the darkest being the largest; the value itself and the
    token's id stand in its tooltip.

    Args:
      path: of the page.
      pieces: N texts of T strings, one a token, as `Tokenizer.pieces` gives them.
      measures: of which one is shown at a time.
      ids: [N, T] of the tokens, for tooltips.
      counted: [N, T], False where a token has no value; by default all have.
      title: of the page.
      lead: a sentence below it: what was measured.

    Raises:
      HeatmapError: there is nothing to show, or shapes differ.
    """
    if not measures or not len(pieces):
        raise HeatmapError(f"{path}: there is nothing to show: {len(pieces)} texts, {len(measures)} measures")
    shape = (len(pieces), len(pieces[0]))
    given = {f"values of {measure.name}": measure.values for measure in measures} | {"ids": ids, "counted": counted}
    for what, array in given.items():
        if array is not None and np.shape(array) != shape:
            raise HeatmapError(f"{path}: {what} are of shape {np.shape(array)}, the pieces of {shape}")
    if any(len(text) != shape[1] for text in pieces):
        raise HeatmapError(f"{path}: texts are of {sorted({len(text) for text in pieces})} pieces; they must be equally long")
    counted = np.ones(shape, bool) if counted is None else np.asarray(counted, bool)
    for measure in measures:
        if not np.isfinite(np.asarray(measure.values)[counted]).all():
            raise HeatmapError(f"{path}: values of {measure.name} hold NaNs or infinities; there is no colour for them")
    texts = [
        _text([visible(piece) for piece in text], measures, row, None if ids is None else ids[row], counted[row])
        for row, text in enumerate(pieces)
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memjax.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("heatmap.html.jinja").render(title=title, lead=lead, measures=measures, texts=texts)
    path = Path(path)
    # Lone surrogates, which no text file can hold, become question marks.
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def shares(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Values [T] of a text from 0, the least that counts, to 1, the largest; 0 where they are all the same or do not count."""
    told = values[counted]
    if not told.size or np.ptp(told) == 0:
        return np.zeros(values.shape)
    return np.where(counted, (values - told.min()) / np.ptp(told), 0.0)


def _text(pieces: Sequence[str], measures: Sequence[Measure], row: int, ids: Any, counted: np.ndarray) -> dict[str, Any]:
    """What the page shows of one text: its tokens, and the ends of every measure's scale."""
    values = [np.asarray(measure.values[row], np.float64) for measure in measures]
    colours = [shares(one, counted) for one in values]
    ends = [(_number(one[counted].min()), _number(one[counted].max())) if counted.any() else ("–", "–") for one in values]
    tokens = []
    for t, piece in enumerate(pieces):
        title = [f"token {t}" if ids is None else f"token {t}, id {int(ids[t])}"]
        title += (
            [f"{measure.name} {_number(one[t])}" for measure, one in zip(measures, values, strict=True)]
            if counted[t]
            else ["no value"]
        )
        style = ";".join(f"--a{i}:{round(float(colour[t]), 3):g}" for i, colour in enumerate(colours))
        # A piece that prints as nothing could not be pointed at.
        tokens.append(
            {"text": piece.translate(CONTROLS) or "∅", "title": "\n".join(title), "style": style, "counted": counted[t]}
        )
    return {"tokens": tokens, "ends": ends}


def _number(value: float) -> str:
    return f"{value:.6g}"
