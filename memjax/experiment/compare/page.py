"""The page of a comparison: tables at equal stored bits, at equal FLOPs, and over lengths."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.experiment import templates
from memjax.experiment.compare.plan import Scale

ERRORS = 5
"""Standard errors by which a row must be above its controls to count as working."""
Run = Mapping[str, Any]


def write_page(folder: Path, sizes: Scale) -> Path:
    """Write compare.html and results.json of all finished runs, and return the page."""
    found: dict[str, list[Run]] = {}
    for file in sorted((folder / "runs").glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(run["name"], []).append(run)
    rows = json.dumps(rows_of(found, sizes), indent=2)
    (folder / "results.json").write_text(rows, encoding="utf-8")
    return templates.write_page(folder / "compare.html", render(found, sizes))


def render(found: Mapping[str, Sequence[Run]], sizes: Scale) -> str:
    """Return the page of runs by their names."""
    rows = rows_of(found, sizes)
    return templates.render(
        "compare/compare.html.jinja",
        {},
        rows=rows,
        sizes=sizes,
        equal=equal_flops(found),
        plot=plot(rows, sizes.task.written),
    )


def rows_of(found: Mapping[str, Sequence[Run]], sizes: Scale) -> list[dict[str, Any]]:
    """Return the rows of runs by their names, the best first."""
    rows = [row_of(name, runs, sizes) for name, runs in found.items()]
    return sorted(rows, key=lambda row: -row["recalled"]["mean"])


def row_of(name: str, runs: Sequence[Run], sizes: Scale) -> dict[str, Any]:
    """Return a row: means over seeds with their intervals, controls, costs, and the status."""
    at = str(sizes.task.written)
    shares = {
        kind: interval([run["curve"][at][kind] for run in runs])
        for kind in ("recalled", "shuffled", "constant")
    }
    first = runs[0]
    curve = {
        length: interval([run["curve"][length]["recalled"] for run in runs])
        for length in first["curve"]
    }
    distances = first["curve"][at]["by_distance"]
    by_distance = {
        d: interval([run["curve"][at]["by_distance"][d] for run in runs]) for d in distances
    }
    # What is recalled above chance, in bits, for each bit that is kept.
    values, pairs = sizes.task.values, sizes.task.written * sizes.task.pairs
    share = max(0.0, shares["recalled"]["mean"] - 1 / values) / (1 - 1 / values)
    recalled_bits = share * pairs * math.log2(values)
    return {
        "name": name,
        **shares,
        "seeds": len(runs),
        "curve": curve,
        "by_distance": by_distance,
        "bits": first["bits"],
        "bits_per_bit": recalled_bits / first["bits"] if first["bits"] else 0.0,
        "write": first["flops"]["write"],
        "read": first["flops"]["read"],
        "step_flops": first["step_flops"],
        "trained": first["trained_parameters"],
        "frozen": first["frozen_parameters"],
        "dials": first["dials"],
        "works": works(runs, at),
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
    }


def works(runs: Sequence[Run], at: str) -> bool:
    """Return whether the recalled share is far enough above both controls, over three seeds."""
    for control in ("shuffled", "constant"):
        above = np.array([run["curve"][at]["recalled"] - run["curve"][at][control] for run in runs])
        if len(above) < 3 or above.mean() <= ERRORS * above.std(ddof=1) / math.sqrt(len(above)):
            return False
    return True


def plot(rows: Sequence[Run], chunks: int, width: int = 760, height: int = 380) -> dict[str, Any]:
    """Return the plot of recalled shares against the FLOPs of writing all chunks and one read.

    Args:
      rows: those of the page.
      chunks: chunks that are written.
      width: of the plot, in pixels.
      height: of the plot.

    Returns:
      `points`, each with its place and that of its label (None where there is no room), whether it
      is on the Pareto front, and `front`, those that no cheaper row surpasses, the cheapest first.
    """
    costs = {row["name"]: chunks * row["write"] + row["read"] for row in rows}
    logs = [math.log10(cost) for cost in costs.values() if cost > 0]
    low, high = (math.floor(min(logs)), math.ceil(max(logs) + 0.01)) if logs else (0, 1)
    points, taken, best = [], [], -1.0
    for row in sorted(rows, key=lambda row: (costs[row["name"]], -row["recalled"]["mean"])):
        share = row["recalled"]["mean"]
        x = width * (math.log10(max(costs[row["name"]], 1)) - low) / (high - low)
        point = {"name": row["name"], "x": max(0.0, x), "y": height * (1 - share), "share": share}
        points.append({**point, "front": share > best})
        best = max(best, share)
        taken.append((point["x"] - 4, point["y"] - 4, point["x"] + 4, point["y"] + 4))
    # Those on the front get their labels first.
    for point in sorted(points, key=lambda point: not point["front"]):
        point["label"] = _label(point, taken, width)
    return {
        "points": points,
        "front": [point for point in points if point["front"]],
        "ticks": [(width * (n - low) / (high - low), n) for n in range(low, high + 1)],
        "width": width,
        "height": height,
    }


def _label(
    point: Mapping[str, Any], taken: list[tuple[float, float, float, float]], width: int
) -> tuple[float, float] | None:
    """Return where a label begins that covers no other, and take its room."""
    long, high = 6.2 * len(point["name"]), 11
    for left, top in ((7, -5), (-7 - long, -5), (-long / 2, -18), (-long / 2, 7)):
        x, y = point["x"] + left, point["y"] + top
        box = x, y, x + long, y + high
        free = all(box[2] < a or c < box[0] or box[3] < b or d < box[1] for a, b, c, d in taken)
        if free and 0 <= x <= width + 60 - long:
            taken.append(box)
            return x, y + high - 2
    return None


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean over seeds, and its standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "error": error}


def equal_flops(found: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return the shares that were recalled by the FLOPs of the cheapest training."""
    if not found:
        return []
    least = min(runs[0]["course"][-1]["flops"] for runs in found.values())
    rows = []
    for name, runs in found.items():
        reached = [
            max(
                (point for point in run["course"] if point["flops"] <= least),
                default=None,
                key=lambda point: point["step"],
            )
            for run in runs
        ]
        shares = [point["recalled"] for point in reached if point]
        share = interval(shares) if shares else None
        rows.append({"name": name, "share": share, "step": reached[0] and reached[0]["step"]})
    return sorted(rows, key=lambda row: -(row["share"] or {"mean": -1})["mean"])
