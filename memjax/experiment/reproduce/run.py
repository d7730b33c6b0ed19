"""Train and measure all models of the claims, and judge; resumable at every stage of every seed.

Several processes train every stage together, and divide what is measured.
"""

import datetime
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from memjax.errors import MemjaxError
from memjax.evaluation.evaluators import open_evaluators
from memjax.experiment.preflight import check_stages
from memjax.experiment.report.words import corpus_name
from memjax.experiment.reproduce.claims import CLAIMS, Numbers, judge
from memjax.experiment.reproduce.measure import measure_seed
from memjax.experiment.reproduce.page import write_page
from memjax.experiment.reproduce.plan import SCALES, configs
from memjax.experiment.run import WorkdirError, claim_workdir, prepare_together
from memjax.files import local, read_json, write_json
from memjax.objectives.uncertainty import to_json as plain
from memjax.progress import SILENT, Reporter
from memjax.sharding import (
    ProcessMonitor,
    agreed,
    barrier,
    first_process,
    require_equal,
    sharing,
)
from memjax.training.init_state import Run
from memjax.training.loop import train_stage
from memjax.version import __version__

FORMAT_VERSION = 1


def reproduce(
    folder: str | os.PathLike,
    scale: str = "small",
    corpus: str = "python-docs",
    seeds: Sequence[int] = (0, 1),
    limit: int = 0,
) -> dict[str, Any]:
    """Train and measure everything for every seed, and write the results in `folder`.

    The results are `reproduction.json` and `reproduction.html`. A repeated call resumes an
    interrupted reproduction and skips finished parts.

    Several processes (`memjax.sharding.connect`) are one reproduction: all call this, and the first
    one prints and writes.

    Args:
      folder: folder of this reproduction only, which all processes can read.
      scale: one of SCALES.
      corpus: as config.data.corpus.
      seeds: at least two, to separate effects from those of the seed.
      limit: largest number of held-out rows to measure; 0 is the scale's number.

    Raises:
      MemjaxError: there are fewer than two seeds, the scale is unknown, or its batches do not
        divide over the devices.
      WorkdirError: the folder holds a reproduction of another scale, corpus or limit.
      ProcessesError: processes have other arguments.
      Exception: a training fails; see `memjax.experiment.run.run_experiment`.
    """
    MemjaxError.require(
        len(set(seeds)) >= 2,
        f"--seeds: got {list(seeds)}, expected at least two different seeds: one seed does not"
        " separate a claim from chance",
    )
    MemjaxError.require(
        scale in SCALES,
        f"--scale: got {scale!r}, expected one of {', '.join(SCALES)}",
    )
    rows = SCALES[scale].rows
    MemjaxError.require(
        rows % jax.device_count() == 0,
        f"--scale: {scale!r}, whose batches of {rows} sequences do not divide over"
        f" {jax.device_count()} devices, expected a number of devices that divides {rows}. Use"
        " fewer",
    )
    folder, log = local(folder).absolute(), Reporter().log
    reporter = Reporter() if first_process() else SILENT
    began = time.monotonic()
    plan = {"scale": scale, "corpus": corpus} | ({"limit": limit} if limit else {})
    with ProcessMonitor(log) as watch:
        require_equal(json.dumps([plan, *seeds]), "the command")
        _claim(folder, plan)
        before = _read(folder / "seconds.json", float) or 0.0
        numbers: list[Numbers] = []
        for seed in seeds:
            path = folder / f"seed-{seed}" / "numbers.json"
            if agreed(path.exists()):
                found = _read(path, dict)
            else:
                runs = _train(folder, scale, corpus, seed, reporter, watch)
                with sharing():
                    found = measure_seed(runs, SCALES[scale], seed, limit, reporter)
            numbers.append(found)
            if first_process():
                write_json(path, found, indent=1)
                write_json(folder / "seconds.json", before + time.monotonic() - began)
        seconds = before + time.monotonic() - began
        results = conclude(folder, scale, corpus, seeds, limit, numbers, seconds, reporter)
        barrier("concluded")
    return results


def conclude(
    folder: Path,
    scale: str,
    corpus: str,
    seeds: Sequence[int],
    limit: int,
    numbers: Sequence[Numbers],
    seconds: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Judge every claim; the first process writes JSON and page."""
    verdicts = [judge(claim, numbers) for claim in CLAIMS]
    flags = [
        f"--scale={scale}",
        f"--corpus={corpus_name(corpus)}",
        f"--seeds={','.join(map(str, seeds))}",
        *([f"--limit={limit}"] if limit else []),
    ]
    results = {
        "format_version": FORMAT_VERSION,
        "memjax_version": __version__,
        "commit": commit(),
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU"
        " cores",
        "python": platform.python_version(),
        "command": shlex.join(["memjax", "reproduce", *flags]),
        "scale": scale,
        "sizes": plain(SCALES[scale]),
        "corpus": corpus_name(corpus),
        "seeds": list(seeds),
        "seconds": seconds,
        "claims": [plain(verdict) for verdict in verdicts],
    }
    if not first_process():
        return results
    write_json(folder / "reproduction.json", results, indent=1)
    page = write_page(results, folder / "reproduction.html")
    for verdict in verdicts:
        reporter.log(f"{verdict.verdict:>14}  {verdict.claim.words}")
    reporter.log(
        f"{seconds / 60:.0f} min in total; numbers in {folder / 'reproduction.json'}, the page in"
        f" {page}"
    )
    return results


def commit() -> str:
    """Return the commit of the running code, or an empty string if it is unknown.

    A plus marks uncommitted changes.
    """
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _train(
    folder: Path, scale: str, corpus: str, seed: int, reporter: Reporter, watch: ProcessMonitor
) -> dict[str, Run]:
    """Train all stages of all configs of a seed."""
    runs = {}
    for name, config in configs(SCALES[scale], corpus, seed, folder / f"seed-{seed}").items():
        data = prepare_together(config, folder / "data", reporter)
        run = Run(config, folder / f"seed-{seed}" / name, data, reporter, watch)
        check_stages(config, run.mesh)
        if first_process():
            claim_workdir(config, run.workdir)
            _share(run.workdir / "data", folder / "data")
        barrier("claimed")
        for stage in config.curriculum:
            train_stage(run, stage, open_evaluators(run, stage, training=True))
        runs[name] = run
    return runs


def _share(link: Path, target: Path) -> None:
    """Link the prepared text of a workdir to a common folder.

    Each workdir is then complete for the other commands.
    """
    if not link.exists():
        link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def _claim(folder: Path, what: dict[str, Any]) -> None:
    path = folder / "plan.json"
    theirs = _read(path, dict)
    WorkdirError.require(
        theirs in (None, what),
        f"{folder}: got {what}, expected {theirs} as in the reproduction there; use another --out",
    )
    if theirs is None and first_process():
        write_json(path, what)


def _read(path: Path, shape: Any) -> Any:
    return read_json(path, WorkdirError, shape, "Delete it") if path.exists() else None
