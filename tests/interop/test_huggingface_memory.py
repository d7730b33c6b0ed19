"""What a folder takes in a process of its own: memory to load it, and steps to train it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memjax.testing.huggingface import KINDS, SMALL, write_folder

LARGEST_RISE = 1.3
"""Times the bytes of the files."""
DOCS = Path(__file__).resolve().parents[2] / "docs"


def printed(script: str, *args: str | Path, flags: str = "") -> dict[str, Any]:
    """Return the numbers that a script prints."""
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"}
    done = subprocess.run(
        [sys.executable, DOCS / script, *args],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        cwd=DOCS.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_files(tmp_path: Path) -> None:
    settings = KINDS["llama"] | {"hidden_size": 1024, "num_attention_heads": 16}
    settings |= {"intermediate_size": 4096, "num_hidden_layers": 14, "vocab_size": 16_000}
    folder = write_folder(tmp_path / "folder", settings)
    found = printed("measure_loading.py", folder)
    size = found["files"]
    assert found["held"] == pytest.approx(size, rel=0.001)
    assert found["peak"] < LARGEST_RISE * size, (found, size)


@pytest.mark.slow
def test_steps_on_eight_devices_have_the_losses_of_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", KINDS["llama"] | SMALL)
    config = f"configs/pretrained.py:small,{folder}"
    steps = ("stages.train.steps=3", "stages.train.warmup_steps=1")
    given = (config, tmp_path / "data", *steps)
    one = printed("measure_steps.py", *given)
    mesh = ("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2")
    many = printed(
        "measure_steps.py", *given, *mesh, flags="--xla_force_host_platform_device_count=8"
    )
    assert len(one["losses"]) == len(one["step_seconds"]) == 3
    assert len(set(one["losses"])) == 3
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    assert 0 < one["start_bytes"] <= one["peak_bytes"]
