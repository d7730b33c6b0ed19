"""Retrieval: exact shares, chance, queries of every kind."""

import numpy as np
import pytest

from memjax.evaluation.instruments.retrieval import retrieval, top_1
from memjax.inference.texts import TextsError
from memjax.models.retriever import unit


def test_a_passage_is_found_where_it_is_the_nearest_and_not_where_it_ties():
    passages = np.eye(4, dtype=np.float32)
    queries = passages.copy()
    queries[0] = [0.1, 0.9, 0, 0]  # Nearer to passage 1.
    queries[1] = [0.5, 0.5, 0, 0]  # As near to passage 0.
    (pool,) = top_1(queries, passages, (4, 5))
    assert (pool.candidates, pool.accuracy.value, pool.chance, pool.pools) == (4, 0.5, 0.25, 1)


def test_vectors_without_a_relation_are_found_by_chance_alone():
    queries, passages = np.random.default_rng(0).normal(size=(2, 4096, 8))
    for pool in top_1(queries, passages, (8, 32, 512)):
        deviation = (pool.chance * (1 - pool.chance) / 4096) ** 0.5
        assert abs(pool.accuracy.value - pool.chance) < 3 * deviation
    equal = np.ones((64, 8))
    assert top_1(equal, equal, (32,))[0].accuracy.value == 0, "equal vectors tell nothing"


def test_more_candidates_are_harder_and_one_pool_of_all_is_the_plain_share():
    generator = np.random.default_rng(1)
    passages = generator.normal(size=(256, 8))
    queries = passages + generator.normal(size=passages.shape)
    shares = [pool.accuracy.value for pool in top_1(queries, passages, (2, 16, 256))]
    assert shares[0] > shares[1] > shares[2] > 1 / 256
    own = (queries @ passages.T).argmax(axis=1) == np.arange(256)
    assert shares[2] == pytest.approx(own.mean())


def bag(tokens):
    """An encoder that counts tokens: [B, 1, V]."""
    return np.stack([np.bincount(row, minlength=60)[1:] for row in tokens])[:, None].astype(
        np.float32
    )


def first(tokens):
    """An encoder that knows the first token alone."""
    return np.eye(60, dtype=np.float32)[tokens[:, :1]]


@pytest.mark.parametrize("query", ["ngram", "nbag"])
def test_an_encoder_that_counts_tokens_is_found_by_some_of_them(query):
    texts = np.random.default_rng(0).integers(6, 60, (128, 12))
    found = retrieval(bag, texts, query, 6, pools=(32, 1000), batch=50)
    (pool,) = found.pools
    assert (found.texts, pool.candidates) == (128, 32)
    assert pool.accuracy.value > 0.9
    assert retrieval(first, texts, query, 6, pools=(32,)).pools[0].accuracy.value < 0.5


def test_neighbours_ask_for_each_other():
    texts = np.repeat(np.random.default_rng(0).integers(6, 60, (64, 12)), 2, axis=0)
    assert retrieval(bag, texts, "pair", pools=(32,)).pools[0].accuracy.value == 1
    shifted = np.roll(texts, 1, axis=0)
    assert retrieval(bag, shifted, "pair", pools=(32,)).pools[0].accuracy.value < 0.2


def test_what_cannot_be_asked_is_named():
    texts = np.full((40, 12), 7)
    with pytest.raises(TextsError, match="query: 'words', expected one of"):
        retrieval(bag, texts, "words")
    texts[10:, 3:] = 0
    with pytest.raises(
        TextsError, match="texts: 10 with a query of 6 tokens, expected at least 32"
    ):
        retrieval(bag, texts, "ngram", 6)
    with pytest.raises(ValueError, match="NaN or infinity in the vectors"):
        top_1(np.full((32, 2), np.nan), np.ones((32, 2)))
    with pytest.raises(ValueError, match="expected one vector each"):
        top_1(np.ones((32, 2)), np.ones((31, 2)))


@pytest.mark.slow
def test_a_trained_encoder_keeps_texts_apart_and_like_texts_together(trained_autoencoder):
    system, params, train, _ = trained_autoencoder
    texts = np.unique(train, axis=0)[:128]
    changed = texts.copy()
    changed[:, 0] = np.roll(texts[:, 0], 1)
    queries, passages = (unit(system.encode(params, tokens)[:, 0]) for tokens in (changed, texts))
    (pool,) = top_1(queries, passages, (32,))
    assert pool.accuracy.low > 5 * pool.chance
    assert top_1(np.roll(queries, 1, axis=0), passages, (32,))[0].accuracy.value < pool.accuracy.low
