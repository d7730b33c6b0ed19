"""Rows of tokens to chunks: of the model's length, or of shorter ones that are drawn per row.

A chunk of l of the model's L tokens is a chunk whose other positions are padding, as the last chunk
of a document is. Shapes stay those of L, so that all lengths share one program.

Shapes: B row, N token of a row, C = N / L chunk of it, L token of a chunk.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from memjax.config import ConfigError


def chunked(tokens: Int[Array, "B N"], length: int) -> Int[Array, "B C L"]:
    """Split rows into chunks.

    Raises:
      ConfigError: the chunk length does not divide the rows.
    """
    batch, row = tokens.shape
    ConfigError.require(
        row % length == 0,
        f"chunk_length: got {length}, expected a divisor of the {row} tokens of a row",
    )
    return tokens.reshape(batch, row // length, length)


def halvings(length: int, shortest: int = 1) -> tuple[int, ...]:
    """Return a length, its half, its quarter and so on, down to the shortest: whole numbers."""
    found = [length]
    while found[-1] % 2 == 0 and found[-1] // 2 >= max(1, shortest):
        found.append(found[-1] // 2)
    return tuple(found)


def drawn_cut(
    tokens_BN: Int[Array, "B N"],
    real_B: Int[Array, " B"],
    length: int,
    shortest: int,
    key: jax.Array,
    pad_id: int,
) -> Int[Array, "B C L"]:
    """Split rows into as many chunks of lengths that are drawn, one per row, padded on the right.

    The chunks of a row follow each other. Shorter ones are of a part of the row that begins at a
    drawn multiple of L, so that all parts of rows are read.

    Args:
      tokens_BN: the rows, with padding behind their tokens.
      real_B: tokens of each row without padding.
      length: L.
      shortest: the shortest length that is drawn, of `halvings`; all are drawn equally often.
      key: of both draws.
      pad_id: the id of padding.
    """
    batch, row = tokens_BN.shape
    chunks = row // length
    of_length, of_start = jax.random.split(key)
    drawn_B = jax.random.randint(of_length, (batch,), 0, len(halvings(length, shortest)))
    own_B = length >> drawn_B
    unused_B = jnp.maximum(real_B - chunks * own_B, 0)
    start_B = length * jax.random.randint(of_start, (batch,), 0, unused_B // length + 1)
    at_L = jnp.arange(length)
    first_BC = start_B[:, None] + jnp.arange(chunks) * own_B[:, None]
    index_BCL = first_BC[..., None] + at_L
    found = jnp.take_along_axis(tokens_BN, index_BCL.reshape(batch, -1), axis=1, mode="clip")
    there_BCL = at_L < own_B[:, None, None]
    return jnp.where(there_BCL, found.reshape(batch, chunks, length), pad_id)
