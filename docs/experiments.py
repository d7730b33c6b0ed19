"""Run `memjax train` for a measured page, keep the numbers of its runs, and read its command line.

Every finished run is in the page's JSON file and is skipped by the next call.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from docs.make_benchmarks import processor

ROOT = Path(__file__).resolve().parents[1]


def train(config: str, workdir: str, settings: Mapping[str, str]) -> list[str]:
    """Return the arguments of `memjax` that train a config."""
    changed = [f"--config.{key}={value}" for key, value in settings.items()]
    return ["train", f"--config={config}", *changed, f"--workdir={workdir}"]


def run(args: list[str]) -> float:
    """Run a command of memjax; return its CPU-seconds, those of its own processes included.

    Raises:
      CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "memjax.cli.main", *args], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def about(load: float) -> dict[str, Any]:
    """Return the commit, the date and the machine; `load` is that at the start of a run."""
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "load": load,
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": {
            "Python": platform.python_version(),
            "JAX": version("jax"),
            "jaxlib": version("jaxlib"),
        },
    }


def commit() -> str:
    """Return the commit; a plus marks uncommitted changes of the package or the configs."""

    def git(*args: str) -> str:
        found = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--", "memjax", "configs")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


def read(data: Path) -> dict[str, Any]:
    """Return the runs of a file; none where it is absent."""
    return json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}


def write(found: Mapping[str, Any], data: Path) -> None:
    """Write the runs, into another file first, so that a stop leaves the old or the new one."""
    other = data.with_name(data.name + ".new")
    other.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    other.replace(data)


def fill(template: Path, **values: Any) -> str:
    """Return the page of a template."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def measure_all(
    wanted: Iterable[tuple[str, str]],
    found: dict[str, Any],
    measure: Callable[[str], dict[str, Any]],
    keep: Callable[[Mapping[str, Any]], None],
) -> list[str]:
    """Measure runs, and keep all numbers after each; return the keys of those that failed.

    Args:
      wanted: keys of the runs and their labels.
      found: the numbers by key, which grow.
      measure: returns the numbers of a key.
      keep: writes all numbers, and the page.
    """
    wanted, failed = list(wanted), []
    for place, (key, label) in enumerate(wanted, 1):
        print(f"{key}: {label} ({place} of {len(wanted)})", flush=True)
        try:
            found[key] = measure(key)
        except subprocess.CalledProcessError as error:
            print(f"{key}: {error}", file=sys.stderr, flush=True)
            failed.append(key)
            continue
        keep(found)
    return failed


@dataclasses.dataclass(frozen=True)
class Given:
    """The command line of a page's script, see `arguments`."""

    folder: Path
    names: list[str]
    """The rows to measure."""
    steps: int
    """Steps of a trial; 0 for none."""
    data: Path
    """Where numbers are written: the page's file, or that of a trial."""
    page: Path
    listing: bool
    """List all runs, and stop."""
    page_alone: bool
    """Write the page, and stop."""


def arguments(text: str | None, names: Iterable[str], data: Path, page: Path) -> Given:
    """Read the command line of a page's script; exit with a message where it is wrong.

    Args:
      text: the docstring of the script.
      names: the names of all rows.
      data: the file of the page's numbers.
      page: the page.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="for workdirs")
    parser.add_argument("--only", default="", metavar="NAME,...", help="these rows alone")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="a trial: as many steps, one seed, numbers and page in FOLDER/trial",
    )
    parser.add_argument("--list", action="store_true", help="list runs and settings, then stop")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given, known = parser.parse_args(), list(names)
    chosen = given.only.split(",") if given.only else known
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--only: {', '.join(unknown)}, expected some of {', '.join(known)}")
    folder = ROOT
    if not (given.list or given.page):
        if given.folder is None:
            parser.error("FOLDER: missing, expected a folder for workdirs, outside the repository")
        folder = given.folder.expanduser().resolve()
        if folder.is_relative_to(ROOT):
            parser.error(f"{folder}: in the repository, expected a folder outside it")
        if given.steps:
            folder /= "trial"
            data, page = folder / data.name, folder / page.name
        folder.mkdir(parents=True, exist_ok=True)
    return Given(folder, chosen, given.steps, data, page, given.list, given.page)
