"""Make docs/stores.md and its plot: store a text in every dtype, and reconstruct it.

    python docs/make_stores.py MODEL TEXT   measure all dtypes, write the page
    python docs/make_stores.py --page       write the page from docs/stores.json alone

MODEL is a path as `memjax reconstruct` takes it, TEXT a text file. The page has the names of both
without their folders. A text of a megabyte takes minutes on two cores.
"""

import datetime
import gzip
import hashlib
import json
import lzma
import math
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jinja2  # noqa: E402
import matplotlib  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

from memjax.checkpoints.rounding import DTYPES  # noqa: E402
from memjax.checkpoints.store import open_store  # noqa: E402
from memjax.experiment.report import words  # noqa: E402
from memjax.experiment.report.plots import DOTS, SOFT, STYLE  # noqa: E402
from memjax.experiment.reproduce.run import commit  # noqa: E402
from memjax.inference import TrainedModel, load  # noqa: E402
from memjax.inference.chunking import Chunks  # noqa: E402
from memjax.inference.expansion import accuracy_against  # noqa: E402
from memjax.objectives.uncertainty import Estimate  # noqa: E402

DATA, PAGE, TEMPLATE, PLOT = (
    ROOT / "docs" / f"stores.{end}" for end in ("json", "md", "md.jinja", "svg")
)
GOAL = 0.99
"""Share of tokens that the smallest good store gives back."""
CURVES = {"tokens": words.BLUE, "chunks": words.ORANGE}
NAMES = {"tokens": "tokens", "chunks": "whole chunks"}


def measure(path: str, source: str) -> dict[str, Any]:
    """Return sizes and accuracy of a text's store in every dtype, and sizes of its archives."""
    model, text = load(path), Path(source).read_bytes()
    chunks = model.chunks(source)
    rows = [row(model, chunks, dtype, Path(source).name) for dtype in DTYPES]
    made = model.provenance
    return {
        "model": {
            "name": Path(path).resolve().name if path in (".", "..") else Path(path).name,
            "family": made.family,
            "stage": made.stage,
            "step": made.step,
            "encoder": made.sha256[:16],
            "chunk_length": made.chunk_length,
            "vocabulary": made.vocabulary,
            "vectors": [list(shape) for shape in made.leaves.values()],
            "parameters": {
                part: sum(leaf.size for leaf in jax.tree.leaves(leaves))
                for part, leaves in model.params.items()
            },
        },
        "text": {
            "name": Path(source).name,
            "bytes": len(text),
            "sha256": hashlib.sha256(text).hexdigest()[:16],
            "tokens": int(chunks.spans[:, 2].sum()),
            "chunks": len(chunks),
            "documents": len(chunks.documents),
        },
        "rows": rows,
        "archives": {
            "gzip -9": len(gzip.compress(text, 9, mtime=0)),
            "xz -9": len(lzma.compress(text, preset=9)),
        },
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "versions": {"JAX": version("jax"), "NumPy": version("numpy")},
    }


def row(model: TrainedModel, chunks: Chunks, dtype: str, where: str) -> dict[str, Any]:
    """Return bytes of the stored text in one dtype, and what the decoder gives back of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        model.compress(chunks, dtype=dtype).save(path)
        store = open_store(path, expected=model.provenance)
        found = model.reconstruct_tokens(store)
        right = accuracy_against(store, found, chunks, where)
        return {
            "dtype": dtype,
            "store_bytes": path.stat().st_size,
            "memory_bytes": store.nbytes,
            "tokens": shares(right.tokens),
            "chunks": shares(right.chunks),
        }


def shares(estimate: Estimate) -> dict[str, float | None]:
    """Return a share and the ends of its interval."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def bits(size: int, found: dict[str, Any]) -> float:
    """Return bits per byte of the text."""
    return 8 * size / found["text"]["bytes"]


def smallest(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of the smallest store that gives back the goal's share of tokens."""
    good = [one for one in found["rows"] if one["tokens"]["value"] >= GOAL]
    return min(good, key=lambda one: one["store_bytes"], default=None)


def near(one: float, other: float) -> bool:
    """Return whether two sizes have one label in the plot."""
    return math.isclose(one, other, rel_tol=0.2)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the shares that are given back over the bits per byte of text."""
    rows = sorted(found["rows"], key=lambda one: one["store_bytes"])
    sizes = [bits(one["store_bytes"], found) for one in rows]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "memjax"}):
        figure = Figure(figsize=(7.2, 4.0))
        figure.text(0.02, 0.955, "A text from its stored memories", fontsize=11, fontweight="bold")
        figure.text(
            0.02, 0.905, "% given back, against bits per byte of text", fontsize=8.5, color=SOFT
        )
        axes = figure.add_axes((0.075, 0.11, 0.79, 0.7))
        axes.set_xscale("log", base=2)
        for curve, colour in CURVES.items():
            values = [100 * one[curve]["value"] for one in rows]
            axes.plot(sizes, values, color=colour, **DOTS)
            axes.annotate(
                NAMES[curve],
                (sizes[-1], values[-1]),
                (7, 0),
                textcoords="offset points",
                color=colour,
                fontsize=8.5,
                va="center",
                annotation_clip=False,
            )
        least = min(100 * one[curve]["value"] for one in rows for curve in CURVES)
        axes.set_ylim(max(math.floor(least / 10) * 10 - 10, 0), 100)
        for one, size in zip(rows, sizes, strict=True):
            close = [other for other, width in zip(rows, sizes, strict=True) if near(width, size)]
            if one is not close[0]:
                continue
            axes.annotate(
                "\n".join(other["dtype"] for other in close),
                (size, 100 * min(other["tokens"]["value"] for other in close)),
                (0, -8),
                textcoords="offset points",
                fontsize=8,
                color=SOFT,
                ha="center",
                va="top",
            )
        marks = {name: bits(size, found) for name, size in found["archives"].items()}
        for name, size in (marks | {"the text": 8.0}).items():
            axes.axvline(size, color=words.GREY, linewidth=0.9, linestyle=(0, (3, 2)))
            axes.annotate(
                name,
                (size, 0.02),
                (3, 0),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                fontsize=8,
                color=SOFT,
                rotation=90,
            )
        low, high = min(sizes + list(marks.values())), max([*sizes, 8.0])
        ticks = [2.0**power for power in range(math.floor(math.log2(low)), 8 + 1)]
        ticks = [tick for tick in ticks if tick / 2 < high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def render(found: dict[str, Any]) -> str:
    """Return the page of measurements."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        found=found,
        rows=found["rows"],
        model=found["model"],
        text=found["text"],
        archives=found["archives"],
        smallest=smallest(found),
        goal=GOAL,
        bits=lambda size: bits(size, found),
    )


def main() -> None:
    """Measure a model and a text, and write the page."""
    named = sys.argv[1:]
    if named == ["--page"]:
        found = json.loads(DATA.read_text(encoding="utf-8"))
    elif len(named) == 2:
        found = measure(*named)
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        sys.exit("expected MODEL TEXT, or --page")
    draw(found, PLOT)
    PAGE.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
