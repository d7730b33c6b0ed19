"""Plots of the report, as PNG files.

All have one size and one style; each line is labelled at its end.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from memjax.evaluation import numbers
from memjax.experiment.report import words
from memjax.experiment.report.run import TERMS, Run

SIZE = (5.4, 3.35)
"""Inches; at the page's width an inch is about 90 pixels, on a phone about 65."""
DPI = 160
INK, SOFT, BAND = "#2b2f36", "#5c636d", "#f3f5f7"
DOTS: dict[str, Any] = {"marker": "o", "markersize": 3, "clip_on": False}
LOSS_STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 0.9, "alpha": 0.45},
    "validation": DOTS,
}
"""Style of a loss curve, by split."""
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


_RECALL: tuple[tuple[str, str, str, Any], ...] = (
    ("recall_accuracy", "tokens", words.BLUE, "-"),
    ("recall_blank_accuracy", "tokens, blank", words.BLUE, (0, (3, 2))),
    ("recall_exact", "whole chunks", words.GREEN, "-"),
    ("recall_blank_exact", "whole chunks, blank", words.GREEN, (0, (3, 2))),
    ("recall_accuracy_without_address", "without addresses", words.GREY, "-"),
)
"""Key in a model's results, label, colour and dashes of its line."""


class Plot(NamedTuple):
    """A plot on disk: its file, its alternative text, and its caption (without HTML)."""

    path: Path
    alt: str
    caption: str


class Label(NamedTuple):
    """The name of a line, drawn at the line's end."""

    y: float
    text: str
    colour: str


