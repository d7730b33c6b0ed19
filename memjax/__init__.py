"""memjax: memory models for language in JAX and Flax.

The names at the end are the public ones; each is imported when it is first used.
"""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from etils import epy

from memjax.version import __version__

_TPU_FILES = ("accel*", "vfio/[0-9]*")
"""Files in /dev that the drivers of TPUs create."""


def _skip_absent_tpu(
    environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> None:
    """Set JAX_PLATFORMS to cpu where it is not set and the machine has no TPU.

    libtpu also compiles for TPUs elsewhere (`memjax compile`), so it may be installed on a machine
    without one. JAX would load it at the first computation, and libtpu would write a page of errors
    to stderr. A machine that may have a GPU is left to JAX. Where JAX is imported already, its
    setting `jax_platforms` is set, which counts until the first computation.
    """
    if "JAX_PLATFORMS" in environment or importlib.util.find_spec("libtpu") is None:
        return
    if any(found for pattern in _TPU_FILES for found in devices.glob(pattern)):
        return
    # Packages for GPUs: whether there is one is then for JAX to find out.
    if importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(
        group="jax_plugins"
    ):
        return
    environment["JAX_PLATFORMS"] = "cpu"
    jax = sys.modules.get("jax")
    if jax is not None and not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")


_skip_absent_tpu()

with epy.lazy_api_imports(globals()):
    from memjax import config, models, objectives
    from memjax.checkpoints.store import open_store
    from memjax.evaluation import instruments
    from memjax.experiment.run import run_experiment
    from memjax.inference.trained_model import TrainedModel, load
    from memjax.layers import Backbone
    from memjax.models import (
        Autoencoder,
        CausalLM,
        Encoder,
        EntropyRegressor,
        MemoryModel,
        Oracle,
        Ranker,
        RecurrentMemory,
        Retriever,
    )
