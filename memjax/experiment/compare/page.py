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
    rows = [row_of(name, runs, sizes) for name, runs in found.items()]
    rows.sort(key=lambda row: -row["recalled"]["mean"])
    equal = equal_flops(found)
    page = templates.render(
        "compare/compare.html.jinja", {}, rows=rows, sizes=sizes, equal=equal, count=len(rows)
    )
    (folder / "results.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return templates.write_page(folder / "compare.html", page)


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
