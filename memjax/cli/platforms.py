"""Keeps the TPU compiler out of machines that have no TPU.

libtpu also compiles for TPUs elsewhere (`memjax compile`), so it may be installed where there is none. JAX then loads it at the first
computation; it writes lines of errors and makes JAX's profiler fault, before JAX settles for the CPU.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import MutableMapping
from pathlib import Path

DEVICES = ("accel*", "vfio/[0-9]*")
"""Files that the drivers of TPUs make, in /dev."""


def skip_absent_tpu(environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")) -> None:
    """Sets JAX_PLATFORMS to cpu where it is not set and the TPU, of all platforms JAX could look for, is known to be absent.

    Call it before JAX is imported.
    """
    if "JAX_PLATFORMS" in environment or importlib.util.find_spec("libtpu") is None:
        return
    if any(found for pattern in DEVICES for found in devices.glob(pattern)):
        return
    # Packages for GPUs: whether there is one is then for JAX to find out.
    if importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"):
        return
    environment["JAX_PLATFORMS"] = "cpu"
