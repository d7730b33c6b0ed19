"""Retrieval of the passage that a query was taken from, by cosine similarity or by a ranker.

Source: Badger 2026, retrieval. A query consists of some of the passage's own tokens (n-gram, n-bag)
or is the previous chunk (pair). It has a passage's shape, padded on the right, and is read at its
last token.

Shapes: B row, N token of a row, C chunk, L token of a chunk, Q passage with its query, E embedding,
P pool.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Stage
from memjax.models.request import Asking, Request, Requests, Variables
from memjax.models.retriever import QueryDials, RetrieverDials
from memjax.objectives.objective import Objective
from memjax.objectives.terms import Scores

# Similarities are divided by a small temperature, so lower precision would change the loss.
_PRECISION = jax.lax.Precision.HIGHEST


def info_nce(
    queries: Float[Array, "Q E"],
    passages: Float[Array, "Q E"],
    temperature: float,
    valid: Bool[Array, " Q"],
) -> tuple[Float[Array, " Q"], Bool[Array, " Q"]]:
    """Compute symmetric InfoNCE of unit vectors, every query of the batch against every passage.

    Under jit with Q split over devices the negatives are those of all devices; a microbatch has
    only its own.

    Args:
      queries: one per passage.
      passages: targets of the queries.
      temperature: divisor of similarities.
      valid: False where a pair is invalid; it is no negative of the others.

    Returns:
      Nats in float32, the mean of finding the passage by its query and the query by its passage (0
        for invalid pairs), and whether the passage is the one most similar to its query.
    """
    similarity = jnp.einsum(
        "qe,pe->qp", queries.astype(jnp.float32), passages.astype(jnp.float32), precision=_PRECISION
    )
    own = jnp.arange(similarity.shape[0])
    # An invalid pair is its own only candidate, so that no softmax is empty.
    alone = jnp.where(own[:, None] == own, 0.0, -jnp.inf)
    logits = jnp.where(valid[:, None] & valid, similarity / temperature, alone)
    nats = (
        -(
            jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
            + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
        )
        / 2
    )
    return nats, jnp.argmax(logits, axis=1) == own


def long_enough(tokens: Int[Array, "*any L"], count: int, pad: int) -> Bool[Array, "*any"]:
    """Return whether a passage has at least the `count` tokens of a query."""
    return jnp.sum(tokens != pad, axis=-1) >= count


def ngrams(tokens: Int[Array, "Q L"], count: int, key: jax.Array, pad: int) -> Int[Array, "Q L"]:
    """Return, per passage, `count` consecutive tokens from a uniformly drawn offset, then padding.

    Padding is skipped: tokens with only padding between them are consecutive. A passage with fewer
    tokens (`long_enough`) yields only padding.
    """
    _check_count(count, tokens.shape[1])
    present = tokens != pad
    spare = jnp.maximum(jnp.sum(present, axis=1) - count, 0)
    offset = jax.random.randint(key, spare.shape, 0, spare + 1)
    in_front = jnp.argsort(~present, axis=1, stable=True)
    taken = jnp.take_along_axis(in_front, offset[:, None] + jnp.arange(count), axis=1)
    return _queries(tokens, taken, pad)


def nbags(tokens: Int[Array, "Q L"], count: int, key: jax.Array, pad: int) -> Int[Array, "Q L"]:
    """Return, per passage, `count` tokens from distinct positions in random order, then padding.

    Positions and order are drawn uniformly. A passage with fewer tokens (`long_enough`) yields only
    padding.
    """
    _check_count(count, tokens.shape[1])
    drawn = jnp.where(tokens != pad, jax.random.uniform(key, tokens.shape), -1.0)
    return _queries(tokens, jax.lax.top_k(drawn, count)[1], pad)


def _check_count(count: int, length: int) -> None:
    """Raise ConfigError where a query would be longer than a passage."""
    ConfigError.require(
        1 <= count <= length,
        f"query_tokens: got {count}, expected 1 to {length}, the tokens of a passage"
        " (chunk_length)",
    )


def _queries(tokens: jax.Array, taken: jax.Array, pad: int) -> jax.Array:
    """Return the tokens at the given positions, right-padded to a passage's length."""
    count = taken.shape[1]
    queries = jnp.take_along_axis(tokens, taken, axis=1)
    queries = jnp.where(long_enough(tokens, count, pad)[:, None], queries, pad)
    return jnp.pad(queries, ((0, 0), (0, tokens.shape[1] - count)), constant_values=pad)


