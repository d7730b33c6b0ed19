"""Retrieval: which passage a query was taken from, by cosine similarity or by a ranker (Badger 2026, retrieval).

A query is some of the passage's own tokens (n-gram, n-bag) or the chunk before it (pair). It stands where a passage would, padded on
the right, and is read at its last token like one.

Shapes: B row, N token of a row, C chunk, L token of a chunk, Q passage with its query, E embedding, P pool.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import OBJECTIVES, Stage
from memjax.models import Ranker, Retriever
from memjax.objectives.requests import SpecialIds
from memjax.objectives.terms import Batch, Scores, chunked

# Similarities are divided by a small temperature: products of lower precision would show in the loss.
_PRECISION = jax.lax.Precision.HIGHEST


def info_nce(
    queries: Float[Array, "Q E"], passages: Float[Array, "Q E"], temperature: float, valid: Bool[Array, " Q"]
) -> tuple[Float[Array, " Q"], Bool[Array, " Q"]]:
    """Symmetric InfoNCE of unit vectors, every query of the batch against every passage.

    Under jit with Q split over devices the negatives are those of all devices; a microbatch has its own alone.

    Args:
      queries: one for each passage.
      passages: what they ask for.
      temperature: what similarities are divided by.
      valid: False where a pair is none; it is no negative of the others.

    Returns:
      Nats in float32, the mean of finding the passage by its query and the query by its passage (0 where a pair is none), and whether
      the passage is the one most similar to its query.
    """
    similarity = jnp.einsum("qe,pe->qp", queries.astype(jnp.float32), passages.astype(jnp.float32), precision=_PRECISION)
    own = jnp.arange(similarity.shape[0])
    # A pair that is none is alone with itself, so that no softmax is over nothing.
    alone = jnp.where(own[:, None] == own, 0.0, -jnp.inf)
    logits = jnp.where(valid[:, None] & valid, similarity / temperature, alone)
    nats = -(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)) + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))) / 2
    return nats, jnp.argmax(logits, axis=1) == own


def retrieval_accuracy(queries: Float[Array, "Q E"], passages: Float[Array, "Q E"], pool: int) -> Float[Array, ""]:
    """Share of queries that are most similar to their own passage among `pool` candidates, its own one included.

    Pools are consecutive: rows 0 to pool - 1, and so on; a last one that is not full is dropped.

    Raises:
      ValueError: there is no full pool.
    """
    count, width = queries.shape
    if not 1 <= pool <= count:
        raise ValueError(f"pool={pool} must be between 1 and the {count} queries there are")
    pools = count // pool
    split = (x[: pools * pool].astype(jnp.float32).reshape(pools, pool, width) for x in (queries, passages))

    def correct(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        similarity_PP = jnp.einsum("qe,pe->qp", *pair, precision=_PRECISION)
        return jnp.argmax(similarity_PP, axis=1) == jnp.arange(pool)

    # One pool's matrix at a time: at 8192 candidates it takes 256 MiB.
    return jnp.mean(jax.lax.map(correct, tuple(split)), dtype=jnp.float32)


def askable(tokens: Int[Array, "*any L"], count: int, pad: int) -> Bool[Array, "*any"]:
    """Whether a passage has the `count` tokens that a query takes."""
    return jnp.sum(tokens != pad, axis=-1) >= count


def ngrams(tokens: Int[Array, "Q L"], count: int, key: jax.Array, pad: int) -> Int[Array, "Q L"]:
    """For each passage, `count` consecutive tokens of it from an offset drawn uniformly, then padding.

    Padding is passed over: consecutive are tokens with nothing but padding between them. A passage of fewer tokens (`askable`) gives
    padding alone.
    """
    _check_count(count, tokens.shape[1])
    present = tokens != pad
    spare = jnp.maximum(jnp.sum(present, axis=1) - count, 0)
    offset = jax.random.randint(key, spare.shape, 0, spare + 1)
    in_front = jnp.argsort(~present, axis=1, stable=True)
    taken = jnp.take_along_axis(in_front, offset[:, None] + jnp.arange(count), axis=1)
    return _queries(tokens, taken, pad)


def nbags(tokens: Int[Array, "Q L"], count: int, key: jax.Array, pad: int) -> Int[Array, "Q L"]:
    """For each passage, `count` tokens of it from distinct places in an order of its own, both drawn uniformly, then padding.

    A passage of fewer tokens (`askable`) gives padding alone.
    """
    _check_count(count, tokens.shape[1])
    drawn = jnp.where(tokens != pad, jax.random.uniform(key, tokens.shape), -1.0)
    return _queries(tokens, jax.lax.top_k(drawn, count)[1], pad)


def _check_count(count: int, length: int) -> None:
    if not 1 <= count <= length:
        raise ValueError(f"query_tokens={count} must be between 1 and the {length} tokens of a passage (chunk_length)")


def _queries(tokens: jax.Array, taken: jax.Array, pad: int) -> jax.Array:
    """Tokens at the places taken, right padded to a passage's length."""
    count = taken.shape[1]
    queries = jnp.take_along_axis(tokens, taken, axis=1)
    queries = jnp.where(askable(tokens, count, pad)[:, None], queries, pad)
    return jnp.pad(queries, ((0, 0), (0, tokens.shape[1] - count)), constant_values=pad)


