"""Makes docs/benchmarks.md: runs its commands on this machine, one after another, and writes down what they say.

    python docs/make_benchmarks.py            runs everything, 8 minutes on two idle cores, then writes the page
    python docs/make_benchmarks.py NAME ...   runs only those (RUNS) and keeps what docs/benchmarks.json has of the others
    python docs/make_benchmarks.py --page     writes the page from docs/benchmarks.json alone

The numbers mean something on a machine that does nothing else: its load when a command started is written down too.
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

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE, TEMPLATE = ROOT / "docs/benchmarks.json", ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.md.jinja"
SIZES = "configs/benchmark.py"
RUNS = {
    "two_passes": f"--config={SIZES}:combined --against=two_passes --steps=9",
    "stored": f"--config={SIZES}:frozen_stored --against={SIZES}:frozen --steps=9",
    "stored_blank": f"--config={SIZES}:blank_stored --against={SIZES}:blank --steps=15",
    "programs": f"--config={SIZES}:combined --program=train,evaluate,encode,decode",
    "profile": f"--config={SIZES}:combined --steps=3 --profile=3",
    "quickstart": "--config=configs/quickstart.py --stage=combined --program=train,evaluate,encode,decode,generate",
}
"""Arguments of `memjax bench` by name."""


def run(name: str) -> dict[str, Any]:
    """What a command says, as JSON, and when and where it said it."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, "-m", "memjax.cli.main", "bench", *shlex.split(RUNS[name]), f"--out={out}"]
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


def commit() -> str:
    """The commit that the numbers are of."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """What the processor calls itself, as far as the system says."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", about.read_text(), re.MULTILINE) if about.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def write_page(found: dict[str, Any]) -> None:
    """All tables."""
    missing = [name for name in RUNS if name not in found]
    if missing:
        sys.exit(f"{DATA.name} has nothing of {', '.join(missing)} yet: python docs/make_benchmarks.py {' '.join(missing)}")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(runs=found)
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Runs what is asked for and writes the page."""
    asked = sys.argv[1:] or list(RUNS)
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name in asked if asked != ["--page"] else []:
        found[name] = run(name)
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
