"""Retrieval: the share of queries whose most similar text in a pool is their own.

See Badger 2026, retrieval. A query is some tokens of the text (n-gram, n-bag) or the text before it
(pair), encoded like a text; similarity is the cosine.

Shapes: N text with its query, L token, K vector, E its width, P candidate of a pool.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from memjax.inference.texts import TextsError, over_batches
from memjax.models.retriever import unit
from memjax.objectives.retrieval import long_enough, nbags, ngrams
from memjax.objectives.uncertainty import Estimate, mean

POOLS = (32, 128, 512, 2048, 8192)
QUERIES = ("ngram", "nbag", "pair")
Encode = Callable[[np.ndarray], np.ndarray | jax.Array]
"""Encoder: tokens [B, L] to memories [B, K, E]."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """Top-1 accuracy in pools of one size."""

    candidates: int
    accuracy: Estimate
    """Share of queries; the interval resamples queries in fixed pools."""
    chance: float
    pools: int
    """Pools of the texts."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Results of every pool size for which there are enough texts."""

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
) -> Retrieval:
    """Encode texts and queries, and compare them.

    Args:
      encode: the function of any encoder; all batches have one size, so that it may be jitted.
      texts: texts; those too short for a query are left out.
      query: `ngram` (consecutive tokens), `nbag` (tokens in any order), or `pair` (text 2i is the
        query of text 2i + 1, as neighbours in a corpus).
      count: tokens per n-gram or n-bag.
      pad: id of padding.
      pools: numbers of candidates; those greater than the number of texts are left out.
      batch: texts per batch.

    Raises:
      TextsError: the query is unknown, or there are fewer texts than the smallest pool.
    """
    texts = np.asarray(texts)
    TextsError.require_one_of("query", query, QUERIES)
    if query == "pair":
        asked, asking = texts[1::2], texts[: len(texts) // 2 * 2 : 2]
    else:
        asked = texts[np.asarray(long_enough(jnp.asarray(texts), count, pad))]
        cut = {"ngram": ngrams, "nbag": nbags}[query]
        asking = np.asarray(cut(jnp.asarray(asked), count, jax.random.key(0), pad))
    TextsError.require(
        len(asked) >= min(pools),
        f"texts: {len(asked)} with a query of {count} tokens, expected at least {min(pools)},"
        " the candidates of the smallest pool",
    )

    def direction(tokens: np.ndarray) -> Float[jax.Array, "B KE"]:
        """Return a text's vectors, concatenated and normalised to length 1 together."""
        memory = jnp.asarray(encode(tokens), jnp.float32)
        return unit(memory.reshape(len(tokens), -1))

    queries, passages = (
        over_batches(direction, tokens, batch, "retrieval") for tokens in (asking, asked)
    )
    return Retrieval(query, len(asked), top_1(queries, passages, pools))


def top_1(
    queries: Float[np.ndarray, "N E"],
    passages: Float[np.ndarray, "N E"],
    pools: Sequence[int] = POOLS,
) -> tuple[Pool, ...]:
    """Return the share of queries i whose most similar passage in its pool is passage i.

    There is one result per pool size P with enough passages. Pools of P are random; remaining
    passages are in none. A tie counts as wrong, so that equal vectors score 0.

    Raises:
      ValueError: queries and passages differ in number or width, or one is not finite.
    """
    queries, passages = np.asarray(queries, np.float32), np.asarray(passages, np.float32)
    if queries.shape != passages.shape or queries.ndim != 2:
        raise ValueError(
            f"queries {queries.shape}, passages {passages.shape}: expected one vector each, in the"
            " same order"
        )
    if not (np.isfinite(queries).all() and np.isfinite(passages).all()):
        raise ValueError(
            "queries or passages: NaN or infinity in the vectors, expected finite numbers"
        )
    order = np.random.default_rng(0).permutation(len(queries))

    def scored(size: int) -> Pool:
        dealt = order[: len(order) // size * size].reshape(-1, size)
        # One matrix per pool at a time: with 8,192 candidates it takes 256 MiB.
        correct = np.concatenate([_found(queries[pool], passages[pool]) for pool in dealt])
        return Pool(size, mean(correct), 1 / size, len(dealt))

    return tuple(scored(size) for size in pools if size <= len(queries))


@jax.jit
def _found(queries_PE: jax.Array, passages_PE: jax.Array) -> jax.Array:
    similarity_PP = jnp.einsum(
        "qe,pe->qp", queries_PE, passages_PE, precision=jax.lax.Precision.HIGHEST
    )
    own = jnp.diagonal(similarity_PP)
    others = jnp.where(jnp.eye(len(own), dtype=bool), -jnp.inf, similarity_PP)
    return own > jnp.max(others, axis=1)
