"""Retriever and ranker: unit embeddings, a set in which no order is told, nothing of what is
masked, and both can learn."""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import Encoder, Ranker, Retriever, build, example
from memjax.models.ranker import MASKED
from memjax.models.retriever import unit
from memjax.objectives import SpecialIds, score, total

IDS = SpecialIds()
LENGTH, VOCABULARY, CANDIDATES = 4, 36, 5
SMALL = {"layers": 2, "heads": 2, "mlp_ratio": 1}
MODELS = {
    "default": Model(
        chunk_length=LENGTH,
        encoder=Backbone(kind="mixer", width=8, **SMALL),
        decoder=Backbone(width=12, **SMALL),
    ),
    "vectors": Model(
        chunk_length=LENGTH,
        readout="memory_tokens",
        memory_vectors=2,
        bottleneck=3,
        encoder=Backbone(width=8, causal=False, **SMALL),
        decoder=Backbone(width=16, output_gate=True, norm="layer", mlp="gelu", **SMALL),
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (3, LENGTH))
VALID = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], bool)


# Embeddings


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_is_the_memory_over_its_norm(name, quick, draw):
    module = Retriever(MODELS[name], VOCABULARY)
    variables = draw(module, TOKENS)
    encoder = Encoder(MODELS[name], VOCABULARY)

    @quick
    def both(tokens, valid):
        memory = encoder.apply({"params": variables["params"]["encoder"]}, tokens, valid)
        return (
            memory,
            module.apply(variables, tokens, valid, method="embed"),
            module.apply(variables, tokens, valid),
        )

    memory, embedded, called = both(TOKENS, VALID)
    flat = memory.reshape(3, -1).astype(np.float64)
    assert flat.shape == (3, 8 * MODELS[name].memory_vectors)
    np.testing.assert_allclose(
        embedded, flat / np.linalg.norm(flat, axis=1, keepdims=True), atol=1e-6
    )
    np.testing.assert_array_equal(embedded, called)
    assert set(variables["params"]) == {"encoder"}
    elsewhere = both(np.where(VALID, TOKENS, 0), VALID)[1]
    np.testing.assert_array_equal(embedded, elsewhere)
    assert np.all(np.any(embedded[1:] != both(TOKENS, np.ones_like(VALID))[1][1:], axis=1))


def test_embeddings_and_logits_are_float32_and_finite_in_bfloat16(quick, draw):
    model = dataclasses.replace(MODELS["vectors"], dtype="bfloat16")
    retriever, ranker = Retriever(model, VOCABULARY), Ranker(model, CANDIDATES, VOCABULARY)
    tokens = RNG.integers(6, VOCABULARY, (2, CANDIDATES, LENGTH))
    variables, weights = draw(retriever, TOKENS), draw(ranker, tokens)
    embedded = quick(lambda: retriever.apply(variables, TOKENS))()
    logits = quick(lambda: ranker.apply(weights, tokens))()
    assert embedded.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, atol=1e-6)
    assert np.all(np.isfinite(logits))
    memory = jax.eval_shape(lambda: ranker.apply(weights, tokens, method="encode"))
    assert memory.dtype == jnp.bfloat16 and memory.shape == (2, CANDIDATES, 2, 8)


def test_normalising_is_safe_at_zero_and_exact_elsewhere(quick):
    x = np.array([[0, 0, 0], [3e-8, 0, 0], [3e-5, 4e-5, 0], [-3, 4, 0], [3e8, 0, 4e8]], np.float32)
    value, gradient = quick(lambda x: (unit(x), jax.vmap(jax.jacobian(unit))(x)))(x)
    expected = [[0, 0, 0], [3e-8, 0, 0], [0.6, 0.8, 0], [-0.6, 0.8, 0], [0.6, 0, 0.8]]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(gradient[0], np.eye(3))
    # (1 - u u^T) / |x|: along the vector nothing changes.
    u = np.array([-0.6, 0.8, 0])
    np.testing.assert_allclose(gradient[3], (np.eye(3) - np.outer(u, u)) / 5, atol=1e-7)
    assert np.all(np.isfinite(gradient))


