"""Make docs/efficiency.md and its plot: run `memjax bench` per context length.

    python docs/make_efficiency.py               measure what is missing, write the page
    python docs/make_efficiency.py 1024 16384x4  measure these again; the second has a batch of 4
    python docs/make_efficiency.py borders       measure the border of a chunk again
    python docs/make_efficiency.py --all         measure all again (20 minutes on two idle cores)
    python docs/make_efficiency.py --page        write the page from docs/efficiency.json alone

Each measurement runs in its own process and is kept in docs/efficiency.json when it ends, so that a
stopped script continues where it was. One that was made by another command than today's counts as
missing. Run it on an idle machine: the page shows the load of the machine when a measurement
started.
"""

import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jinja2  # noqa: E402
import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

from docs.make_benchmarks import commit, processor  # noqa: E402
from memjax.experiment.report import words  # noqa: E402
from memjax.experiment.report.plots import DOTS, SOFT, STYLE  # noqa: E402
from memjax.performance.bench.efficiency import PREFILL_SECONDS  # noqa: E402

DATA, PAGE, TEMPLATE, PLOT = (
    ROOT / "docs" / f"efficiency.{end}" for end in ("json", "md", "md.jinja", "svg")
)
CONFIG = "configs/benchmark.py:reading"
CONTEXTS = tuple(1024 * 2**power for power in range(11))
MORE_ROWS = "16384x4"
"""A length with a batch of several sequences: they share one read of the weights, and each has its
own cache."""
BORDERS, ENTRIES, BORDER_ROUNDS = "borders", (64, 16384), 15
"""The border of a chunk behind few entries and behind many."""
EVERY = (*map(str, CONTEXTS), MORE_ROWS, BORDERS)
GOALS_FASTER = {"16384": 3.7, "32768": 5.5, MORE_ROWS: 8.0}
"""Tokens per second in comparison with full context, by length, or by length and batch."""
GOAL_CONTEXT, GOAL_SMALLER, GOAL_SPARE, GOAL_BORDER = "16384", 50.0, 2.0, 1.5
COLOURS = {"memory": words.BLUE, "full": words.ORANGE}
NAMES = {"memory": "memories", "full": "full context"}
PANELS = {
    "to read the prompt, seconds": lambda point, name: median(point, name, "prefill"),
    "milliseconds per token": lambda point, name: 1e3 * median(point, name, "token"),
    "cache, MiB": lambda point, name: point[name]["cache_bytes"] / 2**20,
    "tokens per second": lambda point, name: point[name]["tokens_per_second"] or math.nan,
}


def median(point: dict[str, Any], name: str, what: str) -> float:
    """Return a median of seconds; not a number where the model is not measured."""
    spread = point[name][f"{what}_spread"]
    return spread["median"] if spread else math.nan


def command(context: str | int) -> list[str]:
    """Return the arguments of `memjax` for one length, for LENGTHxBATCH, or for the borders."""
    if context == BORDERS:
        entries = ",".join(map(str, ENTRIES))
        return [
            "bench",
            f"--config={CONFIG}",
            f"--border_entries={entries}",
            f"--steps={BORDER_ROUNDS}",
        ]
    length, _, rows = str(context).partition("x")
    return [
        "bench",
        f"--config={CONFIG}",
        f"--context_lengths={length}",
        "--steps=5",
        *([f"--batch_size={rows}"] if rows else []),
    ]


