"""A TPU compiler on a machine without a TPU is left alone, and only there."""

import importlib.util

import pytest

from memjax.cli.platforms import skip_absent_tpu


@pytest.mark.parametrize(
    ("packages", "files", "given", "left"),
    [
        pytest.param({"libtpu"}, [], {}, {"JAX_PLATFORMS": "cpu"}, id="no TPU"),
        pytest.param(set(), [], {}, {}, id="no libtpu"),
        pytest.param({"libtpu"}, ["accel0"], {}, {}, id="a TPU"),
        pytest.param({"libtpu"}, ["vfio/0"], {}, {}, id="a newer TPU"),
        pytest.param({"libtpu"}, ["vfio/vfio"], {}, {"JAX_PLATFORMS": "cpu"}, id="only the driver of virtual machines"),
        pytest.param({"libtpu", "jax_plugins"}, [], {}, {}, id="perhaps a GPU"),
        pytest.param({"libtpu"}, [], {"JAX_PLATFORMS": "tpu"}, {"JAX_PLATFORMS": "tpu"}, id="asked for"),
    ],
)
def test_jax_is_told_of_the_cpu_only_where_there_is_nothing_else(packages, files, given, left, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    skip_absent_tpu(given, tmp_path)
    assert given == left
