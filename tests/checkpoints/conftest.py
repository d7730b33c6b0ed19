"""A workdir to write to."""

import shutil

import pytest


@pytest.fixture
def workdir(made, tmp_path):
    """A copy of a workdir."""
    return shutil.copytree(made, tmp_path / "run")
