"""The hierarchical memory transformer: what it recalls, what it keeps, and the published probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.peers.hmt import (
    CACHE,
    FILLED,
    TAIL,
    Dials,
    HierarchicalMemoryTransformer,
    last_tokens,
    recall_loss,
)
from memjax.models.peers.rmt import STATE, RecurrentMemoryTransformer
from memjax.models.peers.rmt import Dials as RMTDials

CHUNKS, LENGTH, VOCABULARY, WIDTH = 3, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((2, LENGTH), bool)


def make(kind=HierarchicalMemoryTransformer, vectors=2, kept=2, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(vectors, kept, **dials))


class RecallsLast(HierarchicalMemoryTransformer):
    """Recall of the newest vectors alone."""

    def recall(self, leaves, tokens, valid):
        _, weights = super().recall(leaves, tokens, valid)
        some = (leaves[FILLED] > 0)[:, None, None]
        return jnp.where(some, leaves[CACHE][:, -1], self.first), weights


class ProbesAhead(HierarchicalMemoryTransformer):
    """A fault: the published probe, which reads the first part of the chunk that is scored."""

    def probed(self, leaves, tokens, valid):
        return tokens[:, : self.probe_length], valid[:, : self.probe_length]


def full(rooms=2, vectors=2, seed=1):
    """A state that remembers as much as it can."""
    rng = np.random.default_rng(seed)
    return {
        CACHE: rng.normal(size=(2, rooms, vectors, WIDTH)).astype(np.float32),
        FILLED: np.full(2, rooms, np.int32),
        TAIL: TOKENS[:, 2],
    }


def reader(module, variables, quick):
    def run(model, leaves, tokens):
        return model.read(leaves, model.embed_tokens(tokens, REAL), tokens, REAL)

    return quick(lambda *args: module.apply(variables, *args, method=run))


def changed(tokens, at):
    other = tokens.copy()
    other[:, at] = np.where(other[:, at] == 7, 8, 7)
    return other


def state(**leaves):
    return {**full(), TAIL: np.tile(TOKENS[:, 2], 1), **leaves}


@pytest.mark.slow
def test_recall_of_the_last_vector_is_rmt(draw, quick):
    """Nothing stands before a chunk, and one vector is remembered of each."""
    module = make(RecallsLast, vectors=1, prepended=0)
    variables = draw(module, TOKENS)
    rmt = RecurrentMemoryTransformer(MODEL, CHUNKS, VOCABULARY, dials=RMTDials(1))

    @quick
    def both(tokens):
        ours = module.apply(variables, tokens, method="fold").leaves[CACHE][:, 1:, -1]
        theirs = rmt.apply(variables, tokens, method="fold").leaves[STATE][:, 1:]
        return (ours, theirs), (module.apply(variables, tokens), rmt.apply(variables, tokens))

    for one, other in both(TOKENS):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_published_probe_reads_the_tokens_that_it_is_scored_on(share, draw, quick):
    """T2r: it fails what the one on the chunk before passes."""
    for kind, causal in ((HierarchicalMemoryTransformer, True), (ProbesAhead, False)):
        module = make(kind, share=share, prepended=2)
        read = reader(module, draw(module, TOKENS), quick)
        at, leaves = int(share * LENGTH) - 1, state(**{TAIL: TOKENS[:, 2]})
        leaves[TAIL] = leaves[TAIL][:, LENGTH - module.tail_length :]
        one, other = (read(leaves, x) for x in (TOKENS[:, 0], changed(TOKENS[:, 0], at)))
        assert np.array_equal(one[:, :at], other[:, :at]) is causal


@pytest.fixture(scope="module")
def recall(draw, quick):
    """The recalled vectors and weights of states, and gradients of a sum of them."""
    module = make(prepended=0)
    variables = draw(module, TOKENS)

    def found(params, leaves):
        none = jnp.zeros((2, LENGTH), jnp.int32)
        return module.apply({"params": params}, leaves, none, REAL, method="recall")

    def both(leaves):
        gradient = jax.grad(lambda p: jnp.sum(found(p, leaves)[0] ** 3))(variables["params"])
        return found(variables["params"], leaves), gradient

    return quick(both), variables["params"]


def two_tokens(leaves):
    return {**leaves, TAIL: leaves[TAIL][:, 2:]}


@pytest.mark.slow
def test_what_is_remembered_has_no_order(recall):
    run, _ = recall
    leaves = two_tokens(full())
    turned = {**leaves, CACHE: leaves[CACHE][:, ::-1]}
    ((one, weights), _), ((other, turned_weights), _) = run(leaves), run(turned)
    np.testing.assert_allclose(one, other, atol=1e-6)
    by_chunk = (x.reshape(2, 2, 2, 2) for x in (weights, turned_weights))
    np.testing.assert_allclose(next(by_chunk)[:, :, ::-1], next(by_chunk), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_nothing_to_recall_is_the_learned_vectors(recall):
    run, params = recall
    empty = {**two_tokens(full()), FILLED: np.zeros(2, np.int32)}
    (found, weights), gradient = run(empty)
    np.testing.assert_array_equal(found, np.stack([params["first"]] * 2))
    assert not weights.any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_one_remembered_vector_leaves_nothing_to_weigh(draw, quick):
    """The maps of the recall then have a gradient of exactly 0, and the tokens before a chunk
    reach it through that vector alone."""
    module = make(vectors=1, kept=1, prepended=0)
    variables = draw(module, TOKENS)
    leaves = two_tokens(full(1, 1))

    def run(model, leaves):
        x = model.embed_tokens(TOKENS[:, 0], REAL)
        return model.read(leaves, x, TOKENS[:, 0], REAL)

    def loss(params, leaves):
        h = module.apply({"params": params}, leaves, method=run)
        return jnp.sum(h**2), h

    by = quick(jax.grad(loss, has_aux=True))
    gradient, one = by(variables["params"], leaves)
    _, other = by(variables["params"], {**leaves, TAIL: changed(leaves[TAIL], 0)})
    for name in ("recall_query", "recall_key"):
        assert not gradient[name]["kernel"].any()
    assert np.array_equal(one, other)


@pytest.mark.slow
def test_the_oldest_vectors_leave_a_full_state(draw, quick):
    module = make(prepended=1)
    variables, leaves = draw(module, TOKENS), two_tokens(full())
    after = quick(lambda x: module.apply(variables, leaves, x, REAL, method="update"))(TOKENS[:, 1])
    np.testing.assert_array_equal(after[CACHE][:, 0], leaves[CACHE][:, 1])
    assert after[FILLED].tolist() == [2, 2]
    np.testing.assert_array_equal(after[TAIL], TOKENS[:, 1, 2:])


@pytest.mark.slow
def test_last_tokens_are_the_real_ones():
    tokens = np.arange(10, 18).reshape(2, 4)
    valid = np.array([[True, True, True, False], [False, False, False, True]])
    assert last_tokens(tokens, valid, 2).tolist() == [[11, 12], [-1, 17]]
    assert last_tokens(tokens, valid, 5).tolist() == [[-1, -1, 10, 11, 12], [-1, -1, -1, -1, 17]]


@pytest.mark.slow
def test_recall_loss_is_nats_of_the_right_chunk():
    weights = np.array([[[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.5, 0.0]]])
    loss = recall_loss(jnp.asarray(weights), jnp.array([0]))
    np.testing.assert_allclose(loss, -np.log([0.4]), rtol=1e-6)
