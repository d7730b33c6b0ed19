"""Recurrent memory transformer (RMT; Bulatov et al. 2022, arXiv 2207.06881).

K vectors go from chunk to chunk. A chunk is written by one pass over `[K state; L tokens; K
state]`, and what leaves at the last K positions is the next state. The state before any text is
learned. A chunk is decoded behind its state.

The mask is the paper's: a vector sees all vectors of its own block, and the second block sees
everything before. The published code is plainly causal, scores the first token of a chunk without
the memory that was just written, and has a truncation without effect; none of it is reproduced.

Not claimed: perplexities of pretrained models to which the paper adds a memory.

Shapes: B sequence, L token, K vector, D width, T = K + L + K positions.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import ChainPeer, Leaves

STATE = "state"
"""The one leaf of a state."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a recurrent memory transformer."""

    vectors: int = 4
    """K."""


class RecurrentMemoryTransformer(ChainPeer):
    """The state is K vectors of the decoder's width."""

    KIND = "fused"

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        shape = self.dials.vectors, self.config.decoder.width
        self.first = self.param("first", EMBEDDING_INIT, shape)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        first = self.first.astype(jnp.dtype(self.config.dtype))
        return {STATE: jnp.broadcast_to(first, (batch, *first.shape))}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        state, vectors = leaves[STATE], self.dials.vectors
        x = self.embed_tokens(tokens, valid)
        x = jnp.concatenate([state, x, state], axis=1)
        seen = jnp.pad(valid, ((0, 0), (vectors, vectors)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
        h = self.backbone(x, positions, block_mask(seen, vectors, vectors))
        return {STATE: h[:, -vectors:].astype(state.dtype)}

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        state = leaves[STATE]
        vectors = state.shape[1]
        seen = jnp.pad(valid, ((0, 0), (vectors, 0)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
        x = jnp.concatenate([state.astype(x.dtype), x], axis=1)
        return self.backbone(x, positions, block_mask(seen, vectors, 0))[:, vectors:]

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        return {STATE: (self.dials.vectors * self.config.decoder.width, number_bits(self.config))}


def block_mask(seen: Bool[Array, "B T"], first: int, last: int) -> Bool[Array, "B T T"]:
    """Return a causal mask in which the first and the last positions see their own block."""
    at = jnp.arange(seen.shape[1])
    block = jnp.where(at < first, 1, jnp.where(at >= seen.shape[1] - last, 2, 0))
    own = (block[:, None] == block) & (block > 0)
    return ((at <= at[:, None]) | own) & seen[:, None]


ADAPTER = peer(
    "rmt",
    RecurrentMemoryTransformer,
    "A transformer that carries a few vectors from chunk to chunk; a chunk is read behind them.",
    published="Recurrent Memory Transformer, arXiv 2207.06881",
    dials=Dials,
    tiny={"vectors": 2},
    unclaimed="perplexities of pretrained models",
)
