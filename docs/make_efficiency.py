"""Make docs/efficiency.md and its plot: run `memjax bench` per context length.

    python docs/make_efficiency.py               measure missing lengths, write the page
    python docs/make_efficiency.py 1024 16384x4  measure these again; the second has a batch of 4
    python docs/make_efficiency.py --all         measure all again (30 minutes on two idle cores)
    python docs/make_efficiency.py --page        write the page from docs/efficiency.json alone

Each length runs in its own process. Run it on an idle machine: the page shows the load of the
machine when a measurement started.
"""

import datetime
import json
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

DATA, PAGE, TEMPLATE, PLOT = (
    ROOT / "docs" / f"efficiency.{end}" for end in ("json", "md", "md.jinja", "svg")
)
CONFIG = "configs/benchmark.py:combined"
CONTEXTS = tuple(1024 * 2**power for power in range(7))
MORE_ROWS = "16384x4"
"""A length with a batch of several sequences: they share one read of the weights, and each has its
own cache."""
GOAL_CONTEXT, GOAL_SMALLER, GOAL_FASTER = 16384, 50.0, 5.0
COLOURS = {"memory": words.BLUE, "full": words.ORANGE}
NAMES = {"memory": "memories", "full": "full context"}
PANELS = {
    "to read the prompt, seconds": lambda point, name: point[name]["prefill_spread"]["median"],
    "milliseconds per token": lambda point, name: 1e3 * point[name]["token_spread"]["median"],
    "cache, MiB": lambda point, name: point[name]["cache_bytes"] / 2**20,
    "tokens per second": lambda point, name: point[name]["tokens_per_second"],
}


def command(context: str | int) -> list[str]:
    """Return the arguments of `memjax` for one length, or for LENGTHxBATCH."""
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
        "command": " ".join(["memjax", *command(context)]),
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
        "point": found["points"][0],
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
                axes.annotate(
                    NAMES[name],
                    (contexts[-1], values[-1]),
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
    """Abbreviate a context length: 1024 becomes 1k."""
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"


def write_page(found: dict[str, Any]) -> None:
    """Write the plot and the page from the available measurements."""
    runs = [found[str(context)] for context in CONTEXTS if str(context) in found]
    if not runs:
        sys.exit(f"{DATA.name} has no measurement. Run: python docs/make_efficiency.py")
    draw([run["point"] for run in runs], PLOT)
    PAGE.write_text(render(runs, found.get(MORE_ROWS)), encoding="utf-8")


def render(runs: list[dict[str, Any]], more: dict[str, Any] | None = None) -> str:
    """Return the page; `more` is the run with a batch of several sequences."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        points=[run["point"] for run in runs],
        goal=next((run["point"] for run in runs if run["point"]["context"] == GOAL_CONTEXT), None),
        more=more,
        goal_smaller=GOAL_SMALLER,
        goal_faster=GOAL_FASTER,
        config=CONFIG,
        names=NAMES,
        short=short,
    )


def main() -> None:
    """Measure the named lengths and write the page."""
    asked = sys.argv[1:]
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    every = [*map(str, CONTEXTS), MORE_ROWS]
    if asked == ["--page"]:
        wanted = []
    elif asked == ["--all"]:
        wanted = every
    else:
        wanted = asked or [context for context in every if context not in found]
    for context in wanted:
        found[context] = run(context)
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
