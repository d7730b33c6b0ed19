"""The notebook runs from the first cell to the last, and what is committed came of a whole run of
it."""

import base64
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat comes with memjax[dev]")
nbclient = pytest.importorskip("nbclient", reason="nbclient comes with memjax[dev]")
pytest.importorskip("ipykernel", reason="ipykernel comes with memjax[dev]")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "memory_in_ten_minutes.ipynb"
LARGEST = 600_000
"""Bytes of the file."""


def printed(notebook):
    """All text that the cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def figures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def accuracy(text):
    """Share of tokens right that the notebook printed."""
    found = re.search(r"accuracy: (\d+\.\d)% of tokens right", text)
    assert found, text[-2000:]
    return float(found[1]) / 100


@pytest.fixture
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_from_the_first_cell_to_the_last(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for cell in committed.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        committed, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    text = printed(committed)
    assert len(figures(committed)) == 2
    assert "the first memory again: True" in text
    assert accuracy(text) == 1
    assert all(f"\n{dtype}" in text for dtype in ("float32", "bfloat16", "float8_e4m3", "int4"))
    assert "with memories: The old man" in text and "without: The old man" in text
    assert (tmp_path / "ten-minutes.store").is_file()


def test_what_is_committed_came_of_a_whole_run(committed):
    assert NOTEBOOK.stat().st_size < LARGEST
    nbformat.validate(committed)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert all(
        base64.b64decode(figure).startswith(b"\x89PNG") for figure in figures(committed)
    ) and figures(committed)
    text = printed(committed)
    assert accuracy(text) == 1
    source = "".join(cell.source for cell in committed.cells)
    assert not re.search(r"(?<![\w.])/(home|root|Users|tmp|work|opt|usr)/", text + source), (
        "paths of a machine"
    )
