"""Memorizing Transformers (Wu et al. 2022, arXiv 2203.08913), and parts for raw keys and values.

One layer also reads the keys and values that the same layer had of earlier text. Each query and
head reads the k stored keys with the highest scores, and a learned number for every head weighs
this result and the local one; with `joint`, one softmax is over both.

A chunk is read alone, without a window over the chunk before, so that this is a bank. Stored rows
have no gradient and no rotation.

By default all tokens of a chunk are kept, as published. Capped, those are kept whose keys have the
highest mean score with the queries from their own to the end of the chunk: text to which the chunk
itself attends is the best guess, without a look at later text, of what that will attend to.

Not claimed: perplexities on PG-19, arXiv and GitHub with banks of 65,536 tokens and more.

Shapes: N chunk or decoded chunk, M entry, R kept row of a chunk, P stored row = M * R, G key and
value head, H head, E head width, L token, D width, U unit of neighbours.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import ConfigError
from memjax.layers.norm import make_norm
from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.far_attention import (
    Far,
    FarAttention,
    FarBlock,
    highest,
)
from memjax.models.peers.peer import MASKED, BankPeer, Leaves

KEY, VALUE = "key", "value"
"""The leaves of an entry."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a bank of raw keys and values."""

    tokens: int = 0
    """R: kept tokens of a chunk; 0 keeps all."""
    layer: int = -1
    """The layer whose keys and values are stored, counted from the last one where it is negative;
    published is layer 9 of 12."""
    most: int = 32
    """k: tokens that each query and head reads."""
    unit: int = 1
    """U: neighbouring tokens of a chunk that are retrieved as one."""
    joint: bool = False
    """One softmax over local and stored keys, in place of a learned weight of two."""


