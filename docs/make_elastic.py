"""Make docs/elastic.md and its plot: one training for every size of a memory, beside one for each.

    python docs/make_elastic.py FOLDER                  measure missing runs, write the page
    python docs/make_elastic.py FOLDER --only=NAME,...  measure missing runs of these names alone
    python docs/make_elastic.py FOLDER --steps=2        try the command, in FOLDER/trial
    python docs/make_elastic.py --list                  list all runs and their settings
    python docs/make_elastic.py --page                  write the page from the stored runs

A run trains an autoencoder and a decoder on its frozen encoder. Workdirs are kept in FOLDER,
outside the repository. Every finished run is in docs/elastic.json and is skipped by the next call;
a run that was stopped resumes at its last checkpoint. Delete a run from the file, and its workdir,
to measure it again. All runs together take about an hour on two cores.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

from docs import elastic_measure  # noqa: E402
from docs.experiments import (  # noqa: E402
    about,
    arguments,
    fill,
    measure_all,
    read,
    run,
    train,
    write,
)
from memjax.cli.arguments import read_config  # noqa: E402
from memjax.experiment.report import words  # noqa: E402
from memjax.experiment.report.plots import SOFT, STYLE  # noqa: E402

DATA, PAGE, TEMPLATE, PLOT = (
    ROOT / "docs" / f"elastic.{end}" for end in ("json", "md", "md.jinja", "svg")
)
CONFIG = "configs/quickstart.py"
VECTORS, LENGTHS = (1, 2, 4), (16, 32)
POINTS = tuple((vectors, length) for length in LENGTHS for vectors in VECTORS)
"""Vectors of a memory, and tokens of a chunk."""
WIDTH = 128
"""Numbers of a vector."""
STEPS = {"autoencoder": 500, "combined": 300}
"""Steps of each stage of a training for one point."""
ELASTIC = "elastic"
"""The run for all points."""
SCORED = {"blank_recall": 128, "recall": 64, "next_token": 128}
"""Tokens of a sequence that each objective scores."""
LIMIT = 2.0
"""Points of accuracy that the run for all points may be below a run for one."""
TRIED = "tried"
"""The key in docs/elastic.json of what was tried before."""
MEASURES = {
    "reconstructed": "tokens reconstructed, %",
    "recalled": "tokens recalled among 64, %",
    "nats": "nats per next token",
}
COLOURS = {16: words.BLUE, 32: words.ORANGE}


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, and the points that it is measured at."""

    name: str
    label: str
    points: tuple[tuple[int, int], ...]

    @property
    def vectors(self) -> int:
        """K."""
        return max(vectors for vectors, _ in self.points)

    @property
    def length(self) -> int:
        """L."""
        return max(length for _, length in self.points)

    def steps(self, trial: int = 0) -> dict[str, int]:
        """Return the steps of each stage: those of trainings for each point, summed."""
        return {name: (trial or steps) * len(self.points) for name, steps in STEPS.items()}


def name_of(vectors: int, length: int) -> str:
    """Return the name of a point, and of the run for it alone."""
    return f"{vectors}x{length}"


def every_run() -> list[Run]:
    """Return all runs in their order."""
    alone = [Run(name_of(*point), f"{point[0]} of {point[1]} tokens", (point,)) for point in POINTS]
    return [*alone, Run(ELASTIC, "all numbers of vectors and chunk lengths", POINTS)]


