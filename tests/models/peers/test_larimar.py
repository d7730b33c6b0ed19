"""Larimar: what is written is read back, a read is a projection, order does not matter, and the
pseudo-inverses are those of numpy. The common tests are in test_peer.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.peers.larimar import (
    COUNT,
    GRAM,
    SUM,
    Larimar,
    iterated_inverse,
    ridge_inverse,
    weight_penalty,
)

CHUNKS, LENGTH, VOCABULARY, SLOTS, WIDTH = 3, 4, 24, 10, 16
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
CONFIG = Config(
    data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH),
    model=Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK),
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)


def module_of(**dials):
    dials = {"slots": SLOTS, "items": 2, **dials}
    return build(CONFIG, Stage(family="larimar", dials=dials, objectives={"next_token": 1.0}))


def applied(module, variables, method, *args, **kwargs):
    return module.apply(variables, *args, method=method, **kwargs)


def written(z, start, prior=False):
    """The sums of items at the addresses that a start gives them."""
    w = z @ np.linalg.pinv(start)
    leaves = {GRAM: w.T @ w, SUM: w.T @ z, COUNT: np.array(len(z))}
    return w, {name: jnp.asarray(leaf, jnp.float32)[None] for name, leaf in leaves.items()}


@pytest.fixture(scope="module")
def larimar(draw):
    """A module, variables with a start that is no identity, and that start."""
    module = module_of()
    variables = jax.tree.map(np.array, draw(module, TOKENS))
    start = np.eye(SLOTS, WIDTH) + 0.1 * RNG.normal(size=(SLOTS, WIDTH))
    variables["params"]["start_memory"] = start.astype(np.float32)
    return module, variables, start


def read(larimar, leaves, queries, module=None, rngs=None):
    module = module or larimar[0]
    asked = jnp.asarray(queries, jnp.float32)[None]
    return np.asarray(applied(module, larimar[1], Larimar.recall, leaves, asked, rngs=rngs)[0])


@pytest.mark.slow
def test_items_up_to_the_number_of_slots_are_read_back(larimar):
    """B.14 test 1: fewer items than slots, without noise."""
    z = RNG.normal(size=(5, WIDTH))
    _, leaves = written(z, larimar[2])
    np.testing.assert_allclose(read(larimar, leaves, z), z, atol=1e-3)
    finer = module_of(read_ridge=1e-5)
    np.testing.assert_allclose(read(larimar, leaves, z, finer), z, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("items", [4, 14])
def test_a_read_is_a_projection_on_the_memory(larimar, items):
    """B.14 test 2, with fewer and with more items than slots: the rank law."""
    module, variables, start = larimar
    z = RNG.normal(size=(items, WIDTH))
    _, leaves = written(z, start)
    memory = np.asarray(applied(module, variables, Larimar.memory_matrix, leaves)[0], float)
    rank = min(items, SLOTS)
    assert np.linalg.matrix_rank(memory, tol=1e-2) == rank
    _, _, rows = np.linalg.svd(memory)
    projected = z @ rows[:rank].T @ rows[:rank]
    np.testing.assert_allclose(read(larimar, leaves, z), projected, atol=5e-3)
    assert (np.abs(projected - z).max() < 1e-3) == (items <= SLOTS)


@pytest.mark.slow
def test_a_start_of_ones_makes_the_memory_a_projector(larimar):
    """B.14 test 4: as many slots as the width."""
    module, start = module_of(slots=WIDTH), np.eye(WIDTH, dtype=np.float32)
    z = RNG.normal(size=(5, WIDTH))
    _, leaves = written(z, start)
    variables = {"params": {**larimar[1]["params"], "start_memory": start}}
    memory = applied(module, variables, Larimar.memory_matrix, leaves)[0]
    np.testing.assert_allclose(memory, np.linalg.pinv(z) @ z, atol=2e-3)


def test_the_prior_keeps_what_is_unwritten(larimar):
    """B.14 test 6: the mean that successive updates at fixed addresses have, in any order."""
    _, variables, start = larimar
    z = RNG.normal(size=(4, WIDTH))
    w, leaves = written(z, start)
    block = np.linalg.pinv(w) @ z
    kept = start + block - np.linalg.pinv(w) @ w @ start
    assert np.abs(kept - block).max() > 0.1
    for prior, wanted in ((False, block), (True, kept)):
        module = module_of(prior=prior)
        found = applied(module, variables, Larimar.memory_matrix, leaves)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-2)


@pytest.mark.slow
def test_the_order_of_writes_does_not_matter(draw, quick):
    """B.14 test 3; without marks of places, which differ by order on purpose."""
    module = module_of()
    variables = jax.tree.map(np.array, draw(module, TOKENS))
    variables["params"]["chunk_position"] *= 0
    fold = quick(lambda *args: module.apply(*args, method=Larimar.fold).leaves)
    one, other = fold(variables, TOKENS), fold(variables, TOKENS[:, ::-1])
    for name in (GRAM, SUM):
        np.testing.assert_allclose(one[name][:, -1], other[name][:, -1], rtol=1e-5, atol=1e-5)
        assert not np.allclose(one[name][:, 1], other[name][:, 1])


@pytest.mark.slow
def test_the_iteration_squares_its_error(quick):
    """B.14 test 5; and a ridge of almost 0 gives the same."""
    x = RNG.normal(size=(2, 6, 9)).astype(np.float32)
    wanted = np.linalg.pinv(x)
    steps = quick(lambda x: [iterated_inverse(x, steps) for steps in range(0, 21, 2)])(x)
    residual = [np.linalg.norm(a @ x - wanted @ x, 2, axis=(1, 2)) for a in steps]
    for before, after in itertools.pairwise(residual):
        assert (after < before**4 + 1e-5).all()
    np.testing.assert_allclose(steps[-1], wanted, atol=1e-4)
    np.testing.assert_allclose(ridge_inverse(x, 1e-6), wanted, atol=1e-4)


def test_noise_needs_a_generator(larimar):
    """Without one every read is the same."""
    z = RNG.normal(size=(3, WIDTH))
    _, leaves = written(z, larimar[2])
    noisy, rngs = module_of(noise=0.5), {"memory": jax.random.key(0)}
    quiet = read(larimar, leaves, z)
    assert np.array_equal(read(larimar, leaves, z, noisy), quiet)
    assert np.abs(read(larimar, leaves, z, noisy, rngs) - quiet).max() > 0.1


@pytest.mark.slow
def test_the_weight_penalty_is_a_divergence():
    """It is 0 for a standard normal, and flat below the floor."""
    assert weight_penalty(jnp.zeros(SLOTS), 1.0) == 0
    np.testing.assert_allclose(weight_penalty(jnp.full(2, 3.0), 1.0), 9.0, rtol=1e-6)
    slope = jax.grad(lambda w: weight_penalty(w, 1.0, floor=0.5))(jnp.array([0.5, 2.0]))
    assert slope.tolist() == [0, 2]


class AheadLarimar(Larimar):
    """A faulty one, whose query is the last input: it reads ahead."""

    def read(self, leaves, x, tokens, valid):
        return super().read(leaves, x.at[:, 0].add(x[:, -1]), tokens, valid)


@pytest.mark.slow
def test_the_common_test_finds_a_look_ahead(draw, quick):
    """T2r would fail: the last input of the last chunk changes what is decoded before it."""
    good = module_of()
    bad = AheadLarimar(good.config, good.chunks, good.vocab_size, dials=good.dials)
    variables, other = draw(good, TOKENS), TOKENS.copy()
    other[:, -1, -1] = 7
    for module, same in ((good, True), (bad, False)):
        scores = quick(module.apply)
        one, two = (scores(variables, tokens)[:, :, :-1] for tokens in (TOKENS, other))
        assert np.array_equal(one, two) == same


def test_a_read_of_nothing_has_finite_gradients(larimar, quick):
    """An empty memory is a matrix of zeros."""
    module, variables, _ = larimar
    leaves = module.apply(variables, 1, method=Larimar.empty).leaves

    def loss(queries):
        return applied(module, variables, Larimar.recall, leaves, queries).sum()

    assert np.isfinite(quick(jax.grad(loss))(np.ones((1, 2, WIDTH), np.float32))).all()
