"""MemoryLLM: what is read while writing, what is dropped and when, and what an empty pool is.

It equals a causal language model where nothing was written, and with a pool of K rows it is a
recurrent memory of one write per layer: no old row stays, and the gradient passes through.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.peers import PEERS
from memjax.models.peers.memory_pool import POOL, WRITTEN, MemoryLLM

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 6, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(1).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def made(**dials):
    """The module for tests, with other dials."""
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
    dials = {**PEERS["memoryllm"].tiny, **dials}
    return build(config, Stage(family="memoryllm", dials=dials, objectives={"next_token": 1.0}))


def filled(module, seed=2):
    """A state with random rows."""
    shape = BATCH, STACK.layers, module.dials.rows, WIDTH
    pool = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return {POOL: jnp.asarray(pool), WRITTEN: jnp.ones(BATCH, bool)}


def written(module, chunks, **rngs):
    """A program of variables and tokens: the pool after every chunk."""

    def run(variables, tokens):
        return module.apply(variables, tokens[:, :chunks], method="fold", **rngs).leaves

    return run


@pytest.mark.slow
def test_a_write_reads_the_newest_rows_alone(draw, quick):
    module = made()
    variables = draw(module, TOKENS)

    def total(pool):
        leaves = {**filled(module), POOL: pool}
        new = module.apply(variables, leaves, TOKENS[:, 0], REAL, method="new_rows")
        return (new**2).sum()

    gradient = quick(jax.grad(total))(filled(module)[POOL])
    assert not gradient[:, :, :-2].any()
    assert gradient[:, :, -2:].any(axis=-1).all()


@pytest.mark.slow
def test_a_pool_of_one_write_is_a_recurrent_memory_of_every_layer(draw, quick):
    module = made(rows=2)
    variables = draw(module, TOKENS)

    def after(pool):
        leaves = {**filled(module), POOL: pool}
        return module.apply(variables, leaves, TOKENS[:, 0], REAL, method="update")[POOL]

    def both(pool):
        new = module.apply(
            variables, {**filled(module), POOL: pool}, TOKENS[:, 0], REAL, method="new_rows"
        )
        return after(pool), new, jax.grad(lambda pool: (after(pool) ** 2).sum())(pool)

    pool, new, gradient = quick(both)(filled(module)[POOL])
    assert np.array_equal(pool, new)
    assert gradient.any(axis=-1).all()


@pytest.mark.slow
def test_the_oldest_rows_leave_and_the_first_write_fills_the_pool(draw, quick):
    module = made()
    pool = quick(written(module, 4))(draw(module, TOKENS), TOKENS)[POOL]
    first, second, third = pool[:, 1], pool[:, 2], pool[:, 3]
    assert not pool[:, 0].any()
    assert np.array_equal(first[:, :, :2], first[:, :, 2:])
    # n / K = 2: what a chunk writes is there after its own write and the next.
    assert np.array_equal(second[:, :, :2], first[:, :, 2:])
    assert np.array_equal(third[:, :, :2], second[:, :, 2:])
    assert not np.isin(first, third).any()


@pytest.mark.slow
def test_a_row_survives_by_the_law(draw, quick):
    """(1 - K / n)^t, here 1 / 4 after 2 writes of half a pool."""
    module, keys, writes = made(), 500, 2
    variables = draw(module, TOKENS)

    def survive(key):
        ids = jnp.broadcast_to(jnp.arange(4.0)[:, None], (STACK.layers, 4, WIDTH))
        leaves = {POOL: ids[None], WRITTEN: jnp.ones(1, bool)}
        for seed in jax.random.split(key, writes):
            new = jnp.full((1, STACK.layers, 2, WIDTH), -1.0)
            order = module.apply(variables, 1, method="dropped_first", rngs={"memory": seed})
            leaves = module.apply(variables, leaves, new, order, method="replace")
        return (leaves[POOL][0, :, :, 0] >= 0).sum(axis=1)

    found = quick(jax.vmap(survive))(jax.random.split(jax.random.key(0), keys))
    assert np.array_equal(found[:, 0], found[:, 1])
    share = found[:, 0] / 4
    error = share.std() / np.sqrt(keys)
    assert abs(share.mean() - 0.25) < 3 * error < 0.05


@pytest.mark.slow
def test_every_write_draws_anew(draw, quick):
    module = made(rows=4, vectors=1)
    variables = draw(module, TOKENS)
    pools = [
        quick(written(module, CHUNKS, rngs={"memory": jax.random.key(seed)}))(variables, TOKENS)
        for seed in range(3)
    ]
    assert any(not np.array_equal(pools[0][POOL], other[POOL]) for other in pools[1:])
    # The newest row is never what a write drops of itself.
    new = pools[0][POOL][:, 1:, :, -1]
    assert len(np.unique(new[0, :, 0, 0])) == CHUNKS


@pytest.mark.slow
def test_without_rows_it_is_a_causal_language_model(draw, quick):
    module = made(sink=False)
    variables = draw(module, TOKENS)
    x = np.random.default_rng(3).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)

    def both(pool):
        def run(model):
            leaves = {POOL: pool, WRITTEN: jnp.zeros(BATCH, bool)}
            return model.read(leaves, x, TOKENS[:, 0], REAL), model.backbone(x, valid=REAL)

        return module.apply(variables, method=run)

    read, plain = quick(both)(filled(module)[POOL])
    np.testing.assert_allclose(read, plain, atol=1e-6)


@pytest.mark.slow
def test_a_short_chunk_fills_up_with_the_newest_rows(draw, quick):
    module = made()
    variables, valid = draw(module, TOKENS), REAL.copy()
    valid[:, 1:] = False

    def update(leaves):
        return module.apply(variables, leaves, TOKENS[:, 0], valid, method="update")[POOL]

    state = filled(module)
    after = quick(update)(state)
    assert np.array_equal(after[:, :, :2], state[POOL][:, :, 2:])
    assert np.array_equal(after[:, :, 2], state[POOL][:, :, 3])
    # Nothing is before the first chunk: its one token is all that there is.
    first = quick(update)({**state, WRITTEN: jnp.zeros(BATCH, bool)})
    assert np.array_equal(first, np.broadcast_to(first[:, :, :1], first.shape))


class Lasting(MemoryLLM):
    """A faulty one, whose writes read all rows."""

    def new_rows(self, leaves, tokens, valid):
        new = super().new_rows(leaves, tokens, valid)
        return new + leaves[POOL].mean(axis=2, keepdims=True)


@pytest.mark.slow
def test_the_gradient_shows_a_write_that_reads_old_rows(draw, quick):
    module = made()
    faulty = Lasting(MODEL, CHUNKS, VOCABULARY, dials=module.dials)
    variables = draw(module, TOKENS)

    def total(pool):
        leaves = {**filled(module), POOL: pool}
        return faulty.apply(variables, leaves, TOKENS[:, 0], REAL, method="new_rows").sum()

    assert quick(jax.grad(total))(filled(module)[POOL])[:, :, :-2].any()