def draw_all(run: Run, folder: Path) -> tuple[list[Plot], list[Plot]]:
    """Draw all plots that the run has numbers for.

    Returns:
      Plots of the memories' content, and loss curves, one per objective.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    holds = [
        recall_by_memories(run, folder),
        recall_by_place(run, folder),
        by_position(run, folder),
        accuracy_over_training(run, folder),
    ]
    losses = [loss(run, term, folder) for term in reversed(TERMS)]
    return [plot for plot in holds if plot], [plot for plot in losses if plot]


def by_position(run: Run, folder: Path) -> Plot | None:
    """Plot copy accuracy at each position in the chunk, for every model that has it."""
    measured: dict[str, list[float]] = {}
    for model in dict.fromkeys((run.final, *run.controls, *run.curriculum)):
        shares = run.section("models", model).get("copy_accuracy_by_position")
        shares = [numbers.number(share) for share in shares] if isinstance(shares, list) else []
        if any(share is not None for share in shares):
            measured[model] = [math.nan if share is None else share for share in shares]
    if not measured:
        return None
    path = folder / "copy_by_position.png"
    with _figure(path, "Copy accuracy by position", "share of held-out tokens reconstructed") as (
        axes,
        labels,
    ):
        for model, shares in reversed(measured.items()):
            colour = words.model_colour(run, model)
            style: dict[str, Any] = {"linewidth": 1.6}
            if model == run.final:
                style = {"linewidth": 2.6, "zorder": 4}
            dashes = (0, (3, 2)) if model in run.curriculum[:-1] else "-"
            axes.plot(range(1, len(shares) + 1), shares, color=colour, linestyle=dashes, **style)
            last = next(share for share in reversed(shares) if math.isfinite(share))
            labels.append(Label(last, words.model_name(run, model), colour))
        axes.set_xlabel("position of the token in its chunk")
        axes.set_xlim(1, max(map(len, measured.values())))
        _shares(axes)
    means = (
        f"{words.model_name(run, model)} {numbers.percent(run.of_model(model, 'copy_accuracy'))}"
        for model in measured
    )
    return Plot(
        path,
        "Line plot of copy accuracy by position in the chunk, 0 to 100 per cent. Mean accuracies:"
        f" {', '.join(means)}.",
        "No earlier token of the chunk helps to predict the first one; only the memory does.",
    )


def recall_by_memories(run: Run, folder: Path) -> Plot | None:
    """Plot recall against the number of memories, and mark the longest trained on."""
    found = [(_by_memories(run, key, numbers.number), *line) for key, *line in _RECALL]
    measured = [line for line in found if line[0]]
    if not measured:
        return None
    path = folder / "recall_by_memories.png"
    with _figure(path, "Recall by number of memories", "share of held-out text recalled") as (
        axes,
        labels,
    ):
        for shares, label, colour, dashes in measured:
            values = list(shares.values())
            axes.plot(list(shares), values, color=colour, linestyle=dashes, **DOTS)
            labels.append(Label(values[-1], label, colour))
        sizes = sorted({size for shares, *_ in measured for size in shares})
        axes.set_xscale("log")
        axes.set_xticks(sizes, [numbers.count(size) for size in sizes])
        axes.minorticks_off()
        trained = numbers.number(run.section("data").get("chunks"))
        if trained is not None and trained > 1:
            axes.axvline(trained - 1, color=SOFT, linewidth=1, linestyle=":")
            where: Any = axes.get_xaxis_transform()
            style = {"fontsize": 7.5, "color": SOFT, "ha": "center"}
            axes.annotate("trained on", (trained - 1, 1.015), xycoords=where, **style)
        if (held := run.of_model(run.final, "autoencoder_exact")) is not None:
            axes.axhline(held, color=words.GREEN, linewidth=1, linestyle=":")
            labels.append(Label(held, "autoencoder", words.GREEN))
        axes.set_xlabel("memories in view")
        _shares(axes)
    said = (
        f"{label} {', '.join(f'{numbers.percent(x)} among {n:,}' for n, x in shares.items())}"
        for shares, label, *_ in measured
    )
    return Plot(
        path,
        f"Line plot of recall against the number of memories: {'; '.join(said)}.",
        "A chunk of the text is recalled by its place among all memories in view. Dashed: with all"
        " input tokens blanked out. Dotted: the memories of a training sequence, and the whole"
        " chunks that the autoencoder reconstructs from one memory each.",
    )


def recall_by_place(run: Run, folder: Path) -> Plot | None:
    """Plot whole chunks recalled against their place in the text, per number of memories."""
    measured = _by_memories(run, "recall_exact_by_place", _places)
    if not measured:
        return None
    path = folder / "recall_by_place.png"
    with _figure(path, "Recall by place", "share of held-out chunks recalled without an error") as (
        axes,
        labels,
    ):
        for number, (size, shares) in enumerate(measured.items()):
            colour = words.SCALE[number % len(words.SCALE)]
            middle = [(place + 0.5) / len(shares) for place in range(len(shares))]
            axes.plot(middle, shares, color=colour, linewidth=1.4)
            labels.append(Label(shares[-1], f"among {numbers.count(size)}", colour))
        axes.set_xlabel("place of the chunk among the memories in view")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["first", "middle", "last"])
        _shares(axes)
    worst = (
        f"{numbers.percent(min(shares))} among {numbers.count(size)}"
        for size, shares in measured.items()
    )
    return Plot(
        path,
        f"Line plot of exact recall by place. Worst tenth of the places: {', '.join(worst)}.",
        "Whole chunks with their own tokens so far shown, for each tenth of the places.",
    )


def _places(value: Any) -> list[float] | None:
    shares = [numbers.number(share) for share in value] if isinstance(value, list) else []
    found = [share for share in shares if share is not None]
    return found if found and len(found) == len(shares) else None


def _by_memories(run: Run, key: str, read: Callable[[Any], Any]) -> dict[int, Any]:
    """Return a mapping of the final model from the number of memories, ascending."""
    found = run.section("models", run.final, key)
    sizes = sorted(int(size) for size in found if size.isdecimal() and len(size) < 9 and int(size))
    shares = {size: read(found.get(str(size))) for size in sizes}
    return {size: share for size, share in shares.items() if share is not None}


def accuracy_over_training(run: Run, folder: Path) -> Plot | None:
    """Plot held-out accuracy of each retention task over the curriculum.

    Dashed lines show the final accuracy of the controls.
    """
    terms = [
        t
        for t in ("reconstruction", "blank_copy", "copy", "blank_recall", "recall")
        if any(run.curve(s, "validation", f"{t}/accuracy")[0] for s in run.curriculum)
    ]
    if not terms:
        return None
    path = folder / "accuracy_over_training.png"
    with _figure(path, "Reconstruction over training", "share of held-out tokens correct") as (
        axes,
        labels,
    ):
        spans = _spans(run, [stage for stage in run.curriculum if run.steps(stage)])
        for term in terms:
            end, colour = math.nan, words.TERM_COLOURS[term]
            for stage, start, _ in spans:
                steps, values = run.curve(stage, "validation", f"{term}/accuracy")
                axes.plot([start + step for step in steps], values, color=colour, **DOTS)
                end = values[-1] if values else end
            labels.append(Label(end, words.TERM_NAMES[term].lower(), colour))
        ends = [f"{label.text} ends at {numbers.percent(label.y)}" for label in labels]
        for control in run.controls:
            share = run.of_model(control, "copy_accuracy")
            if share is not None:
                colour = words.model_colour(run, control)
                axes.axhline(share, color=colour, linewidth=1.4, linestyle=(0, (4, 2.5)))
                labels.append(Label(share, words.model_name(run, control), colour))
        _shares(axes)
        _stages(axes, spans)
    return Plot(
        path,
        "Line plot of held-out accuracy of the retention tasks over the curriculum:"
        f" {', '.join(ends)}.",
        "Each stage starts from the weights of the previous one. Dashed: final copy accuracy of the"
        " controls.",
    )


def loss(run: Run, term: str, folder: Path) -> Plot | None:
    """Plot train and validation loss of one objective across its stages, with the controls."""
    key, path = f"{term}/nats", folder / f"loss_{term}.png"
    title, caption = words.TERM_NAMES[term], words.TERM_CAPTIONS[term]
    own, others = (
        [s for s in stages if any(run.curve(s, split, key)[0] for split in LOSS_STYLES)]
        for stages in (run.curriculum, run.controls)
    )
    if not own and not others:
        return None
    spans = _spans(run, own)
    starts = {stage: start for stage, start, _ in spans}
    name = words.model_name(run, run.final) if term == "next_token" else title.lower()
    ends, shown = [], []
    with _figure(
        path, f"{title} loss", "nats per token · thin: training batches, dots: held-out text"
    ) as (axes, labels):
        for stage in reversed(own + others):
            colour = words.TERM_COLOURS[term] if stage in own else words.model_colour(run, stage)
            for split, style in LOSS_STYLES.items():
                steps, values = run.curve(stage, split, key)
                axes.plot(
                    [starts.get(stage, 0.0) + x for x in steps], values, color=colour, **style
                )
                shown += values
            end = (run.curve(stage, "validation", key)[1] or run.curve(stage, "train", key)[1])[-1]
            ends.append(f"{words.stage_name(stage)} ends at {end:.2f}")
            if stage not in own[:-1]:
                label = name if stage in own else words.model_name(run, stage)
                labels.append(Label(end, f"{label} {end:.2f}", colour))
        chance = numbers.number(run.section("chance").get("uniform_nats"))
        if chance:
            axes.axhline(chance, color=SOFT, linewidth=1, linestyle=":")
            labels.append(Label(chance, f"guessing {chance:.2f}", SOFT))
        lowest, highest = min(shown), max([*shown, chance or 0.0])
        if 0 < lowest < highest / 25:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if lowest > highest / 250 else (1,))
            )
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        else:
            room = 0.08 * (highest - 0.9 * lowest)
            axes.set_ylim(max(0.0, 0.9 * lowest - room), highest + room)
        _stages(axes, spans, max(map(run.steps, others), default=0.0))
    if others and own:
        caption += " Controls start at the first step that trains this objective."
    alt = f"Line plot of {title.lower()} loss in nats per token: {', '.join(ends)}."
    return Plot(path, alt, caption)


@contextlib.contextmanager
def _figure(path: Path, title: str, subtitle: str) -> Iterator[tuple[Axes, list[Label]]]:
    """Yield axes to draw on and a list for the labels of their lines, and save the figure."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, dpi=DPI)
        axes = figure.add_axes((0.09, 0.145, 0.61, 0.65))
        figure.text(0.02, 0.945, title, fontsize=11, fontweight="bold", va="center")
        figure.text(0.02, 0.885, subtitle, fontsize=8.5, color=SOFT, va="center")
        labels: list[Label] = []
        yield axes, labels
        _name_lines(axes, labels)
        figure.savefig(path, facecolor="white", metadata={"Software": None})