QUERIES: Mapping[str, Callable[[jax.Array, int, jax.Array, int], jax.Array]] = {
    "ngram_retrieval": ngrams,
    "nbag_retrieval": nbags,
    "ngram_ranking": ngrams,
    "nbag_ranking": nbags,
}
"""How the objectives that draw their queries from the passages do so."""


def score(
    module: Retriever | Ranker,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Every named objective, query by query: [B, C, 1], in pairs [B, C / 2, 1], of a ranker [B, 1, 1]; one call of the encoder.

    Raises:
      ValueError: chunks do not pair up, a row has no two candidates, or a query would be longer than a passage.
    """
    chunks_BCL = chunked(batch.tokens, module.config.chunk_length)
    _check_rows(chunks_BCL, names)
    rngs = None if key is None else {"noise": key}
    keys = {name: _query_key(key, module, name) for name in names}
    if isinstance(module, Ranker):
        return _ranking(module, variables, chunks_BCL, keys, ids, stage, rngs)
    return _retrieval(module, variables, chunks_BCL, keys, ids, stage, rngs)


def weights(
    module: Retriever | Ranker, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage
) -> dict[str, jax.Array]:
    """1 where a query counts, without running the model."""
    chunks_BCL = chunked(batch.tokens, module.config.chunk_length)
    _check_rows(chunks_BCL, names)
    return {name: _weight(name, chunks_BCL, ids, stage) for name in names}


def _weight(name: str, chunks_BCL: jax.Array, ids: SpecialIds, stage: Stage) -> jax.Array:
    if name == "pair_retrieval":
        valid = jnp.all(_pairs(askable(chunks_BCL, 1, ids.pad)), axis=2)
    else:
        _check_count(stage.query_tokens, chunks_BCL.shape[2])
        valid = askable(chunks_BCL, stage.query_tokens, ids.pad)
        if name.endswith("ranking"):
            # Among fewer than two candidates there is nothing to find.
            valid = jnp.sum(valid, axis=1, keepdims=True) > 1
    return valid[..., None].astype(jnp.float32)


def _check_rows(chunks_BCL: jax.Array, names: Sequence[str]) -> None:
    chunks = chunks_BCL.shape[1]
    if "pair_retrieval" in names and chunks % 2:
        raise ValueError(
            f"pair_retrieval needs rows of a query, a passage, a query, ...: {chunks} chunks in a row do not pair up"
        )
    if any(name.endswith("ranking") for name in names) and chunks < 2:
        raise ValueError(f"ranking needs at least two chunks in a row, and there is {chunks}")


def _pairs(x: jax.Array) -> jax.Array:
    """[B, C, ...] to [B, C / 2, 2, ...]."""
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])


def _query_key(key: jax.Array | None, module: Retriever | Ranker, name: str) -> jax.Array:
    """The objective's own, whatever the others asked with it."""
    family = "ranker" if isinstance(module, Ranker) else "retriever"
    return jax.random.fold_in(jax.random.key(0) if key is None else key, OBJECTIVES[family].index(name))


def _retrieval(
    module: Retriever,
    variables: Mapping[str, Any],
    chunks_BCL: jax.Array,
    keys: Mapping[str, jax.Array],
    ids: SpecialIds,
    stage: Stage,
    rngs: dict[str, jax.Array] | None,
) -> dict[str, Scores]:
    batch, count, length = chunks_BCL.shape
    passages_QL = chunks_BCL.reshape(-1, length)
    drawn = {name: QUERIES[name](passages_QL, stage.query_tokens, keys[name], ids.pad) for name in keys if name in QUERIES}
    # A passage's queries stand beside it, so that a batch split over devices stays where it is.
    tokens = jnp.stack([passages_QL, *drawn.values()], axis=1)
    flat = tokens.reshape(-1, length)
    embedded: Any = module.apply(variables, flat, flat != ids.pad, method="embed", rngs=rngs)
    embedded_QXE = embedded.reshape(*tokens.shape[:2], -1)
    places = {name: 1 + place for place, name in enumerate(drawn)}
    scores = {}
    for name in keys:
        if name == "pair_retrieval":
            pairs = _pairs(embedded_QXE[:, 0].reshape(batch, count, -1)).reshape(batch * count // 2, 2, -1)
            queries_QE, found_QE = pairs[:, 0], pairs[:, 1]
        else:
            queries_QE, found_QE = embedded_QXE[:, places[name]], embedded_QXE[:, 0]
        weight = _weight(name, chunks_BCL, ids, stage)
        nats, correct = info_nce(queries_QE, found_QE, stage.temperature, weight.reshape(-1) > 0)
        scores[name] = Scores(nats.reshape(weight.shape), correct.reshape(weight.shape), weight)
    return scores


def _ranking(
    module: Ranker,
    variables: Mapping[str, Any],
    chunks_BCL: jax.Array,
    keys: Mapping[str, jax.Array],
    ids: SpecialIds,
    stage: Stage,
    rngs: dict[str, jax.Array] | None,
) -> dict[str, Scores]:
    candidate_BC = askable(chunks_BCL, stage.query_tokens, ids.pad)
    asked, queries = {}, []
    for name, key in keys.items():
        choice, query = jax.random.split(key)
        drawn_BC = jnp.where(candidate_BC, jax.random.uniform(choice, candidate_BC.shape), -1.0)
        asked[name] = jnp.argmax(drawn_BC, axis=1)
        passage_BL = jnp.take_along_axis(chunks_BCL, asked[name][:, None, None], axis=1)[:, 0]
        queries.append(QUERIES[name](passage_BL, stage.query_tokens, query, ids.pad))
    tokens = jnp.concatenate([jnp.stack(queries, axis=1), chunks_BCL], axis=1)
    memories: Any = module.apply(variables, tokens, tokens != ids.pad, method="encode", rngs=rngs)
    scores = {}
    for place, name in enumerate(keys):
        ranked: Any = module.apply(variables, memories[:, place], memories[:, len(keys) :], candidate_BC, method="rank")
        nats_BC = -jax.nn.log_softmax(ranked, axis=1)
        weight = _weight(name, chunks_BCL, ids, stage)
        nats = jnp.take_along_axis(nats_BC, asked[name][:, None], axis=1)[..., None]
        correct = (jnp.argmax(ranked, axis=1) == asked[name])[:, None, None]
        scores[name] = Scores(jnp.where(weight > 0, nats, 0.0), correct, weight)
    return scores
