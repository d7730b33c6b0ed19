"""Layouts of meshes and parameters, without devices."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from memjax.config import MESHES, SHARDING, ConfigError, Mesh
from memjax.sharding import make_mesh, placements, spec_of, state_shardings
from memjax.sharding.mesh import _sizes


def axes(**sizes):
    """What spec_of reads of a mesh."""
    return types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": 1} | sizes)


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        (Mesh(), 8, (8, 1, 1)),
        (MESHES["fsdp"], 8, (1, 8, 1)),
        (MESHES["fsdp_tp"], 8, (1, 2, 4)),
        (Mesh(data=2, fsdp=2, tensor=-1), 8, (2, 2, 2)),
        (Mesh(data=2, fsdp=3, tensor=1), 6, (2, 3, 1)),
    ],
)
def test_one_axis_takes_the_devices_that_the_others_leave(mesh, devices, shape):
    assert _sizes(mesh, devices) == shape


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        (
            Mesh(data=2, fsdp=2),
            8,
            r"config\.mesh: got data=2, fsdp=2, tensor=1, which needs 4 devices, expected 8",
        ),
        (
            Mesh(tensor=3),
            8,
            r"config\.mesh: got data=-1, fsdp=1, tensor=3, expected a product .* divides 8",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, devices, message):
    with pytest.raises(ConfigError, match=message):
        _sizes(mesh, devices)


class Chip:
    """A device as mesh layouts see it."""

    platform, device_kind, core_on_chip = "tpu", "TPU v4", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.process_index = number, slice_index, slice_index
        self.coords = (number % 2, number // 2 % 2, 0)

    def __repr__(self):
        return f"chip {self.id} of slice {self.slice_index}"


def test_only_the_data_axis_goes_from_slice_to_slice():
    chips = [Chip(number + 4 * piece, piece) for piece in range(2) for number in range(4)]
    grid = make_mesh(Mesh(data=-1, fsdp=2, tensor=2), chips).devices
    assert grid.shape == (2, 2, 2)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert (slices == slices[:, :1, :1]).all()
    assert set(slices[:, 0, 0]) == {0, 1}
    assert len({chip.id for chip in grid.flat}) == 8


def test_an_axis_other_than_data_cannot_span_slices():
    chips = [Chip(number + 4 * piece, piece) for piece in range(2) for number in range(4)]
    with pytest.raises(
        ConfigError, match=r"config\.mesh\.data: got 1, expected a multiple of the 2 slices"
    ):
        make_mesh(MESHES["fsdp"], chips)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("backbone/blocks/mix/query/kernel", (4, 16, 16), (None, "fsdp", "tensor")),
        ("encoder/backbone/blocks/mlp/down/kernel", (4, 32, 16), (None, "tensor", "fsdp")),
        ("backbone/blocks/mix/mixing", (4, 2, 1, 8, 8), (None, "tensor", None, None, None)),
        ("embed/embedding", (320, 16), ("tensor", "fsdp")),
        ("head/kernel", (16, 320), ("fsdp", "tensor")),
        ("backbone/blocks/mlp_norm/scale", (4, 16), (None, None)),
        # Neither axis divides its dimension.
        ("head/kernel", (15, 321), (None, None)),
    ],
)
def test_rules_lay_out_the_last_dimensions(path, shape, spec):
    assert spec_of(path, shape, SHARDING, axes(fsdp=2, tensor=2)) == PartitionSpec(*spec)


def test_a_rule_longer_than_its_parameter_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"config\.mesh\.rules: got 2 dimensions .* 'norm/scale', expected at most 1, .*16",
    ):
        spec_of("norm/scale", (16,), (("scale", ("fsdp", None)),), axes())


def test_moments_lie_as_their_parameters_and_numbers_are_whole():
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    place = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp"))
    params, state = (
        {"a": {"kernel": np.zeros((4, 2))}},
        {"mu": {"a": {"kernel": np.zeros((4, 2))}}, "count": np.zeros(())},
    )
    found = state_shardings(state, params, {"a": {"kernel": place}}, mesh)
    assert found["mu"]["a"]["kernel"] == place
    assert found["count"].spec == PartitionSpec()


def test_placements_say_what_a_device_holds():
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    params = {
        "head": {"kernel": np.zeros((4, 6), np.float32)},
        "norm": {"scale": np.zeros(4, np.float32)},
    }
    kernel, scale = placements(params, {"head": params["head"]}, SHARDING, mesh)
    assert (kernel.path, kernel.shape, kernel.dtype, kernel.bytes_per_device, kernel.trainable) == (
        "head/kernel",
        (4, 6),
        "float32",
        96,
        True,
    )
    assert (scale.path, scale.bytes_per_device, scale.trainable) == ("norm/scale", 16, False)
