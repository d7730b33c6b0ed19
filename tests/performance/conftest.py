"""What goes with the TPU compiler: flags that it knows, and no cache of programs."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="package", autouse=True)
def compiler_settings():
    """XLA_FLAGS without flags of CPUs alone, and no compilation cache, while these tests run.

    JAX has read the flags; the TPU compiler reads them anew and exits where it does not know one.
    Programs for TPUs cannot be loaded without one.
    """
    jax.devices()
    flags = os.environ["XLA_FLAGS"].split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", " ".join(x for x in flags if not x.startswith("--xla_cpu")))
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
