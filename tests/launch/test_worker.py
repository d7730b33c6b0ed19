"""launch/worker.sh: what a machine of a TPU does with memjax."""

import dataclasses
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Worker:
    """A machine, by the folder memjax runs in."""

    home: Path

    def __call__(self, *args: str, script: str = "") -> str:
        """What worker.sh says, with the script, if given, in memjax's place."""
        memjax = self.home / ".venv" / "bin" / "memjax"
        if script:
            memjax.write_text(f"#!/usr/bin/env bash\n{script}\n")
            memjax.chmod(0o755)
        command = ["bash", self.home / "src" / "launch" / "worker.sh", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout + done.stderr


@pytest.fixture
def worker(tmp_path):
    """A machine where nothing was started."""
    if not (shutil.which("flock") and shutil.which("setsid")):
        pytest.skip("there is no flock or no setsid here")
    home = tmp_path / "memjax"
    (home / "src" / "launch").mkdir(parents=True)
    (home / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "worker.sh", home / "src" / "launch")
    worker = Worker(home)
    yield worker
    worker("stop")


def ended(worker) -> str:
    """The status once it is not `running` any more."""
    for _ in range(1000):
        if (status := worker("status").strip()) != "running":
            break
    return status


def test_what_came_of_a_run_is_kept_and_logs_add_up(worker):
    assert worker("status") == "none\n"
    for number in (7, 0):
        worker("run", "train", "--a=b c", script=f'echo "$PWD $JAX_PLATFORMS $# $2"; exit {number}')
        assert ended(worker) == f"exit {number}"
    assert (worker.home / "run.log").read_text() == f"{worker.home} tpu,cpu 2 --a=b c\n" * 2


def test_a_shutdown_is_noted_as_memjax_took_it(worker):
    """SIGTERM goes to every process of the machine, the one that waits for memjax included."""
    worker(
        "run",
        "train",
        script="trap 'sleep 0.2; exit 143' TERM; echo up; while :; do sleep 0.05; done",
    )
    while "up" not in (worker.home / "run.log").read_text():
        pass
    assert worker("status") == "running\n"
    os.killpg(os.getpgid(int((worker.home / "pid").read_text())), signal.SIGTERM)
    assert ended(worker) == "exit 143"


def test_it_runs_again_after_it_was_killed(worker):
    worker("run", "train", script="exec sleep 60")
    os.kill(int((worker.home / "pid").read_text()), signal.SIGKILL)
    assert ended(worker) == "exit 137"
    worker("run", "train", script="exit 0")
    assert ended(worker) == "exit 0"
