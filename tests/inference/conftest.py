"""What makes tests of generation quick."""

import functools

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly():
    """Programs of generators compile as those of `quick` do."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield
