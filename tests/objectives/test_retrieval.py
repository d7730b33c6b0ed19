"""Retrieval: the loss against a plain one, what queries are drawn from, and what each objective
shows to its model."""

import dataclasses
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.models import Encoder, Ranker, Retriever
from memjax.objectives import Batch, SpecialIds, load_config, score
from memjax.objectives.retrieval import info_nce, long_enough, nbags, ngrams
from memjax.testing.families import counts_of, weights_of
from memjax.testing.settings import message_of, tree_with

IDS = SpecialIds()
LENGTH, CHUNKS, VOCABULARY = 4, 4, 36
SMALL = {"layers": 2, "heads": 2, "mlp_ratio": 1}
MODEL = Model(
    chunk_length=LENGTH,
    encoder=Backbone(kind="mixer", width=8, **SMALL),
    decoder=Backbone(width=12, **SMALL),
)
RETRIEVER, RANKER = Retriever(MODEL, VOCABULARY), Ranker(MODEL, CHUNKS, VOCABULARY)
RETRIEVAL = ("ngram_retrieval", "nbag_retrieval", "pair_retrieval")
RANKING = ("ngram_ranking", "nbag_ranking")
STAGE = Stage(dials={"temperature": 0.1, "query_tokens": 2})
ALONE = {"curriculum": ("main",), "controls": ()}
"""A run of one stage."""
# Every id stands in one chunk only, so that a query tells where it was taken from.
ROWS = np.array(
    [
        [[10, 11, 12, 13], [14, 15, 0, 0], [16, 0, 0, 0], [0, 17, 18, 19]],
        [[20, 21, 22, 23], [0, 0, 0, 0], [24, 25, 26, 27], [28, 29, 30, 31]],
    ],
    np.int32,
).reshape(2, CHUNKS * LENGTH)
ASKABLE = np.array([[True, True, False, True], [True, False, True, True]])
# Written out: every n-gram of two tokens of each passage.
NGRAMS = {
    (0, 0): {(10, 11), (11, 12), (12, 13)},
    (0, 1): {(14, 15)},
    (0, 2): {(0, 0)},
    (0, 3): {(17, 18), (18, 19)},
    (1, 0): {(20, 21), (21, 22), (22, 23)},
    (1, 1): {(0, 0)},
    (1, 2): {(24, 25), (25, 26), (26, 27)},
    (1, 3): {(28, 29), (29, 30), (30, 31)},
}


@pytest.fixture(scope="module")
def variables(draw):
    return {
        "retriever": draw(RETRIEVER, ROWS[:, :LENGTH]),
        "ranker": draw(RANKER, ROWS.reshape(2, CHUNKS, LENGTH)),
    }


# InfoNCE


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(count, width, seed=0):
    return tuple(
        unit(x).astype(np.float32)
        for x in np.random.default_rng(seed).normal(size=(2, count, width))
    )


def plain_info_nce(queries, passages, temperature, valid):
    """In float64, one query at a time."""
    queries, passages = np.float64(queries), np.float64(passages)
    there = np.flatnonzero(valid)
    nats, correct = np.zeros(len(queries)), np.zeros(len(queries), bool)
    for i in there:
        forth = np.array([queries[i] @ passages[j] / temperature for j in there])
        back = np.array([queries[j] @ passages[i] / temperature for j in there])
        own = queries[i] @ passages[i] / temperature
        nats[i] = (np.log(np.exp(forth - own).sum()) + np.log(np.exp(back - own).sum())) / 2
        correct[i] = there[np.argmax(forth)] == i
    return nats, correct


@pytest.fixture(scope="module")
def compiled_nce(quick):
    return quick(info_nce)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_info_nce_is_the_plain_one(compiled_nce, temperature):
    queries, passages = embeddings(12, 6)
    passages = unit(queries + 1.5 * passages)
    valid = np.ones(12, bool)
    valid[[0, 5, 11]] = False
    for mask in (np.ones(12, bool), valid):
        nats, correct = compiled_nce(queries, passages, temperature, mask)
        expected, expected_correct = plain_info_nce(queries, passages, temperature, mask)
        np.testing.assert_allclose(nats, expected, rtol=2e-5, atol=2e-5)
        assert np.array_equal(correct[mask], expected_correct[mask])
        assert 0 < expected_correct[mask].sum() < mask.sum()
    assert np.all(nats[~valid] == 0)