# The set


class Compiled:
    """A ranker with random weights over vectors it is given."""

    def __init__(self, name, quick, draw):
        self.module = Ranker(MODELS[name], CANDIDATES, VOCABULARY)
        self.tokens = np.random.default_rng(1).integers(6, VOCABULARY, (2, CANDIDATES, LENGTH))
        self.variables = draw(self.module, self.tokens)
        shape = (MODELS[name].memory_vectors, 8)
        self.query = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
        self.candidates = (
            np.random.default_rng(3).normal(size=(2, CANDIDATES, *shape)).astype(np.float32)
        )
        self.apply = quick(
            lambda variables, *args: self.module.apply(variables, *args, method="rank")
        )

    def rank(self, query=None, candidates=None, valid=None):
        valid = np.ones((2, CANDIDATES), bool) if valid is None else valid
        query = self.query if query is None else query
        return self.apply(
            self.variables, query, self.candidates if candidates is None else candidates, valid
        )


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def ranker(name, quick, draw):
    return Compiled(name, quick, draw)


def test_scores_follow_the_candidates_into_any_order(ranker):
    before = ranker.rank()
    assert before.shape == (2, CANDIDATES)
    assert np.all(np.abs(np.diff(before, axis=1)) > 1e-3)
    valid = np.array([[True, False, True, True, True], [True, True, True, True, False]])
    masked = ranker.rank(valid=valid)
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(CANDIDATES)
        np.testing.assert_allclose(
            ranker.rank(candidates=ranker.candidates[:, order]), before[:, order], atol=1e-5
        )
        found = ranker.rank(candidates=ranker.candidates[:, order], valid=valid[:, order])
        np.testing.assert_allclose(found, masked[:, order], atol=1e-5)


def test_every_score_depends_on_the_query_and_on_every_candidate(ranker):
    before = ranker.rank()
    assert np.all(np.abs(ranker.rank(query=-ranker.query) - before) > 1e-6)
    for candidate in range(CANDIDATES):
        other = ranker.candidates.copy()
        other[:, candidate] *= -1
        assert np.all(np.abs(ranker.rank(candidates=other) - before) > 1e-6)


def test_rows_are_ranked_apart(ranker):
    before = ranker.rank()
    query, candidates = ranker.query.copy(), ranker.candidates.copy()
    query[1], candidates[1] = 0, 1
    after = ranker.rank(query, candidates)
    np.testing.assert_array_equal(after[0], before[0])
    assert np.all(after[1] != before[1])


def test_only_the_mark_tells_the_query_from_the_candidates(ranker):
    """Query and first candidate exchanged: without a mark the others' scores stay."""
    swapped = ranker.candidates.copy()
    swapped[:, 0] = ranker.query
    exchanged = (ranker.candidates[:, 0], swapped)
    change = np.abs(ranker.rank(*exchanged)[:, 1:] - ranker.rank()[:, 1:])
    assert np.all(change > 2e-5)
    everyone = np.ones((2, CANDIDATES), bool)
    unmarked = {
        "params": ranker.variables["params"]
        | {"query_mark": jnp.zeros(ranker.module.config.decoder.width)}
    }
    before = ranker.apply(unmarked, ranker.query, ranker.candidates, everyone)
    after = ranker.apply(unmarked, *exchanged, everyone)
    np.testing.assert_allclose(before[:, 1:], after[:, 1:], atol=5e-6)


def test_an_invalid_candidate_is_neither_read_nor_ranked(ranker, quick):
    valid = np.array([[True, True, False, True, True], [False, False, False, False, False]])
    other = ranker.candidates.copy()
    other[~valid] = 100.0
    before, after = ranker.rank(valid=valid), ranker.rank(candidates=other, valid=valid)
    np.testing.assert_array_equal(before, after)
    assert np.all(before[~valid] == MASKED)
    without = quick(lambda *args: ranker.module.apply(ranker.variables, *args, method="rank"))
    expected = without(ranker.query, ranker.candidates[:, [0, 1, 3, 4]])
    np.testing.assert_allclose(before[0, [0, 1, 3, 4]], expected[0], atol=1e-5)