def run(context: str) -> dict[str, Any]:
    """Run one command; return its JSON report with its date, commit and machine."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        args = [sys.executable, "-m", "memjax.cli.main", *command(context), f"--out={out}"]
        subprocess.run(args, cwd=ROOT, check=True)
        found = json.loads(out.read_text(encoding="utf-8"))
    return {
        "command": shown(context),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "load": load,
        "processor": processor(),
        "versions": {
            "Python": platform.python_version(),
            "JAX": version("jax"),
            "jaxlib": version("jaxlib"),
        },
        "devices": found["devices"],
        **({"borders": found} if context == BORDERS else {"point": found["points"][0]}),
    }


def shown(context: str | int) -> str:
    """Return a command as a shell takes it."""
    return " ".join(["memjax", *command(context)])


def current(found: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements that today's commands made, in the order of the page."""
    return {
        key: found[key] for key in EVERY if key in found and found[key]["command"] == shown(key)
    }


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Draw four panels over the context length, with both axes logarithmic."""
    contexts = [point["context"] for point in points]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "memjax"}):
        figure = Figure(figsize=(8.6, 5.6))
        figure.text(
            0.02,
            0.965,
            "The same decoder with memories and with full context",
            fontsize=11,
            fontweight="bold",
            va="center",
        )
        figure.text(
            0.02, 0.925, "against tokens of context; medians", fontsize=8.5, color=SOFT, va="center"
        )
        for place, (title, value) in enumerate(PANELS.items()):
            left, bottom = 0.075 + 0.49 * (place % 2), 0.52 - 0.45 * (place // 2)
            axes = figure.add_axes((left, bottom, 0.345, 0.31))
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            for name in ("full", "memory"):
                values = [value(point, name) for point in points]
                axes.plot(contexts, values, color=COLOURS[name], **DOTS)
                last = max(at for at, value in enumerate(values) if not math.isnan(value))
                axes.annotate(
                    NAMES[name],
                    (contexts[last], values[last]),
                    (7, 0),
                    textcoords="offset points",
                    color=COLOURS[name],
                    fontsize=8.5,
                    va="center",
                    annotation_clip=False,
                )
            axes.set_title(title, fontsize=9, loc="left")
            ticks(axes, contexts)
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def ticks(axes: Axes, contexts: list[int]) -> None:
    """Label the axes with plain numbers: 1k, 2k, ... below, powers of ten at the left.

    A short vertical axis also gets labels between the powers of ten.
    """
    axes.set_xticks(contexts, [short(context) for context in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")


def short(context: int) -> str:
    """Abbreviate a context length: 1024 becomes 1k, and 1024 of these 1M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if context % unit == 0:
            return f"{context // unit}{name}"
    return f"{context:,}"


def write_page(found: dict[str, Any]) -> None:
    """Write the plot and the page from the available measurements."""
    made = current(found)
    points = [run["point"] for run in lengths(made)]
    if not points:
        sys.exit(f"{DATA.name} has no measurement. Run: python docs/make_efficiency.py")
    draw(points, PLOT)
    PAGE.write_text(render(made), encoding="utf-8")


def lengths(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs with a batch of one."""
    return [made[str(context)] for context in CONTEXTS if str(context) in made]


def render(made: dict[str, Any]) -> str:
    """Return the page of runs by length, by length and batch, or `borders`."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    runs = lengths(made)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        every=list(made.values()),
        points=[run["point"] for run in runs],
        goal=made.get(GOAL_CONTEXT, {}).get("point"),
        goals_faster={
            key: (made[key]["point"], goal) for key, goal in GOALS_FASTER.items() if key in made
        },
        more=made.get(MORE_ROWS),
        border=made.get(BORDERS, {}).get("borders"),
        goal_smaller=GOAL_SMALLER,
        goal_spare=GOAL_SPARE,
        goal_border=GOAL_BORDER,
        prefill_seconds=PREFILL_SECONDS,
        config=CONFIG,
        names=NAMES,
        short=short,
    )


def main() -> None:
    """Measure what is named or missing, and write the page."""
    named = sys.argv[1:]
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    if named == ["--page"]:
        wanted = []
    elif named == ["--all"]:
        wanted = list(EVERY)
    else:
        wanted = named or [key for key in EVERY if key not in current(found)]
    for key in wanted:
        found[key] = run(key)
        DATA.write_text(json.dumps(current(found), indent=1) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
