"""The gradient of a token table: its values, and what it holds in memory on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.layers import embed

ROWS, WIDTH = 103, 6
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
IDS = RNG.integers(0, ROWS, (8, 3)).astype(np.int32)
IDS[:4] = IDS[0, 0]  # Shards share rows, and a shard has one several times.
WEIGHT = RNG.normal(size=(*IDS.shape, WIDTH)).astype(np.float32)


@pytest.fixture
def gradient(monkeypatch):
    """The gradient as eight shards of the batch compute it on axes of these sizes."""

    def split(fsdp, tensor=1):
        monkeypatch.setattr(embed, "batch_parts", lambda rows: 8)
        monkeypatch.setattr(embed, "axis_size", {"fsdp": fsdp, "tensor": tensor}.get)
        # A new function, of which JAX has no trace.
        return jax.grad(lambda table: jnp.sum(embed.lookup(table, IDS, jnp.float32) * WEIGHT))

    return split


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (4, 1), (8, 1), (3, 4), (1, 2)])
def test_a_gradient_by_blocks_of_rows_is_that_of_all_rows_at_once(fsdp, tensor, gradient):
    expected = np.zeros((8, ROWS, WIDTH), np.float32)
    for shard, ids, weight in zip(expected, IDS, WEIGHT, strict=True):
        np.add.at(shard, ids, weight)
    found = jax.jit(gradient(fsdp, tensor))(TABLE)
    np.testing.assert_allclose(found, expected.sum(axis=0), rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32


def test_all_shards_together_hold_one_table_of_sums(gradient, largest):
    table = jnp.zeros((1024, WIDTH))
    assert largest(gradient(1), table) == 8 * 1024 * WIDTH
    assert largest(gradient(8), table) == 1024 * WIDTH


def test_no_block_has_fewer_rows_than_a_shard_has_tokens(gradient):
    assert "length=10" in str(jax.make_jaxpr(gradient(512))(jnp.zeros((30, WIDTH))))
