"""The report's plots, as PNG files. Shapes of a kind: one size, one style, lines named where they end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from memjax.report import numbers, words
from memjax.report.run import TERMS, Run

SIZE = (5.4, 3.35)
"""Inches; at the page's width an inch is about 90 pixels, on a telephone about 65."""
DPI = 160
INK, SOFT, BAND = "#2b2f36", "#5c636d", "#f3f5f7"
DOTS: dict[str, Any] = {"marker": "o", "markersize": 3, "clip_on": False}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c4c9d0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.6,
    "xtick.color": "#c4c9d0",
    "ytick.color": "#c4c9d0",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot on disk: its file, the words for who cannot see it, and the caption below it (HTML-free)."""

    path: Path
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Label:
    """The name of a line, written where the line ends."""

    y: float
    text: str
    colour: str


def draw_all(run: Run, folder: Path) -> tuple[list[Plot], list[Plot]]:
    """Draws what the run has numbers for: plots of what memories hold, and loss curves, one for each term."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    holds = [plot for plot in (by_position(run, folder), accuracy_over_training(run, folder)) if plot]
    losses = [plot for term in reversed(TERMS) if (plot := loss(run, term, folder))]
    return holds, losses


def by_position(run: Run, folder: Path) -> Plot | None:
    """Copy accuracy at each position in the chunk, every model that has it."""
    measured = []
    for model in dict.fromkeys((run.final, *run.controls, *run.curriculum)):
        shares = run.section("models", model).get("copy_accuracy_by_position")
        shares = [numbers.number(share) for share in shares] if isinstance(shares, list) else []
        if any(share is not None for share in shares):
            measured.append((model, [math.nan if share is None else share for share in shares]))
    if not measured:
        return None
    with _figure(folder / "copy_by_position.png", "Copy accuracy by position", "share of held-out tokens read back") as axes:
        labels = []
        for model, shares in reversed(measured):
            colour = words.model_colour(run, model)
            final = model == run.final
            style: dict[str, Any] = {"linewidth": 2.6, "zorder": 4} if final else {"linewidth": 1.6}
            dashes = (0, (3, 2)) if model in run.curriculum[:-1] else "-"
            axes.plot(range(1, len(shares) + 1), shares, color=colour, linestyle=dashes, **style)
            labels.append(Label(_last(shares), words.model_name(run, model), colour))
        axes.set_xlabel("position of the token in its chunk")
        axes.set_xlim(1, max(len(shares) for _, shares in measured))
        _shares(axes)
        _name_lines(axes, labels)
    means = (f"{words.model_name(run, model)} {numbers.percent(run.of_model(model, 'copy_accuracy'))}" for model, _ in measured)
    return Plot(
        folder / "copy_by_position.png",
        f"Line plot of copy accuracy by position in the chunk, 0 to 100 per cent. Mean accuracies: {', '.join(means)}.",
        "The first token of a chunk is the hard one: no earlier token of the chunk hints at it, so only the memory can tell.",
    )


def accuracy_over_training(run: Run, folder: Path) -> Plot | None:
    """Held-out accuracy of each retention task over the curriculum; the controls' end as a dashed line."""
    terms = [
        t
        for t in ("reconstruction", "blank_copy", "copy")
        if any(run.curve(s, "validation", f"{t}/accuracy")[0] for s in run.curriculum)
    ]
    if not terms:
        return None
    with _figure(
        folder / "accuracy_over_training.png", "Reading back, over training", "share of held-out tokens right"
    ) as axes:
        spans = _spans(run, [stage for stage in run.curriculum if run.steps(stage)])
        labels, ends = [], []
        for term in terms:
            end = math.nan
            for stage, start, _ in spans:
                steps, values = run.curve(stage, "validation", f"{term}/accuracy")
                axes.plot([start + step for step in steps], values, color=words.TERM_COLOURS[term], **DOTS)
                end = values[-1] if values else end
            labels.append(Label(end, words.TERM_NAMES[term].lower(), words.TERM_COLOURS[term]))
            ends.append(f"{words.TERM_NAMES[term].lower()} ends at {numbers.percent(end)}")
        for control in run.controls:
            share = run.of_model(control, "copy_accuracy")
            if share is not None:
                colour = words.model_colour(run, control)
                axes.axhline(share, color=colour, linewidth=1.4, linestyle=(0, (4, 2.5)))
                labels.append(Label(share, words.model_name(run, control), colour))
        _shares(axes)
        _stages(axes, spans)
        _name_lines(axes, labels)
    return Plot(
        folder / "accuracy_over_training.png",
        f"Line plot of held-out accuracy of the retention tasks over the curriculum: {', '.join(ends)}.",
        "Each stage hands its weights to the next. Dashed: copy accuracy of the finished controls.",
    )