def _query_tokens(stage: Stage) -> int:
    return stage.dials.get("query_tokens", QueryDials.query_tokens)


Draw = Callable[[jax.Array, int, jax.Array, int], jax.Array]


def _drawn(draw: Draw, number: int, asking: Asking) -> Request:
    """Ask by a query per passage, drawn from it.

    `number` keeps the draws of objectives apart.
    """
    chunks_BCL, count, pad = asking.chunks, _query_tokens(asking.stage), asking.ids.pad
    key = jax.random.fold_in(asking.draw_key, number)
    passages_QL = chunks_BCL.reshape(-1, chunks_BCL.shape[-1])
    queries = draw(passages_QL, count, key, pad).reshape(chunks_BCL.shape)
    passage = jnp.broadcast_to(jnp.arange(chunks_BCL.shape[1])[:, None], (*queries.shape[:2], 1))
    weight = long_enough(chunks_BCL, count, pad)[..., None].astype(jnp.float32)
    return Request(queries, passage, weight, extra=queries)


def _drawn_of_one(draw: Draw, number: int, asking: Asking) -> Request:
    """Ask by a query per sequence, drawn from one of its chunks.

    `number` keeps the draws of objectives apart.
    """
    chunks_BCL, count, pad = asking.chunks, _query_tokens(asking.stage), asking.ids.pad
    chunks = chunks_BCL.shape[1]
    ConfigError.require(chunks > 1, f"ranking: got {chunks} chunk per row, expected at least two")
    choice, query = jax.random.split(jax.random.fold_in(asking.draw_key, number))
    candidate_BC = long_enough(chunks_BCL, count, pad)
    drawn_BC = jnp.where(candidate_BC, jax.random.uniform(choice, candidate_BC.shape), -1.0)
    asked_B = jnp.argmax(drawn_BC, axis=1)
    passage_BL = jnp.take_along_axis(chunks_BCL, asked_B[:, None, None], axis=1)[:, 0]
    queries = draw(passage_BL, count, query, pad)[:, None]
    # Among fewer than two candidates there is nothing to find.
    weight = (jnp.sum(candidate_BC, axis=1, keepdims=True) > 1)[..., None]
    return Request(queries, asked_B[:, None, None], weight.astype(jnp.float32), extra=queries)


