"""launch/slurm.sbatch: what it asks of Slurm, and what it does when memjax was told to leave."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"


def directives() -> dict[str, str | None]:
    """Options by name, as sbatch reads them: up to the first command."""
    found: dict[str, str | None] = {}
    for line in SCRIPT.read_text().splitlines():
        if line.startswith("#SBATCH "):
            option = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert option and option[1] not in found, line
            found[option[1]] = option[2]
        elif line and not line.startswith("#"):
            break
    return found


def test_every_directive_is_before_the_first_command():
    assert len(directives()) == len(re.findall(r"^#SBATCH", SCRIPT.read_text(), re.MULTILINE))


def test_a_process_for_each_gpu_of_a_node_and_time_to_save():
    options = directives()
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    # JAX picks the nth GPU that the nth process sees, so each must see all.
    assert not {"gpus-per-task", "gpu-bind"} & set(options)
    assert options["signal"] == "TERM@120"
    assert "requeue" in options
    assert options["open-mode"] == "append"


@pytest.fixture
def batch(tmp_path):
    """Runs the script where srun leaves with a status, and squeue tells a state; gives its status
    and what was called."""

    def run(status: int, state: str = "RUNNING", *args: str, **env: str) -> tuple[int, list[str]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        for name, rest in (
            ("srun", f"exit {status}"),
            ("squeue", f"echo {state}"),
            ("scontrol", ""),
        ):
            path = tmp_path / name
            path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{calls}"\n{rest}\n')
            path.chmod(0o755)
        copied = tmp_path / "slurm_script"
        copied.write_bytes(SCRIPT.read_bytes())
        slurm = {
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "12",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            ["bash", copied, *args],
            env=os.environ | slurm | env,
            cwd=tmp_path,
            check=False,
            capture_output=True,
        )
        return done.returncode, calls.read_text().splitlines()

    return run


def test_the_command(batch):
    status, calls = batch(
        0,
        "RUNNING",
        "--config.seed=1",
        WORKDIR="/shared/run",
        CONFIG="configs/copying.py:mixer",
        MEMJAX="/env/memjax",
    )
    assert status == 0
    command = (
        "/env/memjax train --config=configs/copying.py:mixer --workdir=/shared/run --config.seed=1"
    )
    assert calls == [f"srun --kill-on-bad-exit=0 {command}"]
    _, calls = batch(0, RUN_NAME="other", BUCKET="")
    assert f"--workdir={ROOT}/runs/other" in calls[0]


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (143, "RUNNING", True),
        (143, "COMPLETING", False),
        (143, "CANCELLED", False),
        (1, "RUNNING", False),
        (0, "RUNNING", False),
    ],
)
def test_what_is_queued_again(batch, status, state, requeued):
    left, calls = batch(status, state)
    assert left == status
    assert (calls[-1] == "scontrol requeue 12") is requeued
