"""Names of TPU slices, and that the compiler knows each of them by what it is asked for."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from memjax.config import ConfigError
from memjax.performance.aot.topologies import (
    TOPOLOGIES,
    devices,
    topology,
)
from memjax.sharding.chips import CHIPS

ROOT = Path(__file__).parents[3]
SIZES = {
    # name: chips, hosts, slices, what the compiler is asked for
    "v4-8": (4, 1, 1, "v4:2x2x1"),
    "v4-512": (256, 64, 1, "v4:4x8x8"),
    "v5e-1": (1, 1, 1, "v5e:1x1"),
    "v5e-8": (8, 1, 1, "v5e:2x4"),
    "v5e-16": (16, 4, 1, "v5e:4x4"),
    "v5p-8": (4, 1, 1, "v5:2x2x1"),
    "v5p-128": (64, 16, 1, "v5:4x4x4"),
    "v5p-4096": (2048, 512, 1, "v5:8x16x16"),
    "v6e-64": (64, 16, 1, "v6e:8x8"),
    "2xv5e-256": (512, 128, 2, "v5e:16x16"),
    "8xv5e-256": (2048, 512, 8, "v5e:16x16"),
    "2xv4-16": (16, 4, 2, "v4:2x2x2"),
}

SMALLEST = {"v4": "v4-8", "v5e": "v5e-4", "v5p": "v5p-8", "v6e": "v6e-4"}
"""A slice of four chips of each generation."""


@pytest.mark.parametrize("name", SIZES)
def test_a_name_says_how_many_chips_hosts_and_slices_there_are(name):
    found = topology(name)
    hosts = found.chips // math.prod(found.host_torus)
    assert (found.chips, hosts, found.slices, found.request()["topology_name"]) == SIZES[name]
    assert found.name == name
    assert ("megacore" in found.request().values()) == (found.generation in ("v4", "v5p"))


def test_v4_and_v5p_names_count_two_cores_a_chip():
    for name, found in TOPOLOGIES.items():
        generation, count = name.split("-")
        assert int(count) == found.chips * (2 if generation in ("v4", "v5p") else 1)
        assert found.slices == 1


@pytest.mark.parametrize("name", ["v5e-12", "v7-8", "0xv5e-16", "2x2xv5e-16", "v5e:4x4", ""])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(
        ConfigError,
        match=rf"^topology: got '{re.escape(name)}', expected one of v4-8, .*v6e-256,"
        r" .*2xv5e-256$",
    ):
        topology(name)


def test_rates_are_of_one_direction_and_of_all_links():
    number = {"v4": 6, "v5e": 4, "v5p": 6, "v6e": 4}
    links = {name: chip.ici_rate / number[name] for name, chip in CHIPS.items()}
    assert links == {"v4": 50e9, "v5e": 50e9, "v5p": 100e9, "v6e": 100e9}
    # 2 x 100 and 4 x 200 Gbit/s for a host of 8 chips.
    assert 8 * CHIPS["v5e"].dcn_rate == 25e9
    assert 8 * CHIPS["v6e"].dcn_rate == 100e9


def test_without_libtpu_the_extra_that_has_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ConfigError, match=r"^topology='v5e-16' needs .* Run pip install libtpu$"):
        devices("v5e-16")


# With the compiler


@pytest.fixture
def libtpu():
    pytest.importorskip("libtpu")


@pytest.mark.usefixtures("libtpu")
def test_the_compiler_has_the_devices_of_every_topology():
    for name in (*TOPOLOGIES, "2xv5e-256", "8xv5e-256", "2xv5p-4096", "2xv4-8"):
        wanted, found = topology(name), devices(name)
        assert len(found) == wanted.chips, name
        assert {device.device_kind for device in found} == {wanted.chip.device_kind}, name
        hosts = wanted.chips // math.prod(wanted.host_torus)
        assert len({device.process_index for device in found}) == hosts, name
        assert len({getattr(device, "slice_index", 0) for device in found}) == wanted.slices, name


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("generation", CHIPS)
def test_a_program_may_use_the_hbm_of_the_table(generation):
    place = jax.sharding.SingleDeviceSharding(devices(SMALLEST[generation])[0])
    too_large = jax.ShapeDtypeStruct((2**18, 2**18), jnp.float32, sharding=place)
    with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available HBM") as caught:
        jax.jit(jnp.square, out_shardings=place).lower(too_large).compile()
    gib = re.search(r"available HBM \(([\d.]+)G\)", str(caught.value))
    assert float(gib[1]) == pytest.approx(CHIPS[generation].hbm / 2**30, abs=0.02)


@pytest.mark.usefixtures("libtpu")
def test_two_processes_may_compile_at_once():
    assert devices("v5e-16")
    code = "from memjax.performance.aot.topologies import devices; print(len(devices('v4-32')))"
    clean = {
        name: value for name, value in os.environ.items() if name != "ALLOW_MULTIPLE_LIBTPU_LOAD"
    }
    environment = clean | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("16\n", "")
