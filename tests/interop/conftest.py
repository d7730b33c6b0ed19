"""Cases of ../golden: what the published code computes on random weights."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Case(NamedTuple):
    """One case; `state` and `spec_file` are its files."""

    state: Path
    spec_file: Path
    spec: dict
    tensors: dict
    tokens: np.ndarray
    logits: np.ndarray


def read_case(name):
    state, spec_file = GOLDEN / f"{name}.safetensors", GOLDEN / f"{name}.json"
    arrays = np.load(GOLDEN / f"{name}.npz")
    return Case(state, spec_file, json.loads(spec_file.read_text()), load_file(state), arrays["input_ids"], arrays["logits"])


@pytest.fixture(scope="session")
def golden():
    """Reads a case by name; its dicts are the caller's own."""
    return read_case


def pytest_generate_tests(metafunc):
    """Tests that take `case_name` run once for every case."""
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize("case_name", sorted(path.stem for path in GOLDEN.glob("*.json")), scope="module")
