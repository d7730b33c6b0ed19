"""A TPU compiler on a machine without a TPU is left alone, and only there."""

import importlib.util
import os
import subprocess
import sys

import pytest

from memjax import _skip_absent_tpu


@pytest.mark.parametrize(
    ("packages", "files", "given", "left"),
    [
        pytest.param({"libtpu"}, [], {}, {"JAX_PLATFORMS": "cpu"}, id="no TPU"),
        pytest.param(set(), [], {}, {}, id="no libtpu"),
        pytest.param({"libtpu"}, ["accel0"], {}, {}, id="a TPU"),
        pytest.param({"libtpu"}, ["vfio/0"], {}, {}, id="a newer TPU"),
        pytest.param(
            {"libtpu"},
            ["vfio/vfio"],
            {},
            {"JAX_PLATFORMS": "cpu"},
            id="only the driver of virtual machines",
        ),
        pytest.param({"libtpu", "jax_plugins"}, [], {}, {}, id="perhaps a GPU"),
        pytest.param(
            {"libtpu"}, [], {"JAX_PLATFORMS": "tpu"}, {"JAX_PLATFORMS": "tpu"}, id="asked for"
        ),
    ],
)
def test_jax_takes_the_cpu_only_where_there_is_nothing_else(
    packages, files, given, left, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in packages else None
    )
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.delitem(sys.modules, "jax")  # It would be set to the CPU for the tests that follow.
    _skip_absent_tpu(given, tmp_path)
    assert given == left


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import memjax", "import jax, memjax"])
def test_loading_a_model_prints_nothing_where_jax_platforms_is_not_set(made, first):
    code = f"""
{first}
model = memjax.load({str(made)!r})
assert "".join(model.generate("the", 2))
"""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
