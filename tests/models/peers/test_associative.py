"""MEMO: items kept apart and added up, hops and their number, facts as a set. (The common tests are
in test_peer.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, ConfigError, Data, Model, Stage
from memjax.models import build
from memjax.models.checks import check
from memjax.models.peers.associative import (
    FILLED,
    distance,
    expected_hops,
    reinforce_loss,
    shares_of,
)
from memjax.models.peers.memory_network import FACTS
from memjax.models.request import next_chunks

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 3, 4, 16, 8
STACK = Backbone(width=WIDTH, layers=1, heads=2, mlp_ratio=1)
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL, NUMBER = np.ones(TOKENS.shape, bool), np.arange(CHUNKS)
HALTS = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 5)), jnp.float32)


def config_of(**dials):
    stage = Stage(
        family="memo_inference",
        dials={"items": 2, "item_width": 4, "hops": 2, **dials},
        objectives={"next_token": 1.0},
    )
    model = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
    data = Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH)
    return Config(data=data, model=model, stages={"peer": stage}), stage


def module_of(**dials):
    return build(*config_of(**dials))


def show(module, variables, tokens=TOKENS, rngs=None):
    def run(model):
        return model.hidden(model.written(tokens, REAL, NUMBER), next_chunks(TOKENS, TOKENS))

    return np.asarray(module.apply(variables, method=run, rngs=rngs))


def with_params(variables, **changes):
    return {"params": {**variables["params"], **changes}}


def encode(module, variables, tokens=TOKENS[:, 0], valid=REAL[:, 0]):
    return module.apply(variables, tokens, valid, method="encode")


@pytest.mark.slow
def test_items_stand_one_behind_the_other(draw):
    module = module_of()
    variables = draw(module, TOKENS)
    params = jax.device_get(variables)["params"]
    rows = params["embed"]["embedding"][TOKENS[:, 0]] @ params["item"]["kernel"]
    valid = np.array([[True, False, False, False]] * BATCH)
    found = encode(module, variables, valid=valid)
    assert found[FILLED].tolist() == [[True, False]] * BATCH
    assert not found[FACTS][:, 0, 4:].any()
    np.testing.assert_allclose(found[FACTS][:, 0, :4], rows[:, 0], atol=1e-5)
    found = encode(module, variables)[FACTS]
    np.testing.assert_allclose(found, rows.reshape(BATCH, 2, -1), atol=1e-5)


@pytest.mark.slow
def test_items_added_up_are_a_bag_of_words(draw):
    """The key of a fact is then that of MemN2N, a sum over its words in any order."""
    swapped = TOKENS.reshape(BATCH, CHUNKS, 2, 2)[..., ::-1].reshape(TOKENS.shape)
    for kept in (False, True):
        module = module_of(kept=kept)
        variables = draw(module, TOKENS)
        one, two = show(module, variables), show(module, variables, swapped)
        assert np.allclose(one, two, atol=1e-5) != kept
    apart, summed = module_of(), module_of(kept=False)
    items = encode(apart, draw(apart, TOKENS))[FACTS].reshape(BATCH, 2, 2, -1)
    table = {name: draw(apart, TOKENS)["params"][name] for name in ("embed", "item")}
    variables = with_params(draw(summed, TOKENS), **table)
    np.testing.assert_allclose(encode(summed, variables)[FACTS], items.sum(2), atol=1e-5)


@pytest.mark.slow
def test_facts_are_a_set_but_for_their_ages(draw):
    module = module_of()
    variables = draw(module, TOKENS)
    ages = variables["params"]["ages"]
    other = TOKENS[:, [1, 0, 2]]
    plain = with_params(variables, ages=ages * 0)
    one, two = (show(module, plain, tokens)[:, 2] for tokens in (TOKENS, other))
    np.testing.assert_allclose(one, two, atol=1e-5)
    one, two = (show(module, variables, tokens)[:, 2] for tokens in (TOKENS, other))
    assert not np.allclose(one, two, atol=1e-3)


@pytest.mark.slow
def test_a_forced_halt_is_one_hop(draw):
    """With a probability of 1 to halt after the first hop, the others do not count."""
    module, one, last = module_of(), module_of(hops=1), module_of(halting=False)
    variables = draw(module, TOKENS)

    def halting(bias):
        halt = {**variables["params"]["halt"], "bias": jnp.array([bias])}
        return with_params(variables, halt=halt)

    policy = {"kernel": jnp.zeros((2, 16)), "bias": jnp.zeros(16)}
    first = show(one, with_params(variables, policy=policy))
    np.testing.assert_allclose(show(module, halting(1e3)), first, atol=1e-5)
    np.testing.assert_allclose(show(module, halting(-1e3)), show(last, variables), atol=1e-5)
    assert not np.allclose(first, show(last, variables), atol=1e-2)


@pytest.mark.slow
def test_shares_of_hops_are_a_distribution():
    shares = np.asarray(shares_of(HALTS))
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(shares[1], (1 - HALTS[0]) * HALTS[1], atol=1e-6)
    hops = np.asarray(expected_hops(HALTS))
    assert ((hops >= 1) & (hops <= 3)).all()
    np.testing.assert_allclose(hops, shares[0] + 2 * shares[1] + 3 * shares[2], atol=1e-6)


@pytest.mark.slow
def test_target_and_lure_swapped_swap_their_scores(draw):
    """Two words that change places in the tables and in the text change places in the scores."""
    module = module_of()
    variables = draw(module, TOKENS)
    order = np.arange(VOCABULARY)
    order[[7, 9]] = 9, 7
    params = variables["params"]
    swapped = with_params(
        variables,
        embed={"embedding": params["embed"]["embedding"][order]},
        head={"kernel": params["head"]["kernel"][:, order]},
    )
    tokens = np.where(TOKENS > 11, 7, np.where(TOKENS > 8, 9, TOKENS)).astype(np.int32)
    one = module.apply(variables, tokens)
    other = module.apply(swapped, order[tokens].astype(np.int32))
    np.testing.assert_array_equal(one, other[..., order])
    assert not np.allclose(one[..., 7], one[..., 9])


def test_distances_of_distributions():
    one = jnp.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(distance(one, one), 0, atol=1e-6)
    np.testing.assert_allclose(distance(one, jnp.array([0.5, 0, 0.5])), np.log(2), atol=1e-6)
    assert distance(one * 0, one) == 0


@pytest.mark.slow
def test_gradients_are_finite_and_reach_the_policy(draw, quick):
    """Also before any text, and where attention does not overlap."""
    module = module_of()
    variables = draw(module, TOKENS)
    grads = quick(jax.grad(lambda v: (module.apply(v, TOKENS) ** 2).sum()))(variables)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    for name in ("policy", "item", "key"):
        assert np.abs(grads["params"][name]["kernel"]).max() > 0


@pytest.mark.slow
def test_reinforce_is_the_policy_gradient():
    """Over all hops and their rewards, its gradient is that of the expected reward."""
    reward = jnp.array([1.0, -2.0, 0.5])

    def expected(halts):
        return -(shares_of(halts) * reward[:, None]).sum()

    def sampled(halts):
        each = [
            reinforce_loss(halts, jnp.full(5, hop), reward[hop], jnp.zeros(5), 0.0)
            for hop in range(3)
        ]
        return (jax.lax.stop_gradient(shares_of(halts)) * jnp.stack(each)).sum()

    np.testing.assert_allclose(jax.grad(sampled)(HALTS), jax.grad(expected)(HALTS), atol=1e-5)
    costs = [
        reinforce_loss(HALTS, jnp.zeros(5, int), jnp.zeros(5), jnp.zeros(5), cost)
        for cost in (0.0, 0.1)
    ]
    np.testing.assert_allclose(costs[1] - costs[0], 0.1 * expected_hops(HALTS), atol=1e-6)


@pytest.mark.slow
def test_dropout_needs_a_generator(draw):
    module = module_of(dropout=0.5)
    variables = draw(module, TOKENS)
    one, two = (show(module, variables, rngs={"memory": jax.random.key(n)}) for n in (0, 1))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(show(module, variables), show(module, variables))


def test_no_hops_are_an_error():
    with pytest.raises(ConfigError, match="hops: 0"):
        check(config_of(hops=0)[0])
