"""Trains what the claims need, measures it, and judges: restartable at every stage of every seed."""

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from memjax import __version__
from memjax.config import Config
from memjax.data import Prepared, prepare
from memjax.instruments.uncertainty import to_json as plain
from memjax.reproduce.claims import CLAIMS, Numbers, judge
from memjax.reproduce.measure import measure_seed
from memjax.reproduce.page import write_page
from memjax.reproduce.plan import SCALES, configs
from memjax.sharding import Watch
from memjax.training import Reporter, Run, WorkdirError, train_stage
from memjax.training.curriculum import claim_workdir
from memjax.training.preflight import check_stages

FORMAT_VERSION = 1


def reproduce(
    folder: str | os.PathLike,
    scale: str = "small",
    corpus: str = "python-docs",
    seeds: Sequence[int] = (0, 1),
    limit: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Trains and measures everything for every seed and writes `reproduction.json` and `reproduction.html` in `folder`.

    Called again, it goes on where it stopped; what is there is not done again.

    Args:
      folder: of this reproduction alone.
      scale: one of SCALES.
      corpus: as config.data.corpus.
      seeds: at least two, so that what a seed alone does shows.
      limit: held-out rows that are measured, at most; 0 is as many as the scale says.
      reporter: where progress is shown.

    Raises:
      ValueError: fewer than two seeds, or no such scale.
      WorkdirError: the folder holds a reproduction of another scale or corpus.
      Whatever training raises (memjax.training.run_experiment).
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"--seeds gives {list(seeds)}; at least two are needed, to tell a claim from chance")
    if scale not in SCALES:
        raise ValueError(f"--scale={scale!r} is none; there are {', '.join(SCALES)}")
    folder, reporter = Path(folder).absolute(), reporter or Reporter()
    began = time.monotonic()
    _claim(folder, {"scale": scale, "corpus": corpus})
    before = _read(folder / "seconds.json") or 0.0
    numbers: list[Numbers] = []
    with Watch(reporter.say) as watch:
        for seed in seeds:
            path = folder / f"seed-{seed}" / "numbers.json"
            found = _read(path)
            if found is None:
                runs = _train(folder, scale, corpus, seed, reporter, watch)
                found = measure_seed(runs, SCALES[scale], seed, limit, reporter)
                _write(path, found)
            numbers.append(found)
            _write(folder / "seconds.json", before + time.monotonic() - began)
    return conclude(folder, scale, corpus, seeds, numbers, before + time.monotonic() - began, reporter)


def conclude(
    folder: Path,
    scale: str,
    corpus: str,
    seeds: Sequence[int],
    numbers: Sequence[Numbers],
    seconds: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Judges every claim and writes JSON and page."""
    verdicts = [judge(claim, numbers) for claim in CLAIMS]
    results = {
        "format_version": FORMAT_VERSION,
        "memjax_version": __version__,
        "commit": commit(),
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "command": f"memjax reproduce --scale={scale} --corpus={Path(corpus).name} --seeds={','.join(map(str, seeds))}",
        "scale": scale,
        "sizes": plain(SCALES[scale]),
        "corpus": Path(corpus).name,
        "seeds": list(seeds),
        "seconds": seconds,
        "claims": [plain(verdict) for verdict in verdicts],
    }
    _write(folder / "reproduction.json", results)
    page = write_page(results, folder / "reproduction.html")
    for verdict in verdicts:
        reporter.say(f"{verdict.verdict:>14}  {verdict.claim.words}")
    reporter.say(f"{seconds / 60:.0f} min in all; numbers in {folder / 'reproduction.json'}, the page in {page}")
    return results


def commit() -> str:
    """The commit of the code that runs, with a plus where files differ from it; empty where it is not known."""
    here = Path(__file__).parent
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _train(folder: Path, scale: str, corpus: str, seed: int, reporter: Reporter, watch: Watch) -> dict[str, Run]:
    """All stages of all configs of a seed."""
    runs = {}
    for name, config in configs(SCALES[scale], corpus, seed, folder / f"seed-{seed}").items():
        run = Run(config, folder / f"seed-{seed}" / name, _data(config, folder, reporter), reporter, watch)
        check_stages(config, run.mesh)
        claim_workdir(config, run.workdir)
        _share(run.workdir / "data", folder / "data")
        for stage in config.curriculum:
            train_stage(run, stage)
        runs[name] = run
    return runs


def _data(config: Config, folder: Path, reporter: Reporter) -> Prepared:
    return prepare(config.data, folder / "data", reporter.say, bar=reporter.bar)


def _share(link: Path, target: Path) -> None:
    """All workdirs have the same text: one folder, so that each of them is whole for the other commands."""
    if not link.exists():
        link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def _claim(folder: Path, what: dict[str, str]) -> None:
    path = folder / "plan.json"
    theirs = _read(path)
    if theirs is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, what)
    elif theirs != what:
        raise WorkdirError(f"{folder} holds a reproduction of {theirs}, not of {what}; give another --out")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


__all__ = ["commit", "conclude", "reproduce"]
