"""Make docs/benchmarks.md: run its commands on this machine and write down their reports.

    python docs/make_benchmarks.py            run all (8 minutes on two idle cores), write the page
    python docs/make_benchmarks.py NAME ...   run only these names of RUNS, keep the other numbers
    python docs/make_benchmarks.py --page     write the page from docs/benchmarks.json alone
    python docs/make_benchmarks.py --device=device.json   add the results of launch/device_check.sh

Run it on an idle machine. The page shows the load of the machine when a command started.
"""

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2

from memjax.experiment.reproduce.run import commit

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE, TEMPLATE = (
    ROOT / "docs/benchmarks.json",
    ROOT / "docs/benchmarks.md",
    ROOT / "docs/benchmarks.md.jinja",
)
SIZES = "configs/benchmark.py"
RUNS = {
    "two_passes": f"--config={SIZES}:combined --against=two_passes --steps=9",
    "stored": f"--config={SIZES}:frozen_stored --against={SIZES}:frozen --steps=9",
    "stored_blank": f"--config={SIZES}:blank_stored --against={SIZES}:blank --steps=15",
    "programs": f"--config={SIZES}:combined --program=train,evaluate,encode,decode",
    "profile": f"--config={SIZES}:combined --steps=3 --profile=3",
    "quickstart": "--config=configs/quickstart.py --stage=combined"
    " --program=train,evaluate,encode,decode,generate",
}
"""Arguments of `memjax bench` by name."""


def run(name: str) -> dict[str, Any]:
    """Run one command; return its JSON report with its date, commit and machine."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "memjax.cli.main",
            "bench",
            *shlex.split(RUNS[name]),
            f"--out={out}",
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        result = json.loads(out.read_text(encoding="utf-8"))
    return {
        "command": f"memjax bench {RUNS[name]}",
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "load": load,
        "processor": processor(),
        "python": platform.python_version(),
        "result": result,
    }


def processor() -> str:
    """Return the name of the processor, or of its architecture where the system lists none."""
    about = Path("/proc/cpuinfo")
    names = (
        re.findall(r"^model name\s*:\s*(.+)$", about.read_text(), re.MULTILINE)
        if about.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def others(profile: dict[str, Any], shown: int = 12) -> list[dict[str, Any]]:
    """Return the longest single operations that are no matrix products, with their part."""
    found = [one for one in profile["operations"] if one["kind"] != "matrix products"]
    return [one | {"part": part(one["source"])} for one in found[:shown]]


def part(source: str) -> str:
    """Return the part of the model in the name of an operation, and what it computes there."""
    if not source:
        return "arrays of a loop over layers, made or copied"
    backward = "backward, " if "transpose(" in source else ""
    again = "computed again, " if "rematted" in source else ""
    names = re.sub(r"closed_call/|checkpoint/|while/|body/", "", source.split(";")[0]).split("/")
    return backward + again + " ".join(names[-3:])


def page(found: dict[str, Any]) -> str:
    """Return the page with all tables."""
    missing = [name for name in RUNS if name not in found]
    if missing:
        sys.exit(
            f"{DATA.name} lacks {', '.join(missing)}. Run: python docs/make_benchmarks.py"
            f" {' '.join(missing)}"
        )
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    runs = {name: found[name] for name in found if name in RUNS}
    return template.render(runs=runs, others=others, devices=found.get("devices", {}))


def main() -> None:
    """Run the named commands and write the page."""
    wanted = sys.argv[1:] or list(RUNS)
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name in wanted:
        flag, _, file = name.partition("=")
        if flag == "--device":
            checked = json.loads(Path(file).read_text(encoding="utf-8"))
            found.setdefault("devices", {})[checked["device_kind"]] = checked
        elif flag != "--page":
            found[name] = run(name)
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
