"""Networks that look facts up in hops: what a hop reads, what order matters to, and what the choice
of a fact learns from. (The common tests are in test_peer.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.peers.memory_network import (
    EndToEndMemoryNetwork,
    ages_of,
    margin_loss,
    position_shares,
)
from memjax.models.request import next_chunks

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 3, 4, 16, 8
STACK = Backbone(width=WIDTH, layers=1, heads=1, mlp_ratio=1)
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL, NUMBER = np.ones(TOKENS.shape, bool), np.arange(CHUNKS)


def module_of(name="memn2n", **dials):
    model = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
    data = Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH)
    stage = Stage(family=name, dials=dials, objectives={"next_token": 1.0})
    return build(Config(data=data, model=model), stage)


def show(module, variables, tokens=TOKENS, inputs=TOKENS, rngs=None):
    """All chunks, decoded from the memories of those before them."""

    def run(model):
        return model.hidden(model.written(tokens, REAL, NUMBER), next_chunks(inputs, inputs))

    return np.asarray(module.apply(variables, method=run, rngs=rngs))


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def without_ages(variables):
    params = variables["params"]
    return {"params": {**params, "ages": params["ages"] * 0}}


@pytest.mark.slow
def test_shares_of_words_are_the_published_encoding():
    words, width = 3, 4
    for j in range(1, words + 1):
        for k in range(1, width + 1):
            share = 1 + 4 * (k - (width + 1) / 2) * (j - (words + 1) / 2) / (width * words)
            np.testing.assert_allclose(position_shares(words, width)[j - 1, k - 1], share)
    np.testing.assert_array_equal(position_shares(1, width), 1)


def test_ages_count_the_facts_behind():
    filled = np.array([[True, True, False, True]])
    none, one = np.zeros((1, 4), bool), np.array([[False, True, True, False]])
    assert ages_of(filled, none, 9)[filled].tolist() == [2, 1, 0]
    assert ages_of(filled, none, 2)[filled].tolist() == [1, 1, 0]
    # An empty memory behind the second fact makes it and what is before it older.
    older = ages_of(filled, one, 9)
    assert older[filled].tolist() == [3, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("adjacent", [True, False])
def test_a_read_is_its_equations(adjacent, draw):
    """Tables of words and ages, softmax(u keys) values, and the question after each hop."""
    module = module_of(hops=2, adjacent=adjacent)
    variables = draw(module, TOKENS)
    weights = jax.device_get(variables)["params"]
    found = show(module, variables)[:, 2]
    alone = {"params": {**variables["params"], "ages": weights["ages"][:0]}}
    question = show(module_of(hops=0), alone)[:, 2]
    tokens, age = TOKENS[:, :2].reshape(BATCH, -1), np.arange(2 * LENGTH)[::-1]
    for hop in range(2):
        key, value = (
            weights[f"tables_{at}"]["embedding"][tokens] + weights["ages"][at][age]
            for at in ((hop, hop + 1) if adjacent else (0, 1))
        )
        scores = np.exp(np.einsum("nld,npd->nlp", question, key))
        read = scores / scores.sum(-1, keepdims=True) @ value
        if adjacent:
            question = question + read
        else:
            question = question @ weights["carry"]["kernel"] + read
            question[..., WIDTH // 2 :] = np.maximum(question[..., WIDTH // 2 :], 0)
    np.testing.assert_allclose(found, question, atol=1e-4)


@pytest.mark.slow
def test_one_memory_has_no_gradient_at_the_keys(draw, quick):
    """A softmax over one fact is 1 whatever its key; of two facts, keys have a gradient."""
    module = module_of(hops=1, words=LENGTH)
    variables = draw(module, TOKENS)

    def loss(variables, chunk):
        def run(model):
            prefixes = model.written(TOKENS, REAL, NUMBER)
            return model.hidden(prefixes, next_chunks(TOKENS, TOKENS))[:, chunk].sum()

        return module.apply(variables, method=run)

    grads = quick(jax.vmap(jax.grad(loss), (None, 0)))(variables, jnp.arange(3))
    keys, values = (grads["params"][f"tables_{at}"]["embedding"] for at in (0, 1))
    assert not keys[1].any()
    assert keys[2].any()
    assert values[1].any()


@pytest.mark.slow
def test_order_matters_through_ages_alone(draw):
    module = module_of()
    variables = draw(module, TOKENS)
    other = TOKENS.copy()
    other[:, :2] = other[:, 1::-1, ::-1]
    plain = without_ages(variables)
    one, two = (show(module, plain, tokens)[:, 2] for tokens in (TOKENS, other))
    np.testing.assert_allclose(one, two, atol=1e-5)
    one, two = (show(module, variables, tokens)[:, 2] for tokens in (TOKENS, other))
    assert not np.allclose(one, two, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ordered"), [("memn2n", True), ("memorynetworks", False)])
def test_order_within_a_fact(name, ordered, draw):
    """A sum with shares has an order of words, a plain sum has none."""
    module = module_of(name, words=2)
    variables = draw(module, TOKENS)
    swapped = TOKENS.reshape(BATCH, CHUNKS, 2, 2)[..., ::-1].reshape(TOKENS.shape)
    same = np.allclose(show(module, variables), show(module, variables, swapped), atol=1e-4)
    assert same != ordered


def test_linear_scores_are_the_weights(draw):
    module = module_of(linear=True)
    rng = np.random.default_rng(1)
    question, keys, values = (normal(rng, BATCH, n, WIDTH) for n in (LENGTH, 3, 3))
    filled = np.array([[True, True, False], [True, True, True]])
    found = module.apply(draw(module, TOKENS), question, keys, values, filled, method="hop")
    scores = question @ np.swapaxes(keys * filled[..., None], 1, 2)
    np.testing.assert_allclose(found, question + scores @ values, atol=1e-4)


@pytest.mark.slow
def test_shared_hops_have_as_many_parameters(draw):
    def count(**dials):
        return sum(x.size for x in jax.tree.leaves(draw(module_of(**dials), TOKENS)))

    assert count(hops=1, adjacent=False) == count(hops=5, adjacent=False)
    table = VOCABULARY * WIDTH + (CHUNKS - 1) * LENGTH * WIDTH
    assert count(hops=3) - count(hops=2) == table


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memn2n", "memorynetworks"])
def test_without_hops_nothing_is_read(name, draw):
    module = module_of(name, hops=0)
    variables = draw(module, TOKENS)
    np.testing.assert_array_equal(
        show(module, variables), show(module, variables, np.roll(TOKENS, 1, axis=0))
    )


@pytest.mark.slow
def test_empty_memories_are_drawn_with_a_generator_alone(draw):
    module = module_of()
    variables = draw(module, TOKENS)
    one, two = (show(module, variables, rngs={"memory": jax.random.key(n)}) for n in (0, 1))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one[:, 0], two[:, 0])


@pytest.mark.slow
def test_a_question_of_all_inputs_looks_ahead(draw):
    """T2r: the published question is a whole sentence, which the common test would refuse."""

    class Ahead(EndToEndMemoryNetwork):
        def question(self, x, valid):
            return super().question(x, valid) + x.sum(axis=1, keepdims=True)

    module = module_of()
    ahead = Ahead(module.config, module.chunks, module.vocab_size, module.dials)
    variables = draw(module, TOKENS)
    other = TOKENS.copy()
    other[..., 2] = 7
    for model, same in ((module, True), (ahead, False)):
        before = (show(model, variables, inputs=x)[:, :, :2] for x in (TOKENS, other))
        assert np.array_equal(*before) == same


# Memory networks


def supervised(draw):
    module = module_of("memorynetworks", words=2)
    return module, draw(module, TOKENS)


@pytest.mark.slow
def test_no_gradient_passes_the_choice(draw, quick):
    """The maps of the choice have no gradient from what is decoded, but from the margin loss."""
    module, variables = supervised(draw)

    def decoded(variables):
        def run(model):
            prefixes = model.written(TOKENS, REAL, NUMBER)
            return model.hidden(prefixes, next_chunks(TOKENS, TOKENS)).sum()

        return module.apply(variables, method=run)

    rng = np.random.default_rng(1)
    question, facts = (normal(rng, BATCH, n, WIDTH) for n in (LENGTH, 3))
    filled, gold = np.ones((BATCH, 3), bool), np.ones((BATCH, LENGTH, 2), int)

    def chosen(variables):
        scores, _ = module.apply(variables, question, facts, filled, gold, method="hops")
        return sum(margin_loss(x, gold[..., 0], filled).sum() for x in scores)

    one, two = quick(lambda x: (jax.grad(decoded)(x), jax.grad(chosen)(x)))(variables)
    for name in ("sought_0", "sought_1", "offered"):
        assert not one["params"][name]["kernel"].any()
        assert two["params"][name]["kernel"].any()
    assert one["params"]["answers_1"]["kernel"].any()


def test_the_right_fact_by_a_margin_costs_nothing():
    scores = jnp.array([[[1.0, 0.95, 0.5, 9.0]]])
    filled = np.array([[True, True, True, False]])
    gold = np.array([[0]])
    np.testing.assert_allclose(margin_loss(scores, gold, filled), 0.05, atol=1e-6)
    assert margin_loss(scores.at[..., 1].set(0.9 - 1e-6), gold, filled).tolist() == [[0.0]]
    np.testing.assert_allclose(margin_loss(scores, gold + 1, filled), 0.15, atol=1e-6)


@pytest.mark.slow
def test_scores_are_symmetric_where_the_roles_are(draw):
    module, variables = supervised(draw)
    params = variables["params"]
    same = {"params": {**params, "sought_0": params["offered"]}}
    one, two = normal(np.random.default_rng(1), 2, BATCH, 3, WIDTH)
    filled = np.ones((BATCH, 3), bool)

    def scores(variables, question, facts):
        return module.apply(variables, question, facts, filled, method="hops")[0][0]

    back = np.swapaxes(scores(same, two, one), 1, 2)
    np.testing.assert_allclose(scores(same, one, two), back, atol=1e-4)
    assert not np.allclose(
        scores(variables, one, two), np.swapaxes(scores(variables, two, one), 1, 2), atol=1e-2
    )


@pytest.mark.slow
def test_a_choice_begins_as_the_overlap_of_words(quick):
    """A question with a word of fact 2 takes it, and then fact 0, which shares its other word."""
    module = module_of("memorynetworks", words=2)
    variables = quick(module.init)(jax.random.key(0), TOKENS)
    word = np.eye(WIDTH, dtype=np.float32)
    facts = np.broadcast_to([word[2] + word[3], word[4] + word[5], word[1] + word[2]], (1, 3, 8))
    filled = np.ones((1, 3), bool)
    _, taken = module.apply(variables, word[None, 1:2], facts, filled, method="hops")
    np.testing.assert_array_equal(taken[0][0, 0], facts[0, 2])
    # The first fact is itself what overlaps most with what is sought next.
    gold = np.array([[[2, 0]]])
    scores, taken = module.apply(variables, word[None, 1:2], facts, filled, gold, method="hops")
    np.testing.assert_array_equal(taken[1][0, 0], facts[0, 0])
    np.testing.assert_allclose(scores[1][0, 0], [1, 0, 3], atol=1e-6)
