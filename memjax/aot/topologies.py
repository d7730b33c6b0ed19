"""TPU slices by the names Cloud gives them, their chips, and devices to compile for where there is no TPU.

v4 and v5p names count TensorCores, of which a chip has two: v5p-128 is 64 chips. v5e and v6e names count chips. `2xv5e-256` is two
slices: within one the interconnect (ICI), between them the data-centre network (DCN).
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from memjax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at best, in a second. Rates of networks are of what it sends; it receives as much at the same time."""

    device_kind: str
    """What JAX calls it."""
    flops: float
    """Of bfloat16 matrix products."""
    hbm: int
    """Bytes a program may use, as the compiler of libtpu 0.0.51 says where one needs more; the chip has a little more."""
    hbm_rate: float
    """Bytes to and from HBM."""
    ici_rate: float
    """Bytes over all links of a chip at once. A collective along one axis of the torus has two of `ici_links`."""
    ici_links: int
    dcn_rate: float
    """Bytes, a chip's share of what its host's network cards send."""


def _gib(number: float) -> int:
    return int(number * 2**30)


# Peaks, HBM rates and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, which count a link's two directions together for v5e (400 GB/s a
# chip), v5p (1200) and v6e (800): half of it is here. v4's 6 links of 50 GB/s each way and its HBM rate: Jouppi et al. 2023,
# arXiv 2304.01433, table 4. DCN: hosts of 8 chips with 2 x 100 Gbit/s (v5e) and 4 x 200 Gbit/s (v6e), and 50 Gbit/s a chip (v5p),
# same pages; v4, of which they say nothing, is taken to have what v5p has (jax-ml.github.io/scaling-book/tpus).
CHIPS = {
    "v4": Chip("TPU v4", 275e12, _gib(30.75), 1228e9, 300e9, 6, 6.25e9),
    "v5e": Chip("TPU v5 lite", 197e12, _gib(15.75), 819e9, 200e9, 4, 3.125e9),
    "v5p": Chip("TPU v5", 459e12, _gib(95.73), 2765e9, 600e9, 6, 6.25e9),
    "v6e": Chip("TPU v6 lite", 918e12, _gib(31.24), 1638e9, 400e9, 4, 12.5e9),
}

# A v3 device is one of the two cores of a chip of 123e12. GPUs: dense bfloat16, NVIDIA's data sheets of the H100 (SXM, NVL, PCIe), H200 and
# A100. JAX gives a GPU the name its driver gives it, which begins with these.
_TPU_FLOPS = {"TPU v3": 123e12 / 2} | {chip.device_kind: chip.flops for chip in CHIPS.values()}
_GPU_FLOPS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of bfloat16 matrix products of one JAX device, `jax.devices()[0].device_kind`; None where it is not known."""
    gpus = (flops for name, flops in _GPU_FLOPS.items() if device_kind.startswith(name))
    return _TPU_FLOPS.get(device_kind, next(gpus, None))


# Chips along each axis of the torus, by the number of chips.
_TORUS_2D = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
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


@dataclasses.dataclass(frozen=True)
class Topology:
    """One TPU slice, or several of the same kind."""

    name: str
    generation: str
    torus: tuple[int, ...]
    """Chips of a slice along each axis."""
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return CHIPS[self.generation]

    @property
    def slice_chips(self) -> int:
        """Chips in a slice; each is one JAX device."""
        return math.prod(self.torus)

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return self.slices * self.slice_chips

    @property
    def host_torus(self) -> tuple[int, int, int]:
        """Chips of a host along each axis: 4, but that up to 8 v5e or v6e chips are on one host."""
        x, y = self.torus[:2]
        return (x, y, 1) if self.slice_chips <= 8 and len(self.torus) == 2 else (2, 2, 1)

    @property
    def host_chips(self) -> int:
        """Chips in a host."""
        return math.prod(self.host_torus)

    @property
    def hosts(self) -> int:
        """Hosts, and so processes, of all slices."""
        return self.chips // self.host_chips

    def request(self) -> dict[str, Any]:
        """What `jax.experimental.topologies.get_topology_desc` is asked for."""
        # The compiler's name of a v5p is v5.
        kind = {"v5p": "v5"}.get(self.generation, self.generation)
        asked: dict[str, Any] = {
            "platform": "tpu",
            "topology_name": f"{kind}:{'x'.join(map(str, self.torus))}",
            "chips_per_host_bounds": self.host_torus,
        }
        if len(self.torus) == 3:
            # Two cores as one device, as JAX runs them.
            asked["chip_config_name"] = "megacore"
        return asked | ({"num_slices": self.slices} if self.slices > 1 else {})


def _slices_of_one() -> dict[str, Topology]:
    found = {}
    for generation in CHIPS:
        cores, tori = (2, _TORUS_3D) if generation in ("v4", "v5p") else (1, _TORUS_2D)
        for chips, torus in tori.items():
            name = f"{generation}-{cores * chips}"
            found[name] = Topology(name, generation, torus)
    return found


TOPOLOGIES = _slices_of_one()
"""Single slices by name."""


def topology(name: str) -> Topology:
    """The slice of that name, `v5e-256`, or several of one kind, `2xv5e-256`.

    Raises:
      ConfigError: there is no such slice; the message lists those there are.
    """
    several = re.fullmatch(r"([1-9]\d*)x(.+)", name)
    slices, one = (int(several[1]), several[2]) if several else (1, name)
    if one not in TOPOLOGIES:
        raise ConfigError(f"topology={name!r} is not known; use one of {', '.join(TOPOLOGIES)}, or several, such as 2xv5e-256")
    return dataclasses.replace(TOPOLOGIES[one], name=name, slices=slices)


def topology_of(generation: str, chips: int) -> Topology:
    """That many chips of a generation (`CHIPS`): one slice while there is one so large, then several of the largest.

    Raises:
      ConfigError: there is no such number of chips.
    """
    sizes = {t.slice_chips: t for t in TOPOLOGIES.values() if t.generation == generation}
    if chips in sizes:
        return sizes[chips]
    largest = max(sizes, default=0)
    if not largest or chips <= largest or chips % largest:
        raise ConfigError(
            f"{chips} chips of {generation} make no topology; there are slices of {', '.join(map(str, sizes)) or 'none'}, and"
            f" several of the largest (generations: {', '.join(CHIPS)})"
        )
    return topology(f"{chips // largest}x{sizes[largest].name}")


def devices(name: str) -> list[Any]:
    """The devices of `topology(name)`, which programs can be compiled for and nothing can run on.

    With several slices a device's `slice_index` says which it is of.

    Raises:
      ConfigError: there is no such topology, or no libtpu.
    """
    wanted = topology(name)
    if "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"topology={name!r} needs the TPU compiler, libtpu: pip install 'memjax[aot]'")
    # libtpu reads these when it is loaded: it would ask a metadata server which TPU this is, complain that it does not know its own
    # host, and refuse to be in two processes at once, which matters for those that own a TPU alone.
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
