"""Eight simulated devices compute what one does, for every family and mesh, and talk no more than
they must."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memjax.models import FAMILIES

SCRIPT = Path(__file__).with_name("many_devices.py")
ROOT = Path(__file__).parents[2]
NEGATIVES = ("retriever", "ranker")
"""Families that tell every passage of the batch apart from every other, so that vectors travel
too."""
BESIDE = 1.03
"""What is summed over devices, over what gradients alone are: losses, counts and norms, and a table
used twice may be summed twice."""

READING = "memory_model:reading"
FEW = pytest.mark.quick_cases(slow=("autoencoder", "causal_lm", "memory_model", READING))
"""Families with a process in the slow tests; the others have theirs at night."""
CASES = (*FAMILIES, READING)
AXES = "fsdp_tp,data_fsdp_tp"
"""Meshes of two and three axes."""
MESHES = dict.fromkeys(CASES, "ddp,fsdp") | {
    "causal_lm": "ddp,fsdp,fsdp_tp",
    READING: f"ddp,fsdp,{AXES}",  # All slow: in one process.
}


@functools.cache
def compared(case: str, meshes: str = "") -> dict:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, case, meshes or MESHES.get(case, "ddp")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@FEW
@pytest.mark.parametrize("family", CASES)
def test_loss_gradients_and_parameters_are_those_of_one_device(family):
    for mesh, found in compared(family).items():
        assert found["metrics"] < 2e-5, mesh
        assert found["parameters"] < 2e-5, mesh


@pytest.mark.quick_cases(slow=(READING,))
@pytest.mark.parametrize("family", ["memory_model", READING])
def test_on_meshes_of_two_and_three_axes_they_are_too(family):
    meshes = compared(family) if AXES in MESHES[family] else compared(family, AXES)
    for mesh in AXES.split(","):
        assert meshes[mesh]["metrics"] < 2e-5, mesh
        assert meshes[mesh]["parameters"] < 2e-5, mesh


@pytest.mark.night
@pytest.mark.parametrize(
    "family", [family for family in CASES if family not in ("causal_lm", "memory_model", READING)]
)
def test_with_matrices_split_they_are_too(family):
    for mesh, found in compared(family, "fsdp_tp").items():
        assert found["metrics"] < 2e-5, mesh
        assert found["parameters"] < 2e-5, mesh


@FEW
@pytest.mark.parametrize("family", [family for family in CASES if family not in NEGATIVES])
def test_copies_of_a_model_exchange_each_gradient_once_and_nothing_else(family):
    found = compared(family)["ddp"]
    assert set(found["collectives"]) == {"all-reduce"}
    summed = sum(found["collectives"]["all-reduce"])
    assert found["trainable"] <= summed <= BESIDE * found["trainable"]


@pytest.mark.slow
def test_a_frozen_encoder_is_not_reduced():
    found, trained = compared("memory_model:frozen")["ddp"], compared("memory_model")["ddp"]
    assert found["trainable"] < 0.8 * trained["trainable"]
    summed = sum(found["collectives"]["all-reduce"])
    assert found["trainable"] <= summed <= BESIDE * found["trainable"]


@FEW
@pytest.mark.parametrize("family", CASES)
def test_parameters_that_are_split_are_gathered_and_no_device_sees_the_tokens_of_another(family):
    """Gathered numbers are those of parameters, forward, backward and again under remat:
    activations would show in permutes or all-to-alls."""
    found = compared(family)["fsdp"]["collectives"]
    assert "all-gather" in found
    assert not {"all-to-all", "collective-permute"} & set(found)


@pytest.mark.slow
def test_copies_exchange_the_gradients_of_all_microbatches_once():
    """In the loop over microbatches only the devices that split a copy add up."""
    for mesh, found in compared("memory_model:microbatches", "data_fsdp,ddp").items():
        assert found["metrics"] < 2e-6, mesh
        assert found["parameters"] < 2e-6, mesh
        copies, split = {"data_fsdp": (2, 4), "ddp": (8, 1)}[mesh]
        repeated = {group for _, _, group, times in found["runs"] if times > 1}
        assert repeated <= {split}, mesh
        crossing = [
            size
            for kind, size, group, times in found["runs"]
            if group == copies and times == 1 and kind == "all-reduce"
        ]
        # float32; norms and biases are not split.
        assert 4 * found["trainable"] / split <= sum(crossing), mesh
        assert sum(crossing) <= 1.1 * 4 * found["trainable"] / split, mesh
