"""Memories of fewer vectors than a model has, the first k of K, and of shorter chunks.

A training that draws k at random (`fewest_vectors`, a dial of a stage) packs what matters most into
the first vectors (nested dropout, Rippel et al. 2014). Any k may then be kept afterwards, without
another training. So it is with the length of chunks (`shortest_chunk`, and `models/cutting.py`).

Shapes: B row or chunk, K vector, E width of a vector.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Stage
from memjax.config.choices import PACKINGS
from memjax.models.cutting import halvings
from memjax.models.request import SHORTEST_CHUNK, Asking

DIAL = "fewest_vectors"


@dataclasses.dataclass(frozen=True)
class ElasticDials:
    """Settings of the families that can be trained on fewer vectors and on shorter chunks."""

    fewest_vectors: int = 0
    """Vectors of a memory that are kept in training, at least; 0 keeps all.

    Their number is drawn from here to `config.model.memory_vectors`, at every step: for each chunk
    of an autoencoder, and for each row that a decoder with layout `text` reads. Vectors behind it
    are dropped. Evaluation keeps all.
    """
    shortest_chunk: int = 0
    """Tokens of a chunk in training, at least; 0 is always `config.model.chunk_length`, L.

    The number is drawn for each row at every step, from L, its half, its quarter and so on down to
    this one. The other positions of a chunk are padding, so that a row has as many chunks, of a
    part of its tokens. Evaluation has chunks of L.
    """


def check_vectors(config: Config, fewest: int, key: str) -> None:
    """Raise ConfigError for a number of vectors that a stage cannot keep; `key` is the stage's."""
    vectors = config.model.memory_vectors
    ConfigError.require(
        0 <= fewest <= vectors,
        f"{key}.dials.{DIAL}: {fewest}, expected a number from 0 (all) to the {vectors} of"
        " config.model.memory_vectors. Change one of them",
    )


def check_lengths(config: Config, stage: Stage, key: str) -> None:
    """Raise ConfigError for chunk lengths that a stage cannot draw; `key` is the stage's."""
    model, shortest = config.model, stage.dials.get(SHORTEST_CHUNK, 0)
    dial, able = f"{key}.dials.{SHORTEST_CHUNK}", halvings(model.chunk_length)
    ConfigError.require(
        shortest in (0, *able),
        f"{dial}: {shortest}, expected 0 (always the {able[0]} of config.model.chunk_length) or one"
        f" of {', '.join(map(str, able))}. Change one of them",
    )
    ConfigError.require(
        shortest in (0, model.chunk_length) or PACKINGS[config.data.packing][1] == "right",
        f"{dial}: {shortest}, expected 0 with config.data.packing={config.data.packing!r}, which"
        " pads on the left. Use a packing that pads on the right, as short chunks are padded",
    )


def draw_kept(asking: Asking, *shape: int) -> Int[Array, "..."] | None:
    """Draw how many vectors are kept, uniformly; None where all are, as in evaluation.

    All requests of a step have the same draws, so that they share memories.
    """
    fewest, vectors = asking.stage.dials.get(DIAL, 0), asking.module.config.memory_vectors
    if asking.key is None or not 0 < fewest < vectors:
        return None
    return jax.random.randint(asking.key_of("vectors"), shape, fewest, vectors + 1)


def is_kept(kept: Int[Array, " B"], vectors: int) -> Bool[Array, "B K"]:
    """Return which vectors are kept: the first ones."""
    return jnp.arange(vectors) < kept[:, None]


def whole(
    memory: Float[Array, "B k E"], vectors: int, kept: Int[Array, " B"] | None = None
) -> Float[Array, "B K E"]:
    """Return memories of K vectors, with zeros in place of those that are dropped.

    Args:
      memory: memories of K vectors or of fewer.
      vectors: K.
      kept: vectors that are kept of each; None for all that are there.
    """
    if memory.shape[1] < vectors:
        memory = jnp.pad(memory, ((0, 0), (0, vectors - memory.shape[1]), (0, 0)))
    return memory if kept is None else jnp.where(is_kept(kept, vectors)[..., None], memory, 0)


def reads_fewer(module: Any) -> bool:
    """Return whether a model decodes memories of fewer vectors, and of shorter chunks."""
    return getattr(module, "READS_FEWER", False)
