"""REFRAG (Lin et al. 2025, arXiv 2509.01092), after REFRAG: the paper was not read, nor any code.

A chunk is cut into pieces of k tokens. A small encoder, which reads both ways, turns every piece
into one vector, a matrix brings it to the decoder's inputs, and the decoder reads one position
where it would have read k. A few pieces are expanded: the decoder reads their tokens, in the place
where the vector would stand. Those are the pieces whose tokens the decoder finds least likely, as
in the heuristic form; the published policy is learned by reinforcement.

Here every chunk expands as many of its own pieces, when it is written. What is expanded does not
depend on what is decoded later, and no token of the other pieces is stored: a policy that chooses
among all text has to keep all text. Nats are those of the decoder that reads the chunk alone; the
first token, which nothing predicts, is not counted. All parts are trained together, on the
objectives of every peer: neither the curriculum of lengths, with reconstruction first, nor the
pretrained models are reproduced.

Not claimed: the speed of the first token and 16 times longer contexts of Llama models, the learned
policy, and scores in retrieval and dialogue.

Shapes: N chunk or decoded chunk, M entry, S piece of a chunk, E expanded piece, R other piece, k
token of a piece, L token, P row before the inputs, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from memjax.layers import Linear
from memjax.models.encoder import Encoder
from memjax.models.memory import VALID, VECTORS, number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import BankPeer, Leaves, take

TOKENS, EXPANDED, LENGTH = "tokens", "expanded", "length"
"""Leaves of an entry beside its vectors: the tokens of expanded pieces, which pieces these are, and
how many tokens the chunk had. An entry without expanded pieces has neither of the first two."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of REFRAG."""

    vectors: int = 4
    """S: pieces of a chunk; published pieces have 16 tokens."""
    expanded: int = 1
    """E: pieces of a chunk whose tokens are stored in place of a vector."""
    by_nats: bool = True
    """False expands the first pieces of every chunk."""
    encoder_layers: int = 1
    """Blocks of the encoder, which is as wide as the decoder."""


