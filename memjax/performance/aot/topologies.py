"""TPU slices by their Cloud names, their chips, and devices to compile for without a TPU.

v4 and v5p names count TensorCores, of which a chip has two: v5p-128 is 64 chips. v5e and v6e names
count chips. `2xv5e-256` is two slices: within one the interconnect (ICI), between them the
data-centre network (DCN).
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from memjax.config import ConfigError


class Chip(NamedTuple):
    """Peak rates of one chip, per second.

    Rates of networks are those of sending; a chip receives as much at the same time.
    """

    device_kind: str
    """JAX's name of the chip."""
    flops: float
    """FLOP/s of bfloat16 matrix products."""
    hbm: int
    """Bytes that a program may use, from errors of libtpu 0.0.51; the chip has a little more."""
    hbm_rate: float
    """Bytes per second to and from HBM."""
    ici_rate: float
    """Bytes per second over all links of a chip at once."""
    dcn_rate: float
    """Bytes per second, a chip's share of its host's network cards."""


def _gib(number: float) -> int:
    return int(number * 2**30)


# Peaks, HBM rates and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, which add a link's
# two directions for v5e (400 GB/s per chip), v5p (1200) and v6e (800): half of that is given here.
# v4's 6 links of 50 GB/s each way and its HBM rate: Jouppi et al. 2023, arXiv 2304.01433, table 4.
# DCN: hosts of 8 chips with 2 x 100 Gbit/s (v5e) and 4 x 200 Gbit/s (v6e), and 50 Gbit/s per chip
# (v5p), same pages; v4, which they omit, is assumed equal to v5p
# (jax-ml.github.io/scaling-book/tpus).
CHIPS = {
    "v4": Chip("TPU v4", 275e12, _gib(30.75), 1228e9, 300e9, 6.25e9),
    "v5e": Chip("TPU v5 lite", 197e12, _gib(15.75), 819e9, 200e9, 3.125e9),
    "v5p": Chip("TPU v5", 459e12, _gib(95.73), 2765e9, 600e9, 6.25e9),
    "v6e": Chip("TPU v6 lite", 918e12, _gib(31.24), 1638e9, 400e9, 12.5e9),
}

# A v3 device is one of the two cores of a chip of 123e12. GPUs: dense bfloat16, NVIDIA's data
# sheets of the H100 (SXM, NVL, PCIe), H200 and A100. JAX uses the driver's name of a GPU, which
# starts with these.
_TPU_FLOPS = {"TPU v3": 123e12 / 2} | {chip.device_kind: chip.flops for chip in CHIPS.values()}
_GPU_FLOPS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return the FLOP/s of bfloat16 matrix products of one JAX device, or None if unknown.

    `device_kind` is `jax.devices()[0].device_kind`.
    """
    gpus = (flops for name, flops in _GPU_FLOPS.items() if device_kind.startswith(name))
    return _TPU_FLOPS.get(device_kind, next(gpus, None))


# Chips along each axis of the torus, by the number of chips.
_TORUS_2D = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
_TORUS_3D = {
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
    512: (8, 8, 8),
    1024: (8, 8, 16),
    2048: (8, 16, 16),
}


class Topology(NamedTuple):
    """One TPU slice, or several of the same kind."""

    name: str
    generation: str
    torus: tuple[int, ...]
    """Chips of a slice along each axis."""
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Return the kind of chip."""
        return CHIPS[self.generation]

    @property
    def slice_chips(self) -> int:
        """Return the chips per slice; each is one JAX device."""
        return math.prod(self.torus)

    @property
    def chips(self) -> int:
        """Return the chips in all slices."""
        return self.slices * self.slice_chips

    @property
    def host_torus(self) -> tuple[int, int, int]:
        """Return the chips of a host along each axis.

        A host has 4 chips, or up to 8 if a v5e or v6e slice fits on one host.
        """
        x, y = self.torus[:2]
        return (x, y, 1) if self.slice_chips <= 8 and len(self.torus) == 2 else (2, 2, 1)

    def request(self) -> dict[str, Any]:
        """Return the arguments of `jax.experimental.topologies.get_topology_desc`."""
        # The compiler's name of v5p is v5.
        kind = {"v5p": "v5"}.get(self.generation, self.generation)
        arguments: dict[str, Any] = {
            "platform": "tpu",
            "topology_name": f"{kind}:{'x'.join(map(str, self.torus))}",
            "chips_per_host_bounds": self.host_torus,
        }
        if len(self.torus) == 3:
            # Two cores as one device, as JAX runs them.
            arguments["chip_config_name"] = "megacore"
        return arguments | ({"num_slices": self.slices} if self.slices > 1 else {})


# Cores per chip that names count, and the slices.
_GENERATIONS = {
    "v4": (2, _TORUS_3D),
    "v5e": (1, _TORUS_2D),
    "v5p": (2, _TORUS_3D),
    "v6e": (1, _TORUS_2D),
}
TOPOLOGIES = {
    name: Topology(name, generation, torus)
    for generation, (cores, tori) in _GENERATIONS.items()
    for name, torus in ((f"{generation}-{cores * chips}", torus) for chips, torus in tori.items())
}
"""Single slices by name."""


def topology(name: str) -> Topology:
    """Return the slice of that name, `v5e-256`, or several of one kind, `2xv5e-256`.

    Raises:
      ConfigError: there is no such slice; the message lists the known ones.
    """
    several = re.fullmatch(r"([1-9]\d*)x(.+)", name)
    slices, one = (int(several[1]), several[2]) if several else (1, name)
    ConfigError.require(
        one in TOPOLOGIES,
        f"topology: got {name!r}, expected one of {', '.join(TOPOLOGIES)}, or several, such as"
        " 2xv5e-256",
    )
    return TOPOLOGIES[one]._replace(name=name, slices=slices)


def devices(name: str) -> list[Any]:
    """Return the devices of `topology(name)`, for which programs can be compiled but not run.

    With several slices a device has the `slice_index` of its slice.

    Raises:
      ConfigError: there is no such topology, or no libtpu.
    """
    wanted = topology(name)
    ConfigError.require(
        "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu"),
        f"topology={name!r} needs the TPU compiler, libtpu. Run pip install libtpu",
    )
    # libtpu reads these when it is loaded. Without them it would query a metadata server for the
    # kind of TPU, warn that its host is unknown, and refuse to load in two processes at once, which
    # protects processes that own a TPU.
    for variable, value in _WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(**wanted.request()).devices)


_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
