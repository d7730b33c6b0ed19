"""Layers are compared with NumPy oracles: their weights are NumPy arrays."""

import jax
import pytest


@pytest.fixture(scope="session")
def draw(draw):
    """As in the folder above, on the host."""
    return lambda *args, **kwargs: jax.device_get(draw(*args, **kwargs))


def sizes(jaxpr):
    """Elements of every array that appears in a jaxpr, those of inner ones included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.size for v in equation.outvars}
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda p: isinstance(p, jax.extend.core.ClosedJaxpr)
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= sizes(inner)
    return found


@pytest.fixture(scope="session")
def largest():
    """Elements of the largest array that a function computes on its way."""
    return lambda function, *args: max(sizes(jax.make_jaxpr(function)(*args).jaxpr))
