"""What makes tests of many small models quick: compilation without optimisation, and weights without compilation."""

import functools
import os

# Before JAX starts; processes that tests start inherit it. Compiling costs more than everything a test computes.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@pytest.fixture(scope="session")
def quick():
    """`jax.jit` that compiles several times as fast and returns numpy arrays, on which nothing more is compiled."""

    def jit(function, **kwargs):
        compiled = jax.jit(function, compiler_options=OPTIONS, **kwargs)
        return lambda *args: jax.device_get(compiled(*args))

    return jit


@pytest.fixture(scope="session")
def draw():
    """Variables of a module in which no entry is special: norms are not 1 and biases not 0."""

    def variables(module, *args, method=None, seed=0, **kwargs):
        shapes = jax.eval_shape(functools.partial(module.init, method=method, **kwargs), jax.random.key(0), *args)
        rng = np.random.default_rng(seed)
        return jax.device_put(jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), shapes))

    return variables
