"""The linear map: axes are folded where it is faster, and only there."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from memjax.layers import Linear
from memjax.sharding.mesh import AXES


@pytest.mark.parametrize(("platform", "folds"), [("cpu", 2), ("tpu", 0)])
def test_axes_are_folded_on_cpus_alone(platform, folds):
    """A tile of a TPU has 8 rows: there, folding 7 positions of 3 rows copies what is folded."""
    layer, x = Linear(5), np.random.default_rng(0).normal(0, 1, (3, 7, 4)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(0, 1, (4, 5)).astype(np.float32)
    variables = {"params": {"kernel": kernel}}
    device = AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=device)):
        traced = jax.make_jaxpr(lambda x: layer.apply(variables, x))(x)
    assert [str(one.primitive) for one in traced.eqns].count("reshape") == folds
    (y,) = jax.core.eval_jaxpr(traced.jaxpr, traced.consts, x)
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-5, atol=1e-6)