def _spans(run: Run, stages: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return (stage, first step, last step) of stages laid end to end on a common axis."""
    spans, start = [], 0.0
    for stage in stages:
        stop = start + max(run.steps(stage), run.last_step(stage))
        spans.append((stage, start, stop))
        start = stop
    return spans


def _stages(axes: Axes, spans: Sequence[tuple[str, float, float]], stop: float = 0.0) -> None:
    """Draw bands behind the curves, each with its stage's name where it fits."""
    stop = max([stop, 1.0] + [end for _, _, end in spans])
    axes.set_xlim(0, stop)
    axes.set_xlabel("training steps, stages end to end" if len(spans) > 1 else "training steps")
    axes.grid(visible=False, axis="x")
    low = 0.0
    for index, (stage, start, end) in enumerate(spans):
        if index % 2 == 0:
            axes.axvspan(start, end, color=BAND, linewidth=0, zorder=0)
        # About 54 characters of this size fit over the axis; a name that would collide moves up.
        half = 0.5 * len(stage) / 54 * stop
        centre = min(max((start + end) / 2, half), stop - half)
        raised = centre - half < low and index > 0
        low = max(low, centre + half) if not raised else low
        axes.text(
            centre,
            1.065 if raised else 1.015,
            words.stage_name(stage),
            transform=axes.get_xaxis_transform(),
            fontsize=7.5,
            color=SOFT,
            ha="center",
            va="bottom",
        )


def _shares(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])


def _name_lines(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label at the right, at the height of its line's end.

    Labels that would overlap are moved apart.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted((one for one in labels if math.isfinite(one.y)), key=lambda one: one.y)
    heights = [min(max(float(to_axes.transform((0, one.y))[1]), 0.0), 1.0) for one in placed]
    gap = 0.068
    for _ in range(200):
        for index in range(1, len(heights)):
            overlap = gap - (heights[index] - heights[index - 1])
            if overlap > 1e-6:
                heights[index] += overlap / 2
                heights[index - 1] -= overlap / 2
    for height, label in zip(heights, placed, strict=True):
        axes.text(
            1.025,
            height,
            label.text,
            transform=axes.transAxes,
            color=label.colour,
            fontsize=8.5,
            va="center",
        )
