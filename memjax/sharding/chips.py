"""Peak rates of accelerators: TPU chips, and the matrix products of GPUs."""

from typing import NamedTuple


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