def _paired(asking: Asking) -> Request:
    """Every other chunk is the query of the chunk after it."""
    chunks_BCL = asking.chunks
    chunks = chunks_BCL.shape[1]
    ConfigError.require(
        chunks % 2 == 0,
        f"pair_retrieval: got {chunks} chunks per row, expected an even number, as rows alternate"
        " queries and passages",
    )
    queries = chunks_BCL[:, ::2]
    passage = jnp.broadcast_to(1 + 2 * jnp.arange(chunks // 2)[:, None], (*queries.shape[:2], 1))
    real = long_enough(chunks_BCL, 1, asking.ids.pad)
    valid = real[:, ::2] & real[:, 1::2]
    return Request(queries, passage, valid[..., None].astype(jnp.float32))


def score(asking: Asking, variables: Variables, requests: Requests) -> dict[str, Scores]:
    """Score every query of every request, [B, C, 1] or in pairs [B, C / 2, 1].

    The encoder is called once.
    """
    chunks_BCL = asking.chunks
    length = chunks_BCL.shape[2]
    drawn = [name for name, request in requests.items() if request.extra is not None]
    # A passage's queries stand beside it, so that a batch split over devices stays where it is.
    texts = [chunks_BCL, *(requests[name].inputs for name in drawn)]
    tokens_QXL = jnp.stack([text.reshape(-1, length) for text in texts], axis=1)
    flat = tokens_QXL.reshape(-1, length)
    embedded = asking.apply(variables, "embed", flat, flat != asking.ids.pad)
    embedded_QXE = embedded.reshape(*tokens_QXL.shape[:2], -1)
    passages_QE, scores = embedded_QXE[:, 0], {}
    temperature = asking.stage.dials.get("temperature", RetrieverDials.temperature)
    for name, request in requests.items():
        if name in drawn:
            queries_QE, found_QE = embedded_QXE[:, 1 + drawn.index(name)], passages_QE
        else:
            both = passages_QE.reshape(-1, 2, passages_QE.shape[1])
            queries_QE, found_QE = both[:, 0], both[:, 1]
        weight = request.weight
        nats, correct = info_nce(queries_QE, found_QE, temperature, weight.reshape(-1) > 0)
        scores[name] = Scores(nats.reshape(weight.shape), correct.reshape(weight.shape), weight)
    return scores


def rank(asking: Asking, variables: Variables, requests: Requests) -> dict[str, Scores]:
    """Score every request of a ranker, [B, 1, 1]; one call of the encoder."""
    chunks_BCL, pad = asking.chunks, asking.ids.pad
    candidate_BC = long_enough(chunks_BCL, _query_tokens(asking.stage), pad)
    queries = [request.inputs for request in requests.values()]
    tokens = jnp.concatenate([*queries, chunks_BCL], axis=1)
    memories = asking.apply(variables, "encode", tokens, tokens != pad)
    scores = {}
    for position, (name, request) in enumerate(requests.items()):
        query, candidates = memories[:, position], memories[:, len(requests) :]
        ranked = asking.apply(variables, "rank", query, candidates, candidate_BC)
        nats_BC, asked_B1 = -jax.nn.log_softmax(ranked, axis=1), request.labels[:, 0]
        nats = jnp.take_along_axis(nats_BC, asked_B1, axis=1)[..., None]
        correct = (jnp.argmax(ranked, axis=1) == asked_B1[:, 0])[:, None, None]
        scores[name] = Scores(jnp.where(request.weight > 0, nats, 0.0), correct, request.weight)
    return scores


def _check_query(config: Config, stage: Stage, key: str) -> None:
    """Raises ConfigError where a query has no token, or more than a passage."""
    count, length = _query_tokens(stage), config.model.chunk_length
    ConfigError.require(
        1 <= count <= length,
        f"{key}.dials.query_tokens: {count}, expected a number from 1 to the {length} of"
        " config.model.chunk_length. Change one of them",
    )


def _check_passages(stage: Stage, key: str, passages: int) -> None:
    share = stage.batch_size // stage.grad_accum_steps
    ConfigError.require(
        share * passages >= 2,
        f"{key}.batch_size={stage.batch_size} in {key}.grad_accum_steps={stage.grad_accum_steps}"
        f" leave {share * passages} passages per microbatch, expected two or more",
    )


def _check_drawn(config: Config, stage: Stage, key: str) -> None:
    _check_query(config, stage, key)
    _check_passages(stage, key, config.chunks)


def _check_paired(config: Config, stage: Stage, key: str) -> None:
    ConfigError.require(
        config.chunks % 2 == 0,
        f"{key}.objectives names pair_retrieval, which needs an even number of chunks in a row,"
        f" query and passage in turn; there are {config.chunks}",
    )
    _check_passages(stage, key, config.chunks // 2)


OBJECTIVES = (
    Objective(
        "ngram_retrieval", "retrieves", partial(_drawn, ngrams, 0), score, check=_check_drawn
    ),
    Objective("nbag_retrieval", "retrieves", partial(_drawn, nbags, 1), score, check=_check_drawn),
    Objective("pair_retrieval", "retrieves", _paired, score, check=_check_paired),
    Objective(
        "ngram_ranking", "ranks", partial(_drawn_of_one, ngrams, 0), rank, check=_check_query
    ),
    Objective("nbag_ranking", "ranks", partial(_drawn_of_one, nbags, 1), rank, check=_check_query),
)
