"""Make docs/peers.md and docs/compare.html: train the rows of `memjax compare` with three seeds.

    python docs/make_peers.py FOLDER                  measure missing runs, write the pages
    python docs/make_peers.py FOLDER --only=NAME,...  measure missing runs of these names alone
    python docs/make_peers.py FOLDER --steps=1        try the command, at the tiny scale
    python docs/make_peers.py --list                  list all rows
    python docs/make_peers.py --page                  write pages and statuses from the stored runs

Runs are kept in FOLDER, outside the repository. Every finished run is in docs/peers.json and is
skipped by the next call, so the command can be stopped at any time. The status of a row goes to
memjax/models/peers/status.json, for `memjax compare --list`. Delete a run from the file and from
FOLDER to measure it again. All runs together take about six CPU-hours.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from docs.experiments import about, arguments, fill, measure_all, read, run, write  # noqa: E402
from memjax.experiment.compare.page import render, rows_of  # noqa: E402
from memjax.experiment.compare.plan import OURS, ROLES, SCALES, names  # noqa: E402
from memjax.experiment.compare.task import Task  # noqa: E402
from memjax.models.peers import PEERS  # noqa: E402

DATA, PAGE, TEMPLATE = (ROOT / "docs" / f"peers.{end}" for end in ("json", "md", "md.jinja"))
STATUS = ROOT / "memjax/models/peers/status.json"
SEEDS = (0, 1, 2)
SCALE = "small"


def command(name: str, seed: int, folder: str, trial: int = 0) -> list[str]:
    """Return the arguments of `memjax` that measure a run."""
    scale = "tiny" if trial else SCALE
    return ["compare", f"--names={name}", f"--scale={scale}", f"--seeds={seed}", f"--out={folder}"]


def measure(key: str, folder: Path, trial: int) -> dict[str, Any]:
    """Train a run, or take it from the folder, and return it and how it was made."""
    name, seed = key.rsplit("-", 1)
    load, file = os.getloadavg()[0], folder / "runs" / f"{key}.json"
    if not file.exists():
        run(command(name, int(seed), str(folder), trial))
    shown = ["memjax", *command(name, int(seed), "FOLDER", trial)]
    return about(load) | {"command": shown, "run": read(file)}


def runs_of(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs by the names of their rows."""
    runs = {name: [found.get(f"{name}-{seed}") for seed in SEEDS] for name in names()}
    return {
        name: [one["run"] for one in every if one] for name, every in runs.items() if any(every)
    }


def write_pages(found: Mapping[str, Any], page: Path, scale: str) -> None:
    """Write peers.md and compare.html."""
    runs, sizes = runs_of(found), SCALES[scale]
    measured = {row["name"]: row for row in rows_of(runs, sizes)}
    text = fill(
        TEMPLATE,
        ours=OURS,
        peers=PEERS,
        measured=measured,
        about=list(found.values()),
        missing=len(SEEDS) * len(names()) - len(found),
        sizes=sizes,
        status=lambda name: ROLES.get(name) or status(measured.get(name)),
        guess=guess(sizes.task),
        file=lambda peer: peer.module.__module__.rsplit(".", 1)[1] + ".py",
    )
    page.write_text(text, encoding="utf-8")
    if runs:
        page.with_name("compare.html").write_text(render(runs, sizes), encoding="utf-8")


def guess(task: Task, draws: int = 100_000) -> float:
    """Return how often the most frequent value of a sequence is right, whatever the key."""
    shape = draws, task.written * task.pairs
    values = np.sort(np.random.default_rng(0).integers(0, task.values, shape), axis=1)
    run = most = np.ones(draws)
    for at in range(1, shape[1]):
        run = np.where(values[:, at] == values[:, at - 1], run + 1, 1)
        most = np.maximum(most, run)
    return float(most.mean() / shape[1])


def status(row: Mapping[str, Any] | None) -> str:
    """Return one of STATUSES; fewer than three seeds do not decide."""
    decided = row is not None and row["seeds"] == len(SEEDS)
    return "mechanism only" if not decided else "works" if row["works"] else "fails"


def write_status(found: Mapping[str, Any]) -> None:
    """Write the status of measured peers for `memjax compare --list`."""
    rows = rows_of(runs_of(found), SCALES[SCALE])
    decided = {row["name"]: status(row) for row in rows if row["name"] in PEERS}
    STATUS.write_text(json.dumps(decided, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Measure missing runs and write the pages."""
    given = arguments(__doc__, names(), DATA, PAGE)
    found = read(given.data)
    # All rows with one seed first, so that a stopped command leaves a whole table.
    wanted = [f"{name}-{seed}" for seed in SEEDS for name in given.names]
    if given.listing:
        for key in wanted:
            print(f"{key}: {'measured' if key in found else 'missing'}")
        return

    def publish(found: Mapping[str, Any]) -> None:
        write_pages(found, given.page, "tiny" if given.steps else SCALE)
        if given.data == DATA:
            write_status(found)

    def keep(found: Mapping[str, Any]) -> None:
        write(found, given.data)
        publish(found)

    if not given.page_alone:
        missing = [(key, "a run") for key in wanted if key not in found]
        missing = missing[: len(given.names)] if given.steps else missing
        failed = measure_all(
            missing, found, lambda key: measure(key, given.folder, given.steps), keep
        )
        if failed:
            sys.exit(f"failed: {', '.join(failed)}. The next call runs them again.")
    publish(found)


if __name__ == "__main__":
    main()
