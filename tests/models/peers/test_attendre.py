"""Attendre: a fixed number of keys and values, of which those that nothing attends to leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, ConfigError, Model
from memjax.layers import make_backbone
from memjax.models.peers.attendre import RULES, USE, Attendre, Dials, staying, used
from memjax.models.peers.raw_kv import KEY, VALUE, are_there

RNG = np.random.default_rng(9)
BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 4, 24
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def make(**dials):
    return Attendre(MODEL, CHUNKS, VOCABULARY, dials=Dials(**{"tokens": 6, **dials}))


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


def states_of(module, variables, quick):
    """The state after two chunks."""

    def run(model):
        return model.at(model.fold(TOKENS[:, :2]), jnp.full(BATCH, 2)).leaves

    return quick(lambda v: module.apply(v, method=run))(variables)


@pytest.mark.slow
def test_with_room_for_all_tokens_nothing_is_lost(variables, quick):
    """A chunk behind its rows is a text that is read at once, though more rows have room."""
    module, plain = make(tokens=10), make_backbone(MODEL, STACK, CHUNKS * LENGTH)

    def both(variables):
        def run(model):
            valid = jnp.ones((BATCH, CHUNKS * LENGTH), bool)
            x = jnp.concatenate([model.embed_tokens(TOKENS[:, c], REAL) for c in range(3)], axis=1)
            leaves = model.at(model.fold(TOKENS[:, :2]), jnp.full(BATCH, 2)).leaves
            return model.read(leaves, x[:, 8:], TOKENS[:, 2], REAL), x, valid

        states, x, valid = module.apply(variables, method=run)
        whole = plain.apply({"params": variables["params"]["backbone"]}, x, valid=valid)
        return states, whole[:, 8:]

    np.testing.assert_allclose(*quick(both)(variables), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("evict", ["recent", "frequent"])
def test_of_equal_attention_the_oldest_leave(variables, quick, evict):
    """B.23 (6): where all weights are equal; where they are not, others leave."""
    equal = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "query" in str(path) else leaf, variables
    )
    for params, same in ((equal, True), (variables, False)):
        one, first = (states_of(make(evict=rule), params, quick) for rule in (evict, "first"))
        assert np.array_equal(one[KEY], first[KEY]) == same
        assert np.array_equal(one[VALUE], first[VALUE]) == same


def step(dials, use, attended, quick, valid=None):
    """Use of three stored rows and four new ones, of which each query attends to one or to none."""
    weights = np.zeros((1, 1, 4, 7), np.float32)
    for query, key in enumerate(attended):
        weights[0, 0, query, key] = 1
    there = np.ones((1, 1, 7), bool)
    valid = np.ones((1, 4), bool) if valid is None else valid
    before = jnp.asarray(use)[None, None]
    run = quick(lambda: used(before, weights, there, valid, dials))
    return run()[0, 0].tolist()


def test_recent_rows_are_those_attended_to_last(quick):
    """In queries; a token counts as attended to when it comes."""
    dials = Dials(evict="recent")
    assert step(dials, [5, 0, 9], [0, 0, 1, 3], quick) == [2, 1, 13, 0, 2, 1, 0]


def test_frequent_rows_are_those_attended_to_by_the_greatest_share(quick):
    """A chunk's share and that of all before; a new token's own query and later ones may attend."""
    dials = Dials(decay=0.5)
    assert step(dials, [0.5, 0.0, 1.0], [0, 0, 1, 3], quick) == [0.5, 0.125, 0.5, 0.25, 0, 0, 0]


def test_queries_of_padding_attend_to_nothing(quick):
    dials, valid = Dials(decay=0.5), np.array([[True, True, False, False]])
    found = step(dials, [0.5, 0.0, 1.0], [0, 0, 1, 3], quick, valid)
    assert found[:3] == [0.75, 0.0, 0.5]
    dials = Dials(evict="recent")
    assert step(dials, [5, 0, 9], [0, 0, 1, 3], quick, valid)[:3] == [0, 2, 11]


def test_rows_that_are_used_stay_in_their_order(quick):
    """A needle that is attended to outlives younger rows; rows that are not there come first."""
    there = np.array([[[False, True, True, True, True], [False, False, False, True, True]]])
    use = np.array([[[9, 3, 1, 2, 2], [9, 9, 9, 0, 0]]])
    at, real = quick(lambda x, y: staying(x, y, 3))(there, use)
    assert at[0, 0].tolist() == [1, 3, 4]
    assert real.tolist() == [[[True] * 3, [False, True, True]]]
    assert at[0, 1].tolist()[1:] == [3, 4]
    at, _ = quick(lambda x, y: staying(x, y, 3))(there, use * 0)
    assert at[0, 0].tolist() == [2, 3, 4]


@pytest.mark.slow
def test_a_row_that_left_has_no_influence(variables, quick):
    """T13, with one layer, whose keys and values depend on their own token alone: two chunks of
    rows are kept, and the first of three chunks is no longer read."""
    stack = Backbone(width=16, layers=1, heads=2, mlp_ratio=1)
    dials = Dials(tokens=8, evict="first")
    module = Attendre(Model(chunk_length=LENGTH, decoder=stack), CHUNKS, VOCABULARY, dials=dials)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[:1] if "blocks" in str(path) else leaf, variables
    )
    run = quick(lambda tokens: module.apply(params, tokens, method="fold").leaves)
    one, other = (
        run(np.stack([TOKENS[:, 0] + d, *TOKENS[:, 1:].swapaxes(0, 1)], 1)) for d in (0, 1)
    )
    for name in (KEY, VALUE):
        assert not np.array_equal(one[name][:, 2], other[name][:, 2])
        assert np.array_equal(one[name][:, 3], other[name][:, 3])
    assert are_there(one[KEY], one[VALUE])[:, 3].all()


def test_rules_have_names(quick):
    with pytest.raises(ConfigError, match=r"dials\.evict"):
        jax.eval_shape(lambda: make(evict="last").init(jax.random.key(0), TOKENS))
    for rule in RULES:
        found = {name: size for name, (size, _) in make(evict=rule).ledger(8).items()}
        assert found == {KEY: 192, VALUE: 192} | ({} if rule == "first" else {USE: 12})