def test_an_invalid_pair_is_no_negative_and_gets_no_gradient(quick):
    queries, passages = embeddings(6, 4)
    valid = np.array([True, False, True, True, False, True])
    grad = quick(
        jax.value_and_grad(lambda q, p: jnp.sum(info_nce(q, p, 0.1, valid)[0]), argnums=(0, 1))
    )
    loss, (by_query, by_passage) = grad(queries, passages)
    broken = passages.copy()
    broken[~valid] = np.nan
    assert grad(queries, broken)[0] == loss
    for gradient in (by_query, by_passage):
        assert np.all(gradient[~valid] == 0)
        assert np.all(np.any(gradient[valid] != 0, axis=1))


def test_info_nce_is_finite_at_a_low_temperature_in_bfloat16(quick):
    """exp(1 / 0.02) is 5e21; opposite vectors are 100 nats apart."""
    first = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]] * np.array([[1], [-1], [1], [1]], np.float32)
    second = first * np.array([[-1], [-1], [-1], [1]], np.float32)

    def loss(q, p):
        nats, _ = info_nce(q, p, 0.02, jnp.ones(4, bool))
        return jnp.sum(nats), nats

    run = quick(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, nats), gradients = run(first.astype(jnp.bfloat16), second.astype(jnp.bfloat16))
    assert nats.dtype == np.float32
    np.testing.assert_allclose(
        nats, plain_info_nce(first, second, 0.02, np.ones(4, bool))[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(nats[:2], 100, rtol=1e-6)
    for gradient in gradients:
        assert gradient.dtype == jnp.bfloat16
        assert np.all(np.isfinite(gradient.astype(np.float32)))
        assert np.any(gradient != 0)


def test_aligned_pairs_cost_nothing_and_random_ones_the_logarithm_of_their_number(compiled_nce):
    queries, passages = embeddings(64, 512)
    everyone = np.ones(64, bool)
    nats, correct = compiled_nce(queries, queries, 0.02, everyone)
    assert nats.max() < 1e-6 and correct.all()
    nats, correct = compiled_nce(queries, passages, 1.0, everyone)
    assert nats.mean() == pytest.approx(np.log(64), abs=0.02)
    assert correct.mean() < 0.1
    # Collapsed embeddings are no success: only the first query finds its own.
    same = np.ones((64, 4), np.float32) / 2
    nats, correct = compiled_nce(same, same, 0.02, everyone)
    np.testing.assert_allclose(nats, np.log(64), rtol=1e-5)
    assert correct.sum() == 1


# Queries

KEYS = 300
PASSAGES = np.array(
    [
        [10, 11, 12, 13, 14, 15],  # full
        [20, 21, 22, 23, 0, 0],  # right padded
        [0, 0, 30, 31, 32, 33],  # left padded
        [40, 0, 41, 0, 0, 42],  # padding between
        [50, 51, 0, 0, 0, 0],  # too short
        [0, 0, 0, 0, 0, 0],
        [7, 7, 7, 8, 7, 7],  # tokens that repeat
    ]
)
WORDS = [[token for token in row if token] for row in PASSAGES.tolist()]


@pytest.fixture(scope="module")
def drawn(quick):
    """Queries of three tokens under many keys, [KEYS, Q, L]."""
    keys = jax.random.split(jax.random.key(1), KEYS)
    return {
        kind.__name__: quick(
            jax.vmap(lambda key, kind=kind: kind(jnp.asarray(PASSAGES), 3, key, 0))
        )(keys)
        for kind in (ngrams, nbags)
    }


def test_an_ngram_is_a_slice_at_every_offset_as_often(drawn):
    found = drawn["ngrams"]
    assert found.shape == (KEYS, *PASSAGES.shape)
    assert np.all(found[..., 3:] == 0)
    for row, words in enumerate(WORDS):
        slices = {tuple(words[at : at + 3]) for at in range(len(words) - 2)} or {(0, 0, 0)}
        taken, times = np.unique(found[:, row, :3], axis=0, return_counts=True)
        assert {tuple(x) for x in taken.tolist()} == slices
        if row < 4:
            # Five standard deviations of a count.
            share = 1 / len(slices)
            np.testing.assert_allclose(
                times, KEYS * share, atol=5 * np.sqrt(KEYS * share * (1 - share)) + 1e-9
            )
    # Rows draw apart: equally long ones do not move together.
    assert len(np.unique(np.stack([found[:, 1, 0] - 20, found[:, 2, 0] - 30], 1), axis=0)) == 4


def test_a_bag_is_of_distinct_places_in_any_order(drawn):
    found = drawn["nbags"]
    assert found.shape == (KEYS, *PASSAGES.shape)
    assert np.all(found[..., 3:] == 0)
    for row in range(4):
        bags = found[:, row, :3]
        assert all(len(set(bag)) == 3 and set(bag) <= set(WORDS[row]) for bag in bags.tolist())
        for place in range(3):
            times = np.array([(bags[:, place] == word).sum() for word in WORDS[row]])
            share = 1 / len(WORDS[row])
            np.testing.assert_allclose(
                times, KEYS * share, atol=5 * np.sqrt(KEYS * share * (1 - share))
            )
    # Of three words in every order.
    assert len(np.unique(found[:, 3, :3], axis=0)) == 6
    assert np.all(found[:, 4:6] == 0)
    # A place is taken once: the token that stands once comes at most once.
    assert (found[:, 6, :3] == 8).sum(axis=1).max() == 1
    assert (found[:, 6, :3] != 0).all()


@pytest.mark.parametrize("function", [ngrams, nbags])
def test_padding_is_never_drawn_and_keys_decide(quick, drawn, function):
    @quick
    def run(seed):
        key = jax.random.key(seed)
        elsewhere = function(jnp.where(PASSAGES == 0, 99, PASSAGES), 3, key, 99)
        return (
            function(jnp.asarray(PASSAGES), 3, key, 0),
            elsewhere,
            function(jnp.asarray(PASSAGES[:1]), 6, key, 0),
        )

    assert np.all(drawn[function.__name__][:, [0, 1, 2, 3, 6], :3] != 0)
    first, elsewhere, whole = run(5)
    assert np.array_equal(first, run(5)[0])
    assert not np.array_equal(first, run(6)[0])
    # Whatever stands for padding.
    assert np.array_equal(np.where(elsewhere == 99, 0, elsewhere), first)
    # Of whole passages there is one n-gram, and a bag is a permutation.
    assert sorted(whole[0].tolist()) == WORDS[0]
    assert np.array_equal(whole, PASSAGES[:1]) == (function is ngrams)


def test_a_passage_can_be_asked_for_by_as_many_tokens_as_it_has():
    assert long_enough(PASSAGES, 3, 0).tolist() == [True, True, True, True, False, False, True]
    assert long_enough(PASSAGES, 2, 0).tolist() == [True] * 5 + [False, True]
    assert long_enough(PASSAGES, 1, 7).tolist() == [True] * 7


# What is shown


def shown(module, variables, names, key=None):
    """Scores, and the chunks each call of the encoder was given."""
    calls = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, Encoder) and context.method_name == "__call__":
            calls.append(args)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        return score(module, variables, jnp.asarray(ROWS), names, IDS, STAGE, key), calls


def test_passages_and_queries_of_a_toy_batch(quick, variables):
    scores, calls = quick(lambda: shown(RETRIEVER, variables["retriever"], RETRIEVAL))()
    [(tokens, valid)] = calls
    assert np.array_equal(valid, tokens != IDS.pad)
    passages, by_ngram, by_bag = tokens.reshape(2, CHUNKS, 3, LENGTH).transpose(2, 0, 1, 3)
    assert np.array_equal(passages, ROWS.reshape(2, CHUNKS, LENGTH))
    for (row, chunk), slices in NGRAMS.items():
        assert tuple(by_ngram[row, chunk, :2]) in slices
        words = (
            set(ROWS.reshape(2, CHUNKS, LENGTH)[row, chunk]) - {0} if ASKABLE[row, chunk] else {0}
        )
        assert set(by_bag[row, chunk, :2]) <= words
        assert by_bag[row, chunk, 0] != by_bag[row, chunk, 1] or words == {0}
    assert np.all(by_ngram[..., 2:] == 0) and np.all(by_bag[..., 2:] == 0)

    @quick
    def embed(tokens):
        return RETRIEVER.apply(variables["retriever"], tokens, tokens != 0, method="embed")

    embedded = embed(passages.reshape(-1, LENGTH))
    for name, queries in (("ngram_retrieval", by_ngram), ("nbag_retrieval", by_bag)):
        nats, correct = plain_info_nce(
            embed(queries.reshape(-1, LENGTH)), embedded, 0.1, ASKABLE.reshape(-1)
        )
        found = scores[name]
        assert found.nats.shape == found.is_argmax.shape == found.weight.shape == (2, CHUNKS, 1)
        assert found.labels is None
        assert np.array_equal(found.weight[..., 0], ASKABLE)
        np.testing.assert_allclose(found.nats.reshape(-1), nats, rtol=1e-4, atol=1e-4)
        assert np.array_equal(
            found.is_argmax.reshape(-1)[ASKABLE.reshape(-1)], correct[ASKABLE.reshape(-1)]
        )
    nats, _ = plain_info_nce(embedded[0::2], embedded[1::2], 0.1, [True, True, False, True])
    found = scores["pair_retrieval"]
    assert found.weight.tolist() == [[[1], [1]], [[0], [1]]]
    np.testing.assert_allclose(found.nats.reshape(-1), nats, rtol=1e-4, atol=1e-4)


def test_candidates_and_queries_of_a_toy_batch(quick, variables):
    scores, calls = quick(lambda: shown(RANKER, variables["ranker"], RANKING))()
    [(tokens, valid)] = calls
    assert np.array_equal(valid, tokens != IDS.pad)
    tokens = tokens.reshape(2, 2 + CHUNKS, LENGTH)
    assert np.array_equal(tokens[:, 2:].reshape(ROWS.shape), ROWS)

    @quick
    def logits(query):
        every = jnp.concatenate([query[:, None], tokens[:, 2:]], axis=1)
        memories = RANKER.apply(variables["ranker"], every, every != 0, method="encode")
        return RANKER.apply(
            variables["ranker"], memories[:, 0], memories[:, 1:], ASKABLE, method="rank"
        )

    for place, name in enumerate(RANKING):
        query = tokens[:, place]
        assert np.all(query[:, :2] != 0) and np.all(query[:, 2:] == 0)
        asked = [
            int(np.flatnonzero((ROWS[row].reshape(CHUNKS, LENGTH) == query[row, 0]).any(axis=1))[0])
            for row in (0, 1)
        ]
        if name == "ngram_ranking":
            assert all(tuple(query[row, :2]) in NGRAMS[row, asked[row]] for row in (0, 1))
        expected = np.float64(logits(query))
        found = scores[name]
        assert found.nats.shape == found.is_argmax.shape == found.weight.shape == (2, 1, 1)
        assert found.labels is None and np.all(found.weight == 1)
        for row in (0, 1):
            among = expected[row][ASKABLE[row]]
            nats = np.log(np.exp(among - expected[row, asked[row]]).sum())
            assert found.nats[row, 0, 0] == pytest.approx(nats, rel=1e-3, abs=1e-4)
            assert bool(found.is_argmax[row, 0, 0]) == (expected[row].argmax() == asked[row])


def test_every_valid_chunk_is_asked_for_as_often(quick, variables):
    def asked(key):
        [(tokens, _)] = shown(RANKER, variables["ranker"], ["nbag_ranking"], key)[1]
        return tokens.reshape(2, 1 + CHUNKS, LENGTH)[:, 0, 0]

    first = quick(lambda keys: jax.lax.map(asked, keys))(jax.random.split(jax.random.key(0), KEYS))
    for row in (0, 1):
        chunks = ROWS[row].reshape(CHUNKS, LENGTH)
        chosen = np.array(
            [np.flatnonzero((chunks == token).any(axis=1))[0] for token in first[:, row]]
        )
        times = np.bincount(chosen, minlength=CHUNKS)
        assert np.all(times[~ASKABLE[row]] == 0)
        np.testing.assert_allclose(times[ASKABLE[row]], KEYS / 3, atol=5 * np.sqrt(KEYS * 2 / 9))


def test_a_row_of_one_candidate_is_no_question(quick, variables):
    rows = ROWS.copy()
    rows[0, LENGTH:] = 0
    run = quick(lambda rows: score(RANKER, variables["ranker"], rows, RANKING, IDS, STAGE))
    scores = run(rows)
    for found in scores.values():
        assert found.weight.tolist() == [[[0]], [[1]]]
        assert found.nats[0] == 0 and found.nats[1] > 0
    empty = run(np.zeros_like(rows))
    assert all(np.all(found.nats == 0) for found in empty.values())


@pytest.mark.quick_cases("retriever-names0")
@pytest.mark.parametrize(("family", "names"), [("retriever", RETRIEVAL), ("ranker", RANKING)])
def test_weights_are_those_of_the_scores_and_the_key_decides_queries_alone(
    quick, variables, family, names
):
    module = {"retriever": RETRIEVER, "ranker": RANKER}[family]
    trained = quick(
        lambda key: score(
            module, variables[family], Batch(jnp.asarray(ROWS)), names, IDS, STAGE, key
        )
    )
    first, same, second = (trained(jax.random.key(seed)) for seed in (1, 1, 2))

    @quick
    def evaluated():
        whole = score(module, variables[family], jnp.asarray(ROWS), names, IDS, STAGE)
        # Asked alone or with others, an objective draws the same queries.
        alone = score(module, variables[family], jnp.asarray(ROWS), names[1:2], IDS, STAGE)
        return (
            whole,
            alone,
            weights_of(module, jnp.asarray(ROWS), names, IDS, STAGE),
            counts_of(module, ROWS, names, IDS, STAGE),
        )

    whole, alone, weight, count = evaluated()
    np.testing.assert_allclose(alone[names[1]].nats, whole[names[1]].nats, rtol=1e-4, atol=1e-4)
    by_zero = trained(jax.random.key(0))
    for name in names:
        assert np.array_equal(whole[name].weight, weight[name])
        assert np.array_equal(first[name].weight, weight[name])
        assert count[name] == weight[name].sum() > 0
        assert np.array_equal(first[name].nats, same[name].nats)
        assert np.array_equal(first[name].nats, second[name].nats) == (name == "pair_retrieval")
        # Without noise an evaluation is what key 0 gives.
        np.testing.assert_allclose(by_zero[name].nats, whole[name].nats, rtol=1e-4, atol=1e-4)


def test_noise_is_drawn_in_training_alone(quick, variables):
    noisy = Model(**{**vars(MODEL), "noise": 0.5})

    def pair(key):
        return score(
            Retriever(noisy, VOCABULARY),
            variables["retriever"],
            jnp.asarray(ROWS),
            RETRIEVAL[2:],
            IDS,
            STAGE,
            key,
        )

    clean, quiet = quick(
        lambda: (shown(RETRIEVER, variables["retriever"], RETRIEVAL[2:])[0], pair(None))
    )()
    clean = clean["pair_retrieval"].nats
    np.testing.assert_allclose(quiet["pair_retrieval"].nats, clean, rtol=1e-4, atol=1e-4)
    trained = quick(pair)
    first, second = (trained(jax.random.key(seed))["pair_retrieval"].nats for seed in (0, 1))
    assert np.all(first[0] != clean[0]) and np.all(first[0] != second[0])


# Devices

DEVICES = """
import jax, sys
sys.path.insert(0, sys.argv[1])
import jax.numpy as jnp
import numpy as np
import test_retrieval as t
from memjax.objectives import total
from memjax.sharding import make_mesh, put_batch, replicated
from memjax.testing.families import counts_of, weights_of
assert jax.device_count() == 8
mesh = make_mesh()


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


queries, passages = t.embeddings(16, 4)
everyone = np.ones(16, bool)
split = [put_batch(x, mesh) for x in (queries, passages, everyone)]
found = jax.jit(t.info_nce)(split[0], split[1], 0.1, split[2])[0]
close(found, t.plain_info_nce(queries, passages, 0.1, everyone)[0])
apart = [
    t.plain_info_nce(queries[i : i + 2], passages[i : i + 2], 0.1, everyone[:2])[0]
    for i in range(0, 16, 2)
]
assert np.mean(found) > np.mean(apart) + 1

rows = np.random.default_rng(0).integers(6, t.VOCABULARY, (16, t.CHUNKS * t.LENGTH))
rows = rows.astype(np.int32)
rows[3, 4:] = 0
variables = jax.jit(t.RETRIEVER.init)(jax.random.key(0), rows[:, : t.LENGTH])


def loss(variables, rows):
    scores = t.score(t.RETRIEVER, variables, rows, t.RETRIEVAL, t.IDS, t.STAGE, jax.random.key(3))
    terms = {name: total(s) for name, s in scores.items()}
    return sum(term.nats / term.count for term in terms.values()), terms


step = jax.jit(jax.value_and_grad(loss, has_aux=True))
many = step(jax.device_put(variables, replicated(mesh)), put_batch(rows, mesh))
jax.tree.map(close, step(variables, rows), many)
print("equal on 8 devices")
"""


@pytest.mark.slow
def test_negatives_come_from_all_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    }
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, os.path.dirname(__file__)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "equal on 8 devices" in done.stdout, done.stderr[-2000:]


