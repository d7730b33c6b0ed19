"""launch/device_check.sh: what it runs, and that results of a check that failed are kept."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "device_check.sh"


@pytest.mark.parametrize(
    ("args", "status", "limit"), [((), 0, "11m"), (("3",), 1, "4m"), (("3",), 124, "4m")]
)
def test_results_come_to_the_page_however_the_check_ends(
    tmp_path: Path, args: tuple[str, ...], status: int, limit: str
) -> None:
    calls, out = tmp_path / "calls", tmp_path / "device.json"
    for name in ("python3", "timeout"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{calls}\n'
            f"[ {name} = python3 ] || {{ touch {out}; exit {status}; }}\n"
        )
        program.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPT, *args],
        env=os.environ | {"PATH": path, "OUT": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    minutes = limit.removesuffix("m")
    assert calls.read_text().splitlines() == [
        f"timeout --kill-after=30 {limit} python3 -m memjax.performance.device_check"
        f" --minutes={int(minutes) - 1} --out={out}",
        f"python3 docs/make_benchmarks.py --device={out}",
    ]
    assert (f"ended after {minutes} minutes" in done.stderr) == (status == 124)


@pytest.mark.parametrize("args", [("0",), ("ten",), ("1", "2")])
def test_other_arguments_are_refused(args: tuple[str, ...]) -> None:
    done = subprocess.run([SCRIPT, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: launch/device_check.sh [MINUTES]" in done.stderr
