"""TPU slices by their Cloud names, and devices to compile for without a TPU.

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
from memjax.sharding.chips import CHIPS, Chip

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
