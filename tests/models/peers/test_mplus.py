"""M+: what is retrieved of a store, in which order, and the query that looks ahead as published.
(That it is MemoryLLM with an empty store is in test_lattice.py.)"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.peers.memory_pool import POOL, WRITTEN
from memjax.models.peers.mplus import (
    AGE,
    STORE,
    STORE_AGE,
    STORE_KEY,
    STORE_LIFE,
    MPlus,
    StoreDials,
)

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 8, 8, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
RNG = np.random.default_rng(4)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)
DIALS = StoreDials(rows=2, vectors=1, stored=4, retrieved=1, key_width=4)
X = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
ROWS = (BATCH, STACK.layers, DIALS.stored)
STATE = {
    POOL: RNG.normal(size=(*ROWS[:2], DIALS.rows, WIDTH)).astype(np.float32),
    WRITTEN: np.ones(BATCH, bool),
    AGE: np.tile(np.array([4, 5], np.int32), (BATCH, 1)),
    STORE: RNG.normal(size=(*ROWS, WIDTH)).astype(np.float32),
    STORE_KEY: RNG.normal(size=(*ROWS, DIALS.key_width)).astype(np.float32),
    STORE_AGE: np.tile(np.arange(DIALS.stored, dtype=np.int32), (BATCH, 1)),
    STORE_LIFE: np.full((BATCH, DIALS.stored), 9, np.int8),
}


def make(kind=MPlus, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=dataclasses.replace(DIALS, **dials))


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


def reader(module, variables, quick):
    """A program of leaves and inputs: what is read."""
    tokens = TOKENS[:, 0]
    return quick(lambda leaves, x: module.apply(variables, leaves, x, tokens, REAL, method="read"))


class AsksByTheMean(MPlus):
    """A fault, as published: the query is a mean over all inputs."""

    def entering(self, leaves, x, valid):
        _, left = self.read_behind(*self.pool_rows(leaves), x, valid)
        entering = jnp.concatenate([x[None].astype(left.dtype), left[:-1]])
        return jnp.swapaxes(entering, 0, 1).mean(axis=2, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MPlus, AsksByTheMean])
def test_the_published_query_lets_later_inputs_choose(kind, variables, quick):
    """T2r fails for it: earlier inputs read another row."""
    read, other = reader(make(kind), variables, quick), X.copy()
    other[:, -1] = -3 * X[:, -1]
    one, two = read(STATE, X), read(STATE, other)
    assert np.array_equal(one[:, :-1], two[:, :-1]) is (kind is MPlus)


@pytest.mark.slow
def test_a_choice_of_all_rows_needs_no_keys(variables, quick):
    other = {**STATE, STORE_KEY: -STATE[STORE_KEY]}
    for retrieved, same in ((DIALS.stored, True), (1, False)):
        read = reader(make(retrieved=retrieved), variables, quick)
        assert np.array_equal(read(STATE, X), read(other, X)) is same


def test_rows_come_in_the_order_of_their_age(variables, quick):
    """Whatever they score; places without a row are first, and are not found."""
    module, few = make(retrieved=2), STATE[STORE_AGE].copy()
    few[1:, :-1] = -1
    ages = np.broadcast_to(few[:, None, :, None], (*ROWS, WIDTH)).astype(np.float32)
    leaves, asked = {**STATE, STORE: ages, STORE_AGE: few}, X[:, None, :1].repeat(2, axis=1)
    retrieve = quick(lambda *args: module.apply(variables, *args, method="retrieve"))
    rows, found = retrieve(leaves, asked)
    assert (rows[0, :, 0, 0] < rows[0, :, 1, 0]).all() and found[0].all()
    assert (rows[1:, :, 1, 0] == DIALS.stored - 1).all()
    assert found[1:].tolist() == [[False, True]] * (BATCH - 1)


@pytest.mark.slow
def test_a_row_is_in_one_place(variables, quick):
    """In the pool, then in the store, and then nowhere; copies are never stored."""
    module = make(rows=4, vectors=2)
    leaves = quick(lambda t: module.apply(variables, t, method="fold").leaves)(TOKENS)
    for count, (pool, store) in enumerate(zip(leaves[AGE][0], leaves[STORE_AGE][0], strict=True)):
        held = [age for age in (*store, *pool) if age >= 0]
        written = list(range(2 * count))
        assert held == written[-8:]
        assert (store >= 0).sum() == min(max(0, len(written) - 4), 4)


@pytest.mark.slow
def test_the_loss_of_the_selector_teaches_its_maps_alone(variables, quick):
    relevant = np.arange(DIALS.stored) < 2
    relevant = np.broadcast_to(relevant, (BATCH, DIALS.stored))

    def loss(variables):
        return make().apply(variables, STATE, X, REAL, relevant, method="selector_loss")

    slope = quick(jax.grad(loss))(variables)["params"]
    for name, tree in slope.items():
        some = any(np.any(leaf) for leaf in jax.tree.leaves(tree))
        assert some is (name in ("asks", "holds"))