# Refusals


def test_queries_longer_than_passages_are_refused(variables):
    stage = Stage(dials={"query_tokens": 5})
    message = r"query_tokens: got 5, expected 1 to 4, the tokens of a passage \(chunk_length\)"
    for module, family, name in (
        (RETRIEVER, "retriever", "ngram_retrieval"),
        (RANKER, "ranker", "nbag_ranking"),
    ):
        with pytest.raises(ValueError, match=message):
            score(module, variables[family], ROWS, [name], IDS, stage)
        with pytest.raises(ValueError, match=message):
            counts_of(module, ROWS, [name], IDS, stage)
    for function in (ngrams, nbags):
        with pytest.raises(ValueError, match="query_tokens: got 0, expected 1 to 6"):
            function(jnp.asarray(PASSAGES), 0, jax.random.key(0), 0)


def test_chunks_that_do_not_pair_up_or_cannot_be_ranked_are_refused(variables):
    for function in (score, lambda module, _, *rest: weights_of(module, *rest)):
        with pytest.raises(
            ValueError, match=r"pair_retrieval: got 3 chunks per row, expected an even number"
        ):
            function(
                RETRIEVER, variables["retriever"], ROWS[:, :12], ["pair_retrieval"], IDS, STAGE
            )
        with pytest.raises(ValueError, match="ranking: got 1 chunk per row, expected at least two"):
            function(RANKER, variables["ranker"], ROWS[:, :4], ["ngram_ranking"], IDS, STAGE)
        with pytest.raises(
            ValueError, match="chunk_length: got 4, expected a divisor of the 11 tokens"
        ):
            function(
                RETRIEVER, variables["retriever"], ROWS[:, :11], ["ngram_retrieval"], IDS, STAGE
            )
    with pytest.raises(
        ValueError,
        match="ranker has no objective 'pair_retrieval'; it has ngram_ranking, nbag_ranking",
    ):
        score(RANKER, variables["ranker"], ROWS, ["pair_retrieval"], IDS, STAGE)


@pytest.mark.parametrize(
    ("dial", "value", "expected"),
    [
        ("query_tokens", 0, "0, expected a number from 1 to the 32 of config.model.chunk_length"),
        ("query_tokens", 33, "33, expected a number from 1 to the 32 of"),
        ("query_tokens", 2.0, "2.0, expected int"),
        ("temperature", 0.0, "0.0, expected a number from 1e-06 to 1000000"),
        ("temperature", float("nan"), "nan, expected a number"),
        ("temperature", "warm", "'warm', expected float"),
    ],
)
def test_wrong_dials_are_refused(dial, value, expected):
    stage = Stage(family="retriever", objectives={"ngram_retrieval": 1.0}, dials={dial: value})
    message = message_of({"stages": {"main": dataclasses.asdict(stage)}, **ALONE})
    assert message.startswith(f"config.stages.main.dials.{dial}")
    assert expected in message


def test_a_whole_number_is_a_temperature():
    stage = Stage(family="retriever", objectives={"pair_retrieval": 1.0}, dials={"temperature": 1})
    load_config(tree_with({"stages": {"main": dataclasses.asdict(stage)}, **ALONE}))