class Refrag(BankPeer):
    """An entry is vectors of most pieces and the tokens of the others."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        config, decoder = self.config, self.config.decoder
        small = dataclasses.replace(
            config,
            encoder=dataclasses.replace(decoder, layers=self.dials.encoder_layers, causal=False),
            chunk_length=self.span,
            memory_vectors=1,
            readout="memory_tokens",
            bottleneck=0,
        )
        self.encoder = Encoder(small, self.vocab_size)
        self.projection = Linear(decoder.width, use_bias=True, dtype=jnp.dtype(config.dtype))

    @property
    def span(self) -> int:
        """Tokens of a piece, k; the last pieces of a chunk may have fewer."""
        return -(-self.config.chunk_length // self.dials.vectors)

    @property
    def expanded(self) -> int:
        """E."""
        return min(self.dials.expanded, self.dials.vectors)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`; padding takes part in no piece."""
        order = jnp.argsort(~valid, axis=1, stable=True)
        length = valid.sum(axis=1, dtype=jnp.int32)
        packed = jnp.take_along_axis(tokens, order, axis=1)
        real = jnp.arange(tokens.shape[1]) < length[:, None]
        score, cut, real = self.surprise(packed, real), self.pieces(packed), self.pieces(real)
        shape = cut.shape[0] * cut.shape[1], self.span
        vectors = self.encoder(cut.reshape(shape), real.reshape(shape))
        # Stable: pieces of either kind stand in the order of the text.
        kinds = jnp.argsort(self.choose(score), axis=1, stable=True).astype(jnp.int32)
        rest, chosen = jnp.split(kinds, [cut.shape[1] - self.expanded], axis=1)
        found = {
            VECTORS: take(vectors.reshape(*cut.shape[:2], -1), rest),
            TOKENS: take(cut, chosen),
            EXPANDED: chosen,
            LENGTH: length,
        }
        return {name: leaf for name, leaf in found.items() if leaf.size}

    def pieces(self, x: Shaped[Array, "N L"]) -> Shaped[Array, "N S k"]:
        """Cut chunks into pieces; 0 where the last ones have fewer tokens."""
        room = (0, 0), (0, self.dials.vectors * self.span - x.shape[1])
        return jnp.pad(x, room).reshape(len(x), self.dials.vectors, self.span)

    def surprise(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Float[Array, "N S"]:
        """Return the mean nats of the tokens of each piece; -1 of a piece without tokens."""
        some = self.pieces(valid).any(axis=2)
        if not self.dials.by_nats:
            return jnp.where(some, 0.0, -1.0)
        states = self.backbone(self.embed_tokens(tokens, valid), valid=valid)
        nats, _ = self.head.token_losses(states[:, :-1], tokens[:, 1:])
        counted = valid.at[:, :1].set(False)
        nats = jnp.where(counted, jnp.pad(jax.lax.stop_gradient(nats), ((0, 0), (1, 0))), 0)
        nats, counted = (self.pieces(x).sum(axis=2) for x in (nats, counted))
        return jnp.where(some, nats / jnp.maximum(counted, 1), -1.0)

    def choose(self, score: Float[Array, "N S"]) -> Bool[Array, "N S"]:
        """Return which pieces are expanded: those of the highest scores."""
        rank = jnp.argsort(jnp.argsort(-score, axis=1, stable=True), axis=1)
        return rank < self.expanded

    def lay_out(self, leaves: Leaves) -> tuple[Float[Array, "N P D"], Bool[Array, "N P"]]:
        """Return vectors and expanded tokens in the order of the text, and which of them exist."""
        shape, width = leaves[VALID].shape, self.config.decoder.width
        nothing: Any = {
            VECTORS: jnp.zeros((*shape, 0, width), jnp.dtype(self.config.dtype)),
            TOKENS: jnp.zeros((*shape, 0, self.span), jnp.int32),
            EXPANDED: jnp.zeros((*shape, 0), jnp.int32),
        }
        state = nothing | dict(leaves)
        expanded = state[EXPANDED]
        is_expanded = (jnp.arange(self.dials.vectors) == expanded[..., None]).any(axis=-2)
        rest = jnp.argsort(is_expanded, axis=-1, stable=True)[..., : state[VECTORS].shape[2]]
        token_at = expanded[..., None] * self.span + jnp.arange(self.span)
        at = jnp.concatenate([rest * self.span, token_at.reshape(*shape, -1)], axis=-1)
        words = self.embed(state[TOKENS])
        words += self.token_position.astype(words.dtype)[
            jnp.minimum(token_at, self.config.chunk_length - 1)
        ]
        rows = jnp.concatenate(
            [self.projection(state[VECTORS]), words.reshape(*shape, -1, width)], axis=2
        )
        order = jnp.argsort(at, axis=-1)
        rows = jnp.take_along_axis(rows, order[..., None], axis=2)
        at = jnp.take_along_axis(at, order, axis=2)
        filled = (at < state[LENGTH][..., None]) & state[VALID][..., None]
        rows = jnp.where(filled[..., None], rows, 0)
        return rows.reshape(shape[0], -1, width), filled.reshape(shape[0], -1)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.read_rows(*self.lay_out(leaves), x, valid)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; ids and numbers of pieces have as few bits as can hold them."""
        pieces, expanded = self.dials.vectors, self.expanded
        of_chunk = {
            VECTORS: ((pieces - expanded) * self.config.decoder.width, number_bits(self.config)),
            TOKENS: (expanded * self.span, max(1, (self.vocab_size - 1).bit_length())),
            EXPANDED: (expanded, max(1, (pieces - 1).bit_length())),
            LENGTH: (1, self.config.chunk_length.bit_length()),
        }
        return {name: (chunks * count, bits) for name, (count, bits) in of_chunk.items() if count}


ADAPTER = peer(
    "refrag",
    Refrag,
    "A small encoder turns every few tokens into one input of the decoder; of the least likely ones"
    " the decoder reads the tokens.",
    published="REFRAG: Rethinking RAG based Decoding, arXiv 2509.01092",
    dials=Dials,
    tiny={"vectors": 2},
    unclaimed="speed and scores of Llama models on long contexts, and the learned policy",
)
