"""Eight simulated devices write what one does, and each keeps its part of the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("many_devices.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.night
def test_tokens_and_logits_are_those_of_one_device():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8
    for case, what in found.items():
        assert what["same"], case
        assert what["difference"] < 2e-5, case
        assert what["compiled"] == 1, case
        # Eight rows on eight devices; or on four, each of two heads on another.
        assert what["share"] == 1 / 8, case
