"""Make docs/peers.md and docs/compare.html: train the rows of `memjax compare` with three seeds.

    python docs/make_peers.py FOLDER                  measure missing rows, write the pages
    python docs/make_peers.py FOLDER --only=NAME,...  measure missing rows of these names alone
    python docs/make_peers.py FOLDER --steps=1        try the command, at the tiny scale
    python docs/make_peers.py --list                  list all rows
    python docs/make_peers.py --page                  write the pages from the stored runs

Runs are kept in FOLDER, outside the repository, and the command resumes with the run that it was
stopped in. Finished rows are in docs/peers.json and are skipped by the next call. Their status goes
to memjax/models/peers/status.json, for `memjax compare --list`. Delete a row from the file, and its
runs, to measure it again. All rows together take about five CPU-hours.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.experiments import about, arguments, fill, measure_all, read, run, write  # noqa: E402
from memjax.experiment.compare.page import render, rows_of  # noqa: E402
from memjax.experiment.compare.plan import OURS, SCALES, names  # noqa: E402
from memjax.models.peers import PEERS  # noqa: E402

DATA, PAGE, TEMPLATE = (ROOT / "docs" / f"peers.{end}" for end in ("json", "md", "md.jinja"))
STATUS = ROOT / "memjax/models/peers/status.json"
SEEDS = (0, 1, 2)
SCALE = "small"


def command(name: str, folder: str, trial: int = 0) -> list[str]:
    """Return the arguments of `memjax` that measure a row."""
    seeds = ",".join(map(str, SEEDS[:1] if trial else SEEDS))
    scale = "tiny" if trial else SCALE
    return ["compare", f"--names={name}", f"--scale={scale}", f"--seeds={seeds}", f"--out={folder}"]


def measure(name: str, folder: Path, trial: int) -> dict[str, Any]:
    """Train a row, or what is missing of it, and return its runs and how they were made."""
    load = os.getloadavg()[0]
    run(command(name, str(folder), trial))
    files = sorted((folder / "runs").glob(f"{name}-[0-9]*.json"))
    shown = ["memjax", *command(name, "FOLDER", trial)]
    return about(load) | {"command": shown, "runs": [read(file) for file in files]}


def write_pages(found: Mapping[str, Any], page: Path, scale: str) -> None:
    """Write peers.md and compare.html."""
    runs, sizes = {name: found[name]["runs"] for name in names() if name in found}, SCALES[scale]
    measured = {row["name"]: row for row in rows_of(runs, sizes)}
    text = fill(
        TEMPLATE,
        ours=OURS,
        peers=PEERS,
        measured=measured,
        about=list(found.values()),
        missing=len(names()) - len(measured),
        sizes=sizes,
        status=lambda name: status(measured.get(name)),
        file=lambda peer: peer.module.__module__.rsplit(".", 1)[1] + ".py",
    )
    page.write_text(text, encoding="utf-8")
    if runs:
        page.with_name("compare.html").write_text(render(runs, sizes), encoding="utf-8")


def status(row: Mapping[str, Any] | None) -> str:
    """Return one of STATUSES."""
    return "mechanism only" if row is None else "works" if row["works"] else "fails"


def write_status(found: Mapping[str, Any]) -> None:
    """Write the status of measured peers for `memjax compare --list`."""
    runs = {name: found[name]["runs"] for name in PEERS if name in found}
    rows = {row["name"]: status(row) for row in rows_of(runs, SCALES[SCALE])}
    STATUS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Measure missing rows and write the pages."""
    given = arguments(__doc__, names(), DATA, PAGE)
    found = read(given.data)
    if given.listing:
        for name in given.names:
            print(f"{name}: {'measured' if name in found else 'missing'}")
        return

    def keep(found: Mapping[str, Any]) -> None:
        write(found, given.data)
        write_pages(found, given.page, "tiny" if given.steps else SCALE)
        if given.data == DATA:
            write_status(found)

    if not given.page_alone:
        missing = [(name, "three seeds") for name in given.names if name not in found]
        failed = measure_all(
            missing, found, lambda name: measure(name, given.folder, given.steps), keep
        )
        if failed:
            sys.exit(f"failed: {', '.join(failed)}. The next call runs them again.")
    write_pages(found, given.page, "tiny" if given.steps else SCALE)


if __name__ == "__main__":
    main()