def test_call_asks_for_the_chunks_by_the_first_of_them(ranker, quick):
    valid = np.ones(ranker.tokens.shape, bool)
    valid[0, 2], valid[1, 0, 2:] = False, False

    @quick
    def both(tokens, valid):
        memories = ranker.module.apply(ranker.variables, tokens, valid, method="encode")
        return ranker.module.apply(ranker.variables, tokens, valid), memories

    logits, memories = both(ranker.tokens, valid)
    np.testing.assert_allclose(
        logits, ranker.rank(memories[:, 0], memories, valid.any(axis=-1)), rtol=1e-5, atol=1e-5
    )
    assert logits[0, 2] == MASKED and logits[1, 2] != MASKED
    encoder = Encoder(ranker.module.config, VOCABULARY)
    alone = quick(
        lambda *args: encoder.apply({"params": ranker.variables["params"]["encoder"]}, *args)
    )(ranker.tokens[1], valid[1])
    np.testing.assert_allclose(memories[1], alone, atol=1e-5)


def test_parameters_are_those_that_are_used(ranker, name):
    expected = {"encoder", "query_mark", "backbone", "norm", "score"} | (
        {"bridge"} if name == "default" else set()
    )
    params = ranker.variables["params"]
    assert set(params) == expected
    assert set(params["backbone"]) == {"blocks"}
    assert set(params["norm"]) == {"scale"}
    assert params["score"]["kernel"].shape == (ranker.module.config.decoder.width, 1)
    assert set(params["score"]) == {"kernel"}


def test_build_and_example_know_both():
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=16), model=MODELS["default"])
    for family, kind, shape in (("retriever", Retriever, (1, 4)), ("ranker", Ranker, (1, 4, 4))):
        module = build(config, Stage(family=family))
        tokens = example(module, config)
        assert type(module) is kind and tokens.shape == shape
        out = jax.eval_shape(
            lambda module=module, tokens=tokens: module.init_with_output(jax.random.key(0), tokens)[
                0
            ]
        )
        assert out.shape == ((1, 8) if family == "retriever" else (1, 4))


# Learning


@pytest.mark.quick_cases("default-ranker")
@pytest.mark.parametrize("family", ["retriever", "ranker"])
def test_a_gradient_reaches_every_parameter_of_every_layer(quick, draw, name, family):
    rows = np.random.default_rng(0).integers(6, VOCABULARY, (6, 4 * LENGTH))
    if family == "retriever":
        module, names, tokens = (
            Retriever(MODELS[name], VOCABULARY),
            ["ngram_retrieval"],
            rows[:, :LENGTH],
        )
    else:
        module, names, tokens = (
            Ranker(MODELS[name], 4, VOCABULARY),
            ["ngram_ranking"],
            rows.reshape(6, 4, LENGTH),
        )
    variables = draw(module, tokens)

    def loss(variables):
        return sum(
            total(s).nats
            for s in score(
                module,
                variables,
                jnp.asarray(rows),
                names,
                IDS,
                Stage(dials={"temperature": 0.1, "query_tokens": 2}),
            ).values()
        )

    gradients = flax.traverse_util.flatten_dict(quick(jax.grad(loss))(variables)["params"], sep="/")
    for path, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), path
        parts = (
            gradient.reshape(len(gradient), -1) if "blocks/" in path else gradient.reshape(1, -1)
        )
        # More than rounding.
        assert np.all(np.abs(parts).max(axis=1) > 1e-5), path
    assert len(gradients) > 10


