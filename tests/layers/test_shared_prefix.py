"""Chunks that read one prefix: in pieces as at once, and by the kernel as by XLA."""

import functools

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


@pytest.mark.quick_cases("blind")
@pytest.mark.parametrize("blind", [True, False], ids=["blind", "causal"])
def test_the_kernel_gives_what_two_blocks_of_scores_do(quick, blind):
    entries, chunks, length = 3, 2, 5
    positions = entries + chunks * length
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, direction = (
        jax.random.normal(k, (2, positions, heads, 8))
        for k, heads in zip(keys, (2, 1, 1, 2), strict=True)
    )
    # An entry without text, and a chunk that ends with padding.
    valid = jnp.ones((2, positions), bool).at[1, 1].set(False).at[0, -2:].set(False)
    visible = jnp.array([[0, 3], [2, 1]])
    reading = SharedPrefix(valid, (visible,), (entries,), length, blind)

    def probe(*tensors, implementation):
        mixed = attend_shared(*tensors, reading, implementation, interpret=True)
        read = jnp.where(valid[..., None, None], mixed, 0)
        return jnp.sum(read * direction), read

    expected, found = (
        quick(
            jax.value_and_grad(
                functools.partial(probe, implementation=name), argnums=(0, 1, 2), has_aux=True
            )
        )(query, key, value)
        for name in ("xla", "splash")
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-6), found, expected)