def overrides(one: Run, trial: int = 0) -> dict[str, str]:
    """Return the settings of a run by key."""
    elastic = len(one.points) > 1
    dials = {"fewest_vectors": min(VECTORS), "shortest_chunk": min(LENGTHS)} if elastic else {}
    settings = {
        "curriculum": ",".join(STEPS),
        "controls": "",
        "data.memories": "",
        "data.sequence_length": "512",
        "evaluators": "{}",
        "model.chunk_length": str(one.length),
        "model.memory_vectors": str(one.vectors),
        "model.readout": "memory_tokens",
        "model.expansion": "unroll_each",
        "model.encoder.width": str(WIDTH),
        "stages.autoencoder.batch_size": "2",
        "stages.autoencoder.dials": json.dumps(dials),
        "stages.combined.batch_size": "4",
        "stages.combined.dials": json.dumps({"place_range": 4096, **dials}),
        "stages.combined.scored_chunks": json.dumps(
            {name: tokens // one.length for name, tokens in SCORED.items()}
        ),
    }
    for stage, steps in one.steps(trial).items():
        settings[f"stages.{stage}.steps"] = str(steps)
        settings[f"stages.{stage}.lr_schedule"] = "linear"
        if trial:
            settings[f"stages.{stage}.warmup_steps"] = "0"
    return settings


def measure(one: Run, folder: Path, trial: int) -> dict[str, Any]:
    """Train a run, or what is missing of it; return its numbers and how they were made."""
    workdir, load = folder / one.name, os.getloadavg()[0]
    resumed = workdir.exists()
    seconds = run(train(CONFIG, str(workdir), overrides(one, trial)))
    found = about(load) | {
        "command": ["memjax", *train(CONFIG, f"FOLDER/{one.name}", overrides(one, trial))],
        "steps": one.steps(trial),
        "cpu_seconds": None if resumed else seconds,
        "numbers": {},
    }
    for point in one.points:
        tokens = (elastic_measure.TOKENS // 8,) if trial else ()
        found["numbers"][name_of(*point)] = elastic_measure.measure(workdir, *point, *tokens)
        print(f"{one.name} at {name_of(*point)}: {found['numbers'][name_of(*point)]}", flush=True)
    return found


def floats(vectors: int, length: int) -> float:
    """Return the numbers that are stored per token."""
    return vectors * WIDTH / length


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is measured of each point, the fewest numbers per token first."""
    rows = []
    for point in sorted(POINTS, key=lambda point: (floats(*point), point[1])):
        alone, elastic = (
            found[name]["numbers"].get(name_of(*point)) if name in found else None
            for name in (name_of(*point), ELASTIC)
        )
        rows.append(
            {
                "vectors": point[0],
                "length": point[1],
                "floats": floats(*point),
                "alone": alone,
                "elastic": elastic,
            }
        )
    return rows


def worst(rows: list[dict[str, Any]], name: str) -> float | None:
    """Return by how much the elastic run is worse than that for a point, at most.

    Shares are in points; None where nothing can be compared.
    """
    sign, scale = (1, 1) if name == "nats" else (-1, 100)
    both = [row for row in rows if row["alone"] and row["elastic"]]
    lost = [scale * sign * (row["elastic"][name] - row["alone"][name]) for row in both]
    return max(lost, default=None)


def render(found: Mapping[str, Any]) -> str:
    """Return the page of the available runs."""
    rows, runs = table(found), every_run()
    measured = [found[one.name] for one in runs if one.name in found]
    return fill(
        TEMPLATE,
        rows=rows,
        points=len(POINTS),
        runs=[(one, found[one.name]) for one in runs if one.name in found],
        measured=measured,
        missing=len(runs) - len(measured),
        worst={name: worst(rows, name) for name in MEASURES},
        limit=LIMIT,
        steps=STEPS,
        width=WIDTH,
        tokens=elastic_measure.TOKENS,
        among=elastic_measure.AMONG,
        tried=found.get(TRIED, {}),
        elastic=ELASTIC,
        join=shlex.join,
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw every measure over the numbers per token: points of their own, and lines of one run."""
    rows = table(found)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "memjax"}):
        figure = Figure(figsize=(9.0, 3.4))
        figure.text(0.02, 0.94, "One training for all sizes", fontsize=11, fontweight="bold")
        figure.text(
            0.02,
            0.885,
            "against stored numbers per token: line, one training; rings, a training for each",
            fontsize=8.5,
            color=SOFT,
        )
        for place, (name, title) in enumerate(MEASURES.items()):
            axes = figure.add_axes((0.05 + place * 0.325, 0.11, 0.27, 0.63))
            axes.set_title(title, fontsize=8.5, loc="left", color=SOFT)
            axes.set_xscale("log", base=2)
            scale = 1 if name == "nats" else 100
            for length, colour in COLOURS.items():
                own = [row for row in rows if row["length"] == length]
                for kind, style in (
                    ("elastic", {"marker": "o", "markersize": 3}),
                    ("alone", {"marker": "o", "markersize": 7, "mfc": "none", "linestyle": ""}),
                ):
                    there = [row for row in own if row[kind]]
                    axes.plot(
                        [row["floats"] for row in there],
                        [scale * row[kind][name] for row in there],
                        color=colour,
                        clip_on=False,
                        label=f"chunks of {length}" if kind == "elastic" else None,
                        **style,
                    )
            axes.set_xticks(sorted({row["floats"] for row in rows}))
            axes.set_xticklabels([f"{x:g}" for x in sorted({row["floats"] for row in rows})])
            axes.xaxis.set_minor_locator(NullLocator())
            if name == "recalled":
                axes.legend(fontsize=8, frameon=False)
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def write_page(found: Mapping[str, Any], page: Path, plot: Path) -> None:
    """Write the page of the available runs, and its plot."""
    draw(found, plot)
    page.write_text(render(found), encoding="utf-8")


def check(runs: list[Run], trial: int = 0) -> None:
    """Check the settings of all runs, before the first one starts.

    Raises:
      ConfigError: a setting is unknown or wrong.
    """
    for one in runs:
        read_config("config", str(ROOT / CONFIG), list(overrides(one, trial).items()))


def main() -> None:
    """Measure missing runs and write the page."""
    runs = {one.name: one for one in every_run()}
    given = arguments(__doc__, runs, DATA, PAGE)
    found, wanted = read(given.data), [runs[name] for name in given.names]
    check(wanted, given.steps)
    if given.listing:
        for one in wanted:
            done = "measured" if one.name in found else "missing"
            print(f"{one.name}: {done} {join(one)}")
        return
    plot = given.page.with_name(PLOT.name)
    if not given.page_alone:
        missing = [(one.name, one.label) for one in wanted if one.name not in found]

        def keep(found: Mapping[str, Any]) -> None:
            write(found, given.data)
            write_page(found, given.page, plot)

        measured = {one.name: one for one in wanted}
        failed = measure_all(
            missing,
            found,
            lambda name: measure(measured[name], given.folder, given.steps),
            keep,
        )
        if failed:
            sys.exit(f"failed: {', '.join(failed)}. The next call runs them again.")
    write_page(found, given.page, plot)


def join(one: Run) -> str:
    """Return the settings of a run as words of its command."""
    return shlex.join(f"--config.{key}={value}" for key, value in overrides(one).items())


if __name__ == "__main__":
    main()