def fit(quick, module, tokens, names, rows, stage, steps, rate):
    """Accuracy under a fixed key before and after `steps` of Adam, each with its own queries."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(variables, key):
        return sum(
            total(s).nats / total(s).count
            for s in score(module, variables, rows, names, IDS, stage, key).values()
        )

    def accuracy(variables):
        terms = {
            name: total(s) for name, s in score(module, variables, rows, names, IDS, stage).items()
        }
        return {name: term.correct / term.count for name, term in terms.items()}

    def step(carry, key):
        variables, state = carry
        updates, state = optimizer.update(jax.grad(loss)(variables, key), state, variables)
        return (optax.apply_updates(variables, updates), state), None

    @quick
    def run():
        variables = module.init(jax.random.key(0), tokens)
        keys = jax.random.split(jax.random.key(1), steps)
        (trained, _), _ = jax.lax.scan(step, (variables, optimizer.init(variables)), keys)
        return jax.lax.map(accuracy, jax.tree.map(lambda *x: jnp.stack(x), variables, trained))

    return run()


@pytest.mark.slow
def test_a_retriever_learns_sixteen_passages(quick):
    model = Model(
        chunk_length=8, encoder=Backbone(kind="mixer", width=16, layers=1, heads=2, mlp_ratio=2)
    )
    rows = jnp.asarray(np.random.default_rng(0).integers(6, VOCABULARY, (8, 16)))
    stage = Stage(dials={"query_tokens": 4, "temperature": 0.1})
    accuracy = fit(
        quick,
        Retriever(model, VOCABULARY),
        rows[:, :8],
        ("ngram_retrieval", "nbag_retrieval"),
        rows,
        stage,
        300,
        1e-2,
    )
    for name in ("ngram_retrieval", "nbag_retrieval"):
        before, after = accuracy[name]
        assert before < 0.3
        assert after > 0.9


@pytest.mark.slow
def test_a_ranker_learns_which_candidate_is_asked_for(quick):
    small = {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 1}
    model = Model(
        chunk_length=4, encoder=Backbone(kind="mixer", **small), decoder=Backbone(**small)
    )
    rows = jnp.asarray(np.random.default_rng(0).integers(6, VOCABULARY, (16, 16)))
    stage, tokens = Stage(dials={"query_tokens": 3}), rows.reshape(16, 4, 4)
    before, after = fit(
        quick, Ranker(model, 4, VOCABULARY), tokens, ["ngram_ranking"], rows, stage, 300, 1e-2
    )["ngram_ranking"]
    assert before < 0.6
    assert after > 0.9


# Refusals


@pytest.mark.parametrize("kind", ["mixer", "row_repeat"])
def test_a_mixer_cannot_rank(kind):
    model = dataclasses.replace(MODELS["default"], decoder=Backbone(kind=kind, width=12, **SMALL))
    tokens = jnp.zeros((1, CANDIDATES, LENGTH), int)
    with pytest.raises(
        ValueError, match=rf"model\.decoder\.kind='{kind}' cannot rank a set.*needs 'transformer'"
    ):
        jax.eval_shape(Ranker(model, CANDIDATES, VOCABULARY).init, jax.random.key(0), tokens)


def test_a_ranker_without_a_last_norm_is_refused():
    model = dataclasses.replace(
        MODELS["default"], decoder=Backbone(width=12, final_norm=False, **SMALL)
    )
    with pytest.raises(ValueError, match=r"model\.decoder\.final_norm=False"):
        jax.eval_shape(
            Ranker(model, CANDIDATES, VOCABULARY).init,
            jax.random.key(0),
            jnp.zeros((1, 2, LENGTH), int),
        )


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_ranker_has_the_settings_of_its_decoder(norm):
    decoder = Backbone(width=12, norm=norm, norm_eps=0.5, **SMALL)
    model = dataclasses.replace(MODELS["default"], decoder=decoder, attention="xla")
    tokens = jnp.zeros((1, 2, LENGTH), int)

    module, normed = Ranker(model, CANDIDATES, VOCABULARY), []

    def spy(call, args, kwargs, context):
        if context.module.path == ("backbone",):
            assert context.module.attention == "xla"
        if context.module.path == ("norm",):
            normed.append(context.module.epsilon)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(module.init, jax.random.key(0), tokens)
    assert normed and set(normed) == {0.5}
