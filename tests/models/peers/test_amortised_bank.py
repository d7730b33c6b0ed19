"""MAC and CMT: the bank is a set, a read costs the same for any bank, what is not chosen has no
gradient, and CMT without a match is MAC. The common tests are in test_peer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Config, Data, Model, Stage, match_rules
from memjax.models import build
from memjax.models.memory import VALID, VECTORS
from memjax.models.peers import PEERS
from memjax.models.peers.amortised_bank import (
    KEY,
    AmortisedBank,
    Cmt,
    Mac,
    memory_aware,
    self_matching,
)

CHUNKS, LENGTH, VOCABULARY, WIDTH, ENTRIES = 3, 4, 24, 16, 6
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
CONFIG = Config(
    data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH),
    model=Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK),
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
STATES = RNG.normal(size=(1, LENGTH, WIDTH)).astype(np.float32)
BANK = {
    VECTORS: RNG.normal(size=(1, ENTRIES, 2, WIDTH)).astype(np.float32),
    KEY: RNG.normal(size=(1, ENTRIES, 8)).astype(np.float32),
    VALID: np.ones((1, ENTRIES), bool),
}


def module_of(name, **dials):
    dials = {**PEERS[name].tiny, **dials}
    return build(CONFIG, Stage(family=name, dials=dials, objectives={"next_token": 1.0}))


def ordered(order):
    return {name: leaf[:, order] for name, leaf in BANK.items()}


@pytest.fixture(scope="module")
def aggregate(draw, quick):
    """The vectors of questions that have read a bank, by module and leaves."""

    def of(module):
        variables = draw(module, TOKENS)
        program = quick(lambda *args: module.apply(*args, method=AmortisedBank.aggregate))
        return lambda leaves, states=STATES, variables=variables: program(variables, leaves, states)

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mac", "cmt"])
def test_the_bank_is_a_set(aggregate, name):
    """B.3 tests 1 and 2, B.4 test 5: order does not matter, nor does a bank that is there twice."""
    read = aggregate(module_of(name, **({"chosen": 0} if name == "cmt" else {})))
    wanted = read(BANK)
    np.testing.assert_allclose(read(ordered([3, 1, 5, 0, 2, 4])), wanted, atol=1e-6)
    once = {**BANK, VALID: np.arange(ENTRIES)[None] < ENTRIES // 2}
    np.testing.assert_allclose(read(ordered([0, 1, 2] * 2)), read(once), atol=1e-6)
    assert np.abs(read(once) - wanted).max() > 1e-3


@pytest.mark.slow
def test_marks_are_of_ages(aggregate):
    """The newest entry has the first mark, wherever it stands."""
    module = module_of("mac", marks=True)
    read = aggregate(module)
    assert np.abs(read(ordered([3, 1, 5, 0, 2, 4])) - read(BANK)).max() > 1e-3
    few = {**BANK, VALID: np.array([[True, True, False, False, False, False]])}
    later = ordered([2, 3, 4, 5, 0, 1])
    later[VALID] = few[VALID][:, ::-1]
    np.testing.assert_allclose(read(later), read(few), atol=1e-6)


@pytest.mark.slow
def test_of_one_vector_no_weight_is_learned(draw, quick):
    """B.3 test 3: its share is 1, whatever query and key are."""
    module = module_of("mac", vectors=1)
    leaves = {VECTORS: BANK[VECTORS][:, :, :1], VALID: np.arange(ENTRIES)[None] == 2}

    def loss(variables):
        found = module.apply(variables, leaves, STATES, method=Mac.aggregate)
        return jnp.sum(found**2)

    block = quick(jax.grad(loss))(draw(module, TOKENS))["params"]["aggregator_0"]
    assert not np.any(block["query"]["kernel"])
    assert not np.any(block["key"]["kernel"])
    assert np.any(block["value"]["kernel"])


@pytest.mark.slow
def test_a_read_costs_the_same_for_any_bank():
    """The prefix has as many positions after any number of chunks, none included."""
    module = module_of("mac", by_input=False)
    variables = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
    for entries in (0, 1, ENTRIES):
        leaves = {name: leaf[:, :entries] for name, leaf in BANK.items()}

        def prefix(model, leaves=leaves):
            return model.prefix(model.aggregate(leaves, jnp.asarray(STATES[:, :1])))

        shapes = jax.eval_shape(lambda v, f=prefix: module.apply(v, method=f), variables)
        assert shapes.key.shape == (2, 1, 2, 2 * 2, WIDTH // 2)


@pytest.mark.slow
def test_nothing_is_read_before_any_text(draw, quick):
    """The prefix is that of the question, and the bank has a gradient of exactly 0."""
    module = module_of("mac")

    def loss(vectors, variables):
        leaves = {VECTORS: vectors, VALID: jnp.zeros((1, ENTRIES), bool)}
        return module.apply(variables, leaves, STATES, method=Mac.aggregate).sum()

    slope = quick(jax.grad(loss, (0, 1)))(BANK[VECTORS], draw(module, TOKENS))
    assert not np.any(slope[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope[1]))


@pytest.mark.slow
def test_cmt_without_a_match_is_mac(aggregate, draw):
    """The lattice, B.4 test 1 and A.8: equal weights and all entries."""
    mac, cmt = module_of("mac"), module_of("cmt", chosen=0)
    params = jax.tree.map(np.array, draw(cmt, TOKENS))["params"]
    own = draw(mac, TOKENS)["params"]
    wanted = aggregate(mac)(BANK, variables={"params": {**own, **params}})
    found = aggregate(cmt)
    assert np.abs(found(BANK, variables={"params": params}) - wanted).max() > 1e-3
    params["match_key"] = params["match_query"] = {"kernel": np.zeros((WIDTH, 8), np.float32)}
    np.testing.assert_allclose(found(BANK, variables={"params": params}), wanted, atol=1e-6)
    all_chosen = aggregate(module_of("cmt", chosen=ENTRIES))
    np.testing.assert_array_equal(all_chosen(BANK), found(BANK))


@pytest.mark.slow
def test_what_is_not_chosen_has_no_gradient(draw, quick):
    """B.4 test 3."""
    module = module_of("cmt", chosen=2)

    def loss(vectors, variables):
        leaves = {**BANK, VECTORS: vectors}
        weight = module.apply(variables, leaves, STATES[:, :1], method=Cmt.weight)
        return module.apply(variables, leaves, STATES[:, :1], method=Cmt.aggregate).sum(), weight

    gradient = quick(jax.grad(loss, has_aux=True))
    slope, weight = gradient(BANK[VECTORS], draw(module, TOKENS))
    chosen = weight[0, 0] > -1e6
    assert chosen.sum() == 2
    assert np.array_equal(np.any(slope[0], axis=(1, 2)), chosen)
    np.testing.assert_allclose(np.exp(weight[0, 0, chosen]).sum(), 1, rtol=1e-6)


@pytest.mark.slow
def test_the_losses_of_cmt():
    """B.4 tests 2 and 4; a match that is found has no loss, one among equal keys log of their
    number."""
    nats, without = jnp.array([1.0, 3.0]), jnp.array([4.0, 4.0])
    assert memory_aware(nats, without, 2.0, 0.0).tolist() == nats.tolist()
    assert memory_aware(nats, without, 2.0, 0.5).tolist() == [1.0, 3.5]
    slope = jax.grad(lambda x: memory_aware(nats, x, 2.0, 0.5).sum())(without)
    assert not np.any(slope)
    np.testing.assert_allclose(self_matching(100 * jnp.eye(4), jnp.eye(4)), 0, atol=1e-6)
    np.testing.assert_allclose(self_matching(jnp.eye(4), jnp.ones((4, 4))), np.log(4), rtol=1e-6)


@pytest.mark.parametrize("name", ["mac", "cmt", "mbc"])
def test_the_language_model_is_frozen(draw, name):
    """B.3 test 4: its tables and its matrices; adapters have a rank in place of True."""
    rules, found = PEERS[name].trainable, {}
    for path in flatten_dict(draw(module_of(name), TOKENS)["params"], sep="/"):
        found.setdefault(path.split("/")[0], set()).add(match_rules(rules, path, "rules"))
    assert found["embed"] == found["head"] == {False}
    assert found["backbone"] == ({False, 16} if name == "mbc" else {False})
    assert found["writer_backbone"] == ({False, 16} if name == "cmt" else {True})
    assert found["question_backbone"] == found["aggregator_0"] == {True}


class AheadMac(Mac):
    """A faulty one, whose question is the whole chunk."""

    def questions(self, x, valid):
        return self.question_backbone(x, valid=valid)[:, -1:]


class SharedMac(Mac):
    """A faulty one, whose bank is that of the whole batch, as published in training."""

    def vectors_of(self, leaves):
        return leaves[VECTORS] + jnp.mean(leaves[VECTORS], axis=0, keepdims=True)


@pytest.mark.slow
def test_the_common_tests_find_faults(draw, quick):
    """T2r would fail for one, and T9 for the other."""
    good = module_of("mac", by_input=False)
    variables, ahead, row = draw(good, TOKENS), TOKENS.copy(), TOKENS.copy()
    ahead[:, -1, -1], row[1] = 7, 7
    for kind, causal, independent in (
        (Mac, True, True),
        (AheadMac, False, True),
        (SharedMac, True, False),
    ):
        module = kind(good.config, good.chunks, good.vocab_size, dials=good.dials)
        scores = quick(module.apply)
        one, two, other = (scores(variables, tokens) for tokens in (TOKENS, ahead, row))
        assert np.array_equal(one[:, :, :-1], two[:, :, :-1]) == causal
        assert np.array_equal(one[0], other[0]) == independent