class TokenReader(FarAttention):
    """Attention to the stored rows with the highest scores, in units.

    Attributes:
      rows: R.
      most: k.
      unit: U.
    """

    rows: int = 1
    most: int = 1
    unit: int = 1

    def chosen(
        self,
        query: Float[Array, "N L H E"],
        key: Float[Array, "N P H E"],
        far: Far,
        valid: Bool[Array, "N L"],
    ) -> Bool[Array, "N H L P"]:
        """See `FarAttention.chosen`; every head chooses by the mean keys of units."""
        there, (batch, stored, heads, width) = far.there, key.shape
        unit, entries = min(self.unit, self.rows), stored // self.rows
        room = ((0, 0), (0, 0), (0, -self.rows % unit))
        filled = jnp.pad(there.reshape(batch, entries, self.rows), room)
        filled = filled.reshape(batch, -1, unit)
        keys = jnp.where(there[..., None, None], key, 0)
        keys = keys.reshape(batch, entries, self.rows, heads, width)
        keys = jnp.pad(keys, (*room, (0, 0), (0, 0))).reshape(*filled.shape, heads, width)
        number = jnp.maximum(filled.sum(axis=2), 1)[..., None, None]
        score = jnp.einsum("nlhe,nuhe->nhlu", query, keys.sum(axis=2) / number)
        score = jnp.where(filled.any(axis=2)[:, None, None], score, MASKED)
        units = highest(score, max(1, self.most // unit))
        units = units.reshape(*units.shape[:3], entries, -1)
        return jnp.repeat(units, unit, axis=-1)[..., : self.rows].reshape(*score.shape[:3], stored)


class OneLayerBank(BankPeer):
    """An entry is the keys and values of one layer at a chunk's tokens."""

    dials: Any = Dials()
    reader: type[TokenReader] = TokenReader

    @property
    def rows(self) -> int:
        """R."""
        return kept_rows(self.config.chunk_length, self.dials.tokens)

    @property
    def layer(self) -> int:
        """The layer that is stored.

        Raises:
          ConfigError: there is no such layer.
        """
        layers, layer = self.config.decoder.layers, self.dials.layer
        ConfigError.require(
            -layers <= layer < layers,
            f"dials.layer: {layer}, expected one of {layers} layers, from {-layers} up",
        )
        return layer % layers

    def reading_block(self) -> functools.partial[FarBlock]:
        """Return the maker of a block that reads stored rows."""
        dials = self.dials
        make = functools.partial(
            self.reader, gated=not dials.joint, rows=self.rows, most=dials.most, unit=dials.unit
        )
        return functools.partial(FarBlock, make=make)

    def entry(
        self,
        key: Float[Array, "N L G E"],
        value: Float[Array, "N L G E"],
        received: Float[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Leaves:
        """Return what is stored of a chunk's keys and values."""
        at, real = most_attended(received, valid, self.rows)
        return {KEY: rows_at(key, at, real), VALUE: rows_at(value, at, real)}

    def far(self, leaves: Leaves) -> Far:
        """Return the rows of all entries that are there."""
        key, value, filled = leaves[KEY], leaves[VALUE], leaves[VALID]
        there = are_there(key, value) & filled[..., None]
        flat = len(filled), -1, *key.shape[3:]
        return Far(key.reshape(flat), value.reshape(flat), there.reshape(len(filled), -1))

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        decoder = self.config.decoder
        heads = decoder.kv_heads or decoder.heads
        numbers = chunks * self.rows * heads * decoder.attention_head_dim
        return dict.fromkeys((KEY, VALUE), (numbers, number_bits(self.config)))


class Memorizing(OneLayerBank):
    """One layer of the decoder reads what it had of earlier chunks."""

    def setup(self) -> None:
        self.setup_decoder(stack=False)
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        reading = self.reading_block()
        self.blocks = [
            (reading if number == self.layer else FarBlock)(stack, self.config.chunk_length, dtype)
            for number in range(stack.layers)
        ]
        self.norm = make_norm(stack, dtype, "norm")

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        x = self.embed_tokens(tokens, valid).astype(jnp.float32)
        for block in self.blocks[: self.layer]:
            x, _ = block.read_far(x, valid)
        _, local = self.blocks[self.layer].read_far(x, valid)
        return self.entry(local.key, local.value, local.received, valid)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        x, far = x.astype(jnp.float32), self.far(leaves)
        for number, block in enumerate(self.blocks):
            x, _ = block.read_far(x, valid, far if number == self.layer else None)
        return self.norm(x)


def most_attended(
    received: Float[Array, "N L"], valid: Bool[Array, "N L"], most: int
) -> tuple[Int[Array, "N R"], Bool[Array, "N R"]]:
    """Return the R positions that received the highest scores, in order, and where they are real.

    Those that are not real are last. R is the number of positions, or `most` if that is fewer and
    not 0.
    """
    length = valid.shape[1]
    score = jnp.where(valid, jax.lax.stop_gradient(received), MASKED)
    _, at = jax.lax.top_k(score, kept_rows(length, most))
    order = jnp.where(jnp.take_along_axis(valid, at, axis=1), at, length + at)
    order = jnp.sort(order, axis=1)
    return order % length, order < length


def kept_rows(length: int, most: int) -> int:
    """Return the rows that are kept of a chunk: `most`, or all where that is 0."""
    return min(most, length) if most else length


def rows_at(
    rows: Float[Array, "N L G E"], at: Int[Array, "N R"], real: Bool[Array, "N R"]
) -> Float[Array, "N R G E"]:
    """Return rows without a gradient, 0 where they are not real."""
    taken = jnp.take_along_axis(rows, at[..., None, None], axis=1)
    return jax.lax.stop_gradient(jnp.where(real[..., None, None], taken, 0))


def are_there(
    key: Float[Array, "*any G E"], value: Float[Array, "*any G E"]
) -> Bool[Array, "*any"]:
    """Return which stored rows are not empty: these are 0 in full, which no token's are."""
    return jnp.any((key != 0) | (value != 0), axis=(-2, -1))


ADAPTER = peer(
    "memorizing",
    Memorizing,
    "One layer also reads its own keys and values of earlier chunks that score highest.",
    published="Memorizing Transformers, arXiv 2203.08913",
    dials=Dials,
    sized="tokens",
    tiny={"most": 3},
    unclaimed="perplexities on PG-19, arXiv and GitHub with banks of 65,536 tokens and more",
)
