"""Layers are compared with NumPy oracles: their weights are NumPy arrays."""

import jax
import pytest


@pytest.fixture(scope="session")
def draw(draw):
    """As in the folder above, on the host."""
    return lambda *args, **kwargs: jax.device_get(draw(*args, **kwargs))