def loss(run: Run, term: str, folder: Path) -> Plot | None:
    """Train and validation loss of one term, across the stages that train it, controls overlaid."""
    key = f"{term}/nats"
    has = [stage for stage in run.curriculum if run.curve(stage, "train", key)[0] or run.curve(stage, "validation", key)[0]]
    others = [stage for stage in run.controls if run.curve(stage, "train", key)[0] or run.curve(stage, "validation", key)[0]]
    if not has and not others:
        return None
    path, colour = folder / f"loss_{term}.png", words.TERM_COLOURS[term]
    spans = _spans(run, has)
    ends, labels, lowest, highest = [], [], math.inf, 0.0
    with _figure(path, f"{words.TERM_NAMES[term]} loss", "nats a token · thin: training batches, dots: held-out text") as axes:
        lines = [(stage, start, colour, words.TERM_NAMES[term].lower()) for stage, start, _ in spans]
        lines = [(s, x, c, words.model_name(run, run.final)) if term == "next_token" else (s, x, c, n) for s, x, c, n in lines]
        lines += [(stage, 0.0, words.model_colour(run, stage), words.model_name(run, stage)) for stage in others]
        for stage, start, shade, name in reversed(lines):
            styles: dict[str, dict[str, Any]] = {"train": {"linewidth": 0.9, "alpha": 0.45}, "validation": DOTS}
            for split, style in styles.items():
                steps, values = run.curve(stage, split, key)
                axes.plot([start + step for step in steps], values, color=shade, **style)
                lowest, highest = min([lowest, *values]), max([highest, *values])
            end = (run.curve(stage, "validation", key)[1] or run.curve(stage, "train", key)[1])[-1]
            if stage in others or stage == has[-1]:
                labels.append(Label(end, f"{name} {end:.2f}", shade))
            ends.append(f"{words.stage_name(stage)} ends at {end:.2f}")
        chance = numbers.number(run.section("chance").get("uniform_nats"))
        if chance:
            axes.axhline(chance, color=SOFT, linewidth=1, linestyle=":")
            labels.append(Label(chance, f"guessing {chance:.2f}", SOFT))
            highest = max(highest, chance)
        if 0 < lowest < highest / 25:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if lowest > highest / 250 else (1,)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        else:
            room = 0.08 * (highest - 0.9 * lowest)
            axes.set_ylim(max(0.0, 0.9 * lowest - room), highest + room)
        stop = max([stop for _, _, stop in spans] + [run.steps(stage) for stage in others])
        _stages(axes, spans, stop)
        _name_lines(axes, labels)
    caption = words.TERM_CAPTIONS[term]
    if others and has:
        caption += " Controls are drawn from the first step that trains it."
    return Plot(path, f"Line plot of {words.TERM_NAMES[term].lower()} loss in nats a token: {', '.join(ends)}.", caption)


@contextlib.contextmanager
def _figure(path: Path, title: str, subtitle: str) -> Iterator[Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, dpi=DPI)
        axes = figure.add_axes((0.09, 0.145, 0.61, 0.65))
        figure.text(0.02, 0.945, title, fontsize=11, fontweight="bold", va="center")
        figure.text(0.02, 0.885, subtitle, fontsize=8.5, color=SOFT, va="center")
        yield axes
        figure.savefig(path, facecolor="white", metadata={"Software": None})


def _spans(run: Run, stages: Sequence[str]) -> list[tuple[str, float, float]]:
    """Stages laid end to end: (stage, first step, last step) on the common axis."""
    spans, start = [], 0.0
    for stage in stages:
        stop = start + max(run.steps(stage), run.last_step(stage))
        spans.append((stage, start, stop))
        start = stop
    return spans


def _stages(axes: Axes, spans: Sequence[tuple[str, float, float]], stop: float = 0.0) -> None:
    """Bands behind the curves, each with its stage's name where there is room for it."""
    stop = max([stop, 1.0] + [end for _, _, end in spans])
    axes.set_xlim(0, stop)
    axes.set_xlabel("training steps, stages end to end" if len(spans) > 1 else "training steps")
    axes.grid(visible=False, axis="x")
    low = 0.0
    for index, (stage, start, end) in enumerate(spans):
        if index % 2 == 0:
            axes.axvspan(start, end, color=BAND, linewidth=0, zorder=0)
        # About 54 characters of this size fit over the whole axis; a short stage's name steps up a line when it would collide.
        half = 0.5 * len(stage) / 54 * stop
        centre = min(max((start + end) / 2, half), stop - half)
        raised = centre - half < low and index > 0
        low = max(low, centre + half) if not raised else low
        axes.text(
            centre, 1.065 if raised else 1.015, words.stage_name(stage), transform=axes.get_xaxis_transform(), fontsize=7.5,
            color=SOFT, ha="center", va="bottom",
        )  # fmt: skip


def _shares(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])


def _name_lines(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes each label at the right, at the height its line ends at, moved apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = [(float(to_axes.transform((0, label.y))[1]), label) for label in labels if math.isfinite(label.y)]
    placed.sort(key=lambda pair: pair[0])
    gap = 0.068
    heights = [min(max(height, 0.0), 1.0) for height, _ in placed]
    for _ in range(200):
        for index in range(1, len(heights)):
            overlap = gap - (heights[index] - heights[index - 1])
            if overlap > 1e-6:
                heights[index] += overlap / 2
                heights[index - 1] -= overlap / 2
    for height, (_, label) in zip(heights, placed, strict=True):
        axes.text(1.025, height, label.text, transform=axes.transAxes, color=label.colour, fontsize=8.5, va="center")


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)
