"""Chunks that read one prefix: in pieces as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.layers import shared_prefix
from memjax.layers.shared_prefix import SharedPrefix, attend_shared

ENTRIES, CHUNKS, LENGTH = 9, 6, 4


@pytest.mark.parametrize(("piece", "loops"), [(10**6, 0), (2 * 4 * 13, 1), (1, 1)])
def test_pieces_of_chunks_give_what_all_give_at_once(monkeypatch, quick, piece, loops):
    positions = ENTRIES + CHUNKS * LENGTH
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (
        jax.random.normal(k, (2, positions, heads, 8))
        for k, heads in zip(keys, (4, 2, 2), strict=True)
    )
    visible = jnp.array([[0, 3, 9, 1, 2, 5], [9, 9, 0, 4, 6, 7]])
    reading = SharedPrefix(
        jnp.ones((2, positions), bool).at[1, 4].set(False), (visible,), (ENTRIES,), LENGTH
    )

    def probe(*tensors):
        mixed = attend_shared(*tensors, reading, "xla")
        return jnp.sum(jnp.sin(mixed)), mixed

    whole = jax.value_and_grad(probe, argnums=(0, 1, 2), has_aux=True)
    expected = quick(whole)(query, key, value)
    monkeypatch.setattr(shared_prefix, "LONG", 8)
    monkeypatch.setattr(shared_prefix, "PIECE", piece)
    # A new function: the first one is compiled as it was.
    pieces = jax.value_and_grad(lambda *x: probe(*x), argnums=(0, 1, 2), has_aux=True)
    assert str(jax.make_jaxpr(probe)(query, key, value)).count("scan[") == loops
    found = quick(pieces)(query, key, value)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)
