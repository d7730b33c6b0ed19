"""How well memories tell texts apart: the share of queries whose most similar text, of so many, is their own (Badger 2026, retrieval).

A query is some tokens of the text (n-gram, n-bag) or the text before it (pair), encoded like a text; similarity is the cosine.

Shapes: N text with its query, L token, K vector, E its width, P candidate of a pool.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from memjax.instruments.texts import TextsError, batch_count, batches, trimmed
from memjax.instruments.uncertainty import Estimate, mean
from memjax.models.retrieval import unit
from memjax.objectives.retrieval import askable, nbags, ngrams

POOLS = (32, 128, 512, 2048, 8192)
QUERIES = ("ngram", "nbag", "pair")
Encode = Callable[[np.ndarray], np.ndarray | jax.Array]
"""Tokens [B, L] to memories [B, K, E]."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """Top-1 among so many candidates."""

    candidates: int
    accuracy: Estimate
    """Share of queries; the interval draws queries anew and takes the pools as they are."""
    chance: float
    pools: int
    """That the texts were dealt into."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Pools of every size that the texts suffice for."""

    query: str
    texts: int
    pools: tuple[Pool, ...]


def retrieval(
    encode: Encode,
    texts: Int[np.ndarray, "N L"],
    query: str = "ngram",
    count: int = 7,
    pad: int = 0,
    pools: Sequence[int] = POOLS,
    batch: int = 256,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Retrieval:
    """Encodes texts and queries, and compares them.

    Args:
      encode: of any encoder; called with batches of one size, so that it may be jitted.
      texts: those too short to be asked for are left out.
      query: `ngram` (consecutive tokens), `nbag` (tokens in any order), or `pair` (text 2i asks for text 2i + 1, as neighbours in a corpus).
      count: tokens of an n-gram or n-bag.
      pad: id of padding.
      pools: numbers of candidates; those there are not enough texts for are left out.
      batch: texts at a time.
      seed: chooses the queries' tokens and deals texts into pools.
      advance: called `2 * batch_count(texts, batch)` times at most.

    Raises:
      TextsError: the query is unknown, or there are fewer texts than the smallest pool.
    """
    texts = np.asarray(texts)
    if query not in QUERIES:
        raise TextsError(f"query={query!r}: texts are asked for by {', '.join(QUERIES)}")
    if query == "pair":
        asked, asking = texts[1::2], texts[: len(texts) // 2 * 2 : 2]
    else:
        asked = texts[np.asarray(askable(jnp.asarray(texts), count, pad))]
        taken = {"ngram": ngrams, "nbag": nbags}[query]
        asking = np.asarray(taken(jnp.asarray(asked), count, jax.random.key(seed), pad)) if len(asked) else asked
    if len(asked) < min(pools):
        raise TextsError(f"{len(asked)} texts with a query of {count} tokens are too few for a pool of {min(pools)} candidates")
    queries, passages = (_directions(encode, tokens, batch, advance) for tokens in (asking, asked))
    return Retrieval(query, len(asked), top_1(queries, passages, pools, seed))


def _directions(encode: Encode, tokens: np.ndarray, batch: int, advance: Callable[[], None]) -> Float[np.ndarray, "N KE"]:
    """A text's vectors side by side, of length 1 together."""
    parts = []
    for one in batches(tokens, batch):
        memory = np.asarray(encode(one), np.float32)
        parts.append(np.asarray(unit(jnp.asarray(memory.reshape(len(one), -1)))))
        advance()
    return trimmed(parts, len(tokens))


def top_1(
    queries: Float[np.ndarray, "N E"], passages: Float[np.ndarray, "N E"], pools: Sequence[int] = POOLS, seed: int = 0
) -> tuple[Pool, ...]:
    """Whether query i is most similar to passage i among the P of its pool, for pools of every size there are enough passages for.

    Passages are dealt into pools of P at random; those left over are in none. A tie counts as wrong, so that equal vectors find nothing.

    Raises:
      ValueError: queries and passages are not alike in number and width, or one is not finite.
    """
    queries, passages = np.asarray(queries, np.float32), np.asarray(passages, np.float32)
    if queries.shape != passages.shape or queries.ndim != 2:
        raise ValueError(f"queries {queries.shape} and passages {passages.shape} must be one vector each, in the same order")
    if not (np.isfinite(queries).all() and np.isfinite(passages).all()):
        raise ValueError("a query or passage is not finite: there are NaNs or infinities in the vectors")
    order = np.random.default_rng(seed).permutation(len(queries))
    found = []
    for size in pools:
        dealt = order[: len(order) // size * size].reshape(-1, size)
        if dealt.size:
            # One pool's matrix at a time: at 8,192 candidates it takes 256 MiB.
            correct = np.concatenate([_found(queries[pool], passages[pool]) for pool in dealt])
            found.append(Pool(size, mean(correct), 1 / size, len(dealt)))
    return tuple(found)


@jax.jit
def _found(queries_PE: jax.Array, passages_PE: jax.Array) -> jax.Array:
    similarity_PP = jnp.einsum("qe,pe->qp", queries_PE, passages_PE, precision=jax.lax.Precision.HIGHEST)
    own = jnp.diagonal(similarity_PP)
    others = jnp.where(jnp.eye(len(own), dtype=bool), -jnp.inf, similarity_PP)
    return own > jnp.max(others, axis=1)


__all__ = ["POOLS", "QUERIES", "Pool", "Retrieval", "batch_count", "retrieval", "top_1"]
