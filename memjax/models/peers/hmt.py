"""Hierarchical memory transformer (HMT; He et al. 2024, arXiv 2405.06067).

The last R chunks are remembered by K vectors each, as they leave the stack. A probe, a pass over
`[K learned vectors; tokens; the same vectors]`, gives K queries. Each of them recalls the mean of
all remembered vectors, weighted by a softmax of scaled products of a query map and a key map; there
is no value map. With nothing to recall the learned vectors stand in place of what is recalled. A
chunk is then written as in RMT, by a pass over `[recalled; the last u tokens before it; L tokens;
recalled]`, and decoded behind the recalled vectors and the same u tokens.

The published probe reads the first half of the chunk that is scored, so that its later tokens reach
the scores of earlier ones. Here it reads the last tokens of the chunk before, whose ids are part of
the state. Further faults that are not reproduced: scores whose scale differs between training and
generation, a truncation without effect, and a generation that reads another chunk than was written.

`recall_loss` is the paper's loss for texts in which the chunk to recall is given; no objective
here uses it. Not claimed: perplexities of pretrained models to which the paper adds a memory.

Shapes: N chunk, B sequence, L token, R remembered chunk, K vector, S = R * K, D width, U token
before a chunk.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import MASKED, ChainPeer, Leaves, flat_rows
from memjax.models.peers.rmt import block_mask
from memjax.models.request import EMPTY

CACHE, FILLED, TAIL = "cache", "filled", "tail"
"""Leaves of a state: remembered vectors, newest last; how many chunks they are of; last tokens."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a hierarchical memory transformer."""

    vectors: int = 4
    """K: vectors of a chunk; 1 as published."""
    kept: int = 100
    """R: remembered chunks at most, and never more than stand before a row's last chunk."""
    prepended: int = 4
    """U: tokens before a chunk that are read with it."""
    share: float = 0.5
    """Share of a chunk that the probe reads."""


class HierarchicalMemoryTransformer(ChainPeer):
    """The state is vectors of the last R chunks, and ids of the last tokens."""

    KIND = "fused"

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        width, dtype = self.config.decoder.width, jnp.dtype(self.config.dtype)
        self.first = self.param("first", EMBEDDING_INIT, (self.dials.vectors, width))
        self.recall_query, self.recall_key = Linear(width, dtype=dtype), Linear(width, dtype=dtype)

    @property
    def room(self) -> int:
        """R."""
        return max(1, min(self.dials.kept, self.chunks - 1))

    @property
    def probe_length(self) -> int:
        """Tokens that the probe reads."""
        return max(1, math.ceil(self.dials.share * self.config.chunk_length))

    @property
    def tail_length(self) -> int:
        """Tokens that a state holds."""
        return max(self.dials.prepended, self.probe_length)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        shape = batch, self.room, self.dials.vectors, self.config.decoder.width
        return {
            CACHE: jnp.zeros(shape, jnp.dtype(self.config.dtype)),
            FILLED: jnp.zeros(batch, jnp.int32),
            TAIL: jnp.full((batch, self.tail_length), EMPTY, jnp.int32),
        }

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        cache = leaves[CACHE]
        x = self.embed_tokens(tokens, valid)
        h = self._run(*self._behind(leaves, x, tokens, valid), True)
        new = h[:, None, -self.dials.vectors :].astype(cache.dtype)
        return {
            CACHE: jnp.concatenate([cache[:, 1:], new], axis=1),
            FILLED: jnp.minimum(leaves[FILLED] + 1, self.room),
            TAIL: last_tokens(tokens, valid, self.tail_length),
        }

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        h = self._run(*self._behind(leaves, x, tokens, valid), False)
        return h[:, h.shape[1] - x.shape[1] :]

    def probed(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> tuple[Int[Array, "N U"], Bool[Array, "N U"]]:
        """Return the tokens that the probe reads, and which of them are there.

        Those of the chunk are given, and not used: they are what is to be scored.
        """
        ids = leaves[TAIL][:, -self.probe_length :]
        return ids, ids != EMPTY

    def recall(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> tuple[Float[Array, "N K D"], Float[Array, "N K S"]]:
        """Return the recalled vectors, and how much each remembered one counts.

        The weights of a state that remembers nothing are 0.
        """
        ids, there = self.probed(leaves, tokens, valid)
        x = self.embed(jnp.maximum(ids, 0))
        first = self.first.astype(x.dtype)
        first = jnp.broadcast_to(first, (len(x), *first.shape))
        asked = self._run(first, x, there, True)[:, -self.dials.vectors :]
        filled = jnp.arange(self.room) >= self.room - leaves[FILLED][:, None]
        rows, filled = flat_rows(leaves[CACHE].astype(x.dtype), filled)
        scores = jnp.einsum("nkd,nsd->nks", self.recall_query(asked), self.recall_key(rows))
        scores = scores.astype(jnp.float32) / math.sqrt(rows.shape[-1])
        weights = jax.nn.softmax(jnp.where(filled[:, None], scores, MASKED), axis=-1)
        some = filled.any(axis=1)[:, None, None]
        weights = jnp.where(some, weights, 0)
        recalled = jnp.einsum("nks,nsd->nkd", weights.astype(x.dtype), rows)
        return jnp.where(some, recalled, first), weights

    def _behind(
        self, leaves: Leaves, x: jax.Array, tokens: jax.Array, valid: jax.Array
    ) -> tuple[Float[Array, "N K D"], Float[Array, "N T D"], Bool[Array, "N T"]]:
        """Return recalled vectors, and the chunk behind the tokens before it."""
        recalled, _ = self.recall(leaves, tokens, valid)
        if not self.dials.prepended:
            return recalled, x, valid
        ids = leaves[TAIL][:, self.tail_length - self.dials.prepended :]
        x = jnp.concatenate([self.embed(jnp.maximum(ids, 0)), x], axis=1)
        return recalled, x, jnp.concatenate([ids != EMPTY, valid], axis=1)

    def _run(self, rows: jax.Array, x: jax.Array, valid: jax.Array, again: bool) -> jax.Array:
        """Run the stack over rows and inputs, and with `again` the rows once more."""
        vectors = rows.shape[1]
        last = vectors if again else 0
        seen = jnp.pad(valid, ((0, 0), (vectors, last)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
        x = jnp.concatenate([rows.astype(x.dtype), x, *[rows.astype(x.dtype)] * again], axis=1)
        return self.backbone(x, positions, block_mask(seen, vectors, last))

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; an id is one of the vocabulary, or none."""
        numbers = min(chunks, self.room) * self.dials.vectors * self.config.decoder.width
        return {
            CACHE: (numbers, number_bits(self.config)),
            FILLED: (1, self.room.bit_length()),
            TAIL: (self.tail_length, self.vocab_size.bit_length()),
        }


def last_tokens(
    tokens: Int[Array, "B L"], valid: Bool[Array, "B L"], count: int
) -> Int[Array, "B U"]:
    """Return the ids of the last real tokens, the last one last, and EMPTY before them."""
    pad = (0, 0), (count, 0)
    ids = jnp.pad(jnp.where(valid, tokens, EMPTY), pad, constant_values=EMPTY)
    order = jnp.argsort(ids != EMPTY, axis=1, stable=True)
    return jnp.take_along_axis(ids, order, axis=1)[:, tokens.shape[1] :]


def recall_loss(weights: Float[Array, "N K S"], target: Int[Array, " N"]) -> Float[Array, " N"]:
    """Return nats of the chunk that is to be recalled, `target` of the R remembered ones.

    A chunk counts as much as its K vectors together, as the mean over the K queries; the paper adds
    a twentieth of it to the loss.
    """
    chunks = weights.reshape(*weights.shape[:2], -1, weights.shape[1]).sum(-1).mean(1)
    found = jnp.take_along_axis(chunks, target[:, None], axis=1)[:, 0]
    return -jnp.log(jnp.maximum(found, 1e-30))


ADAPTER = peer(
    "hmt",
    HierarchicalMemoryTransformer,
    "A transformer that remembers a few vectors of each of the last chunks, and recalls a weighted"
    " mean of them before every chunk.",
    published="HMT: Hierarchical Memory Transformer, arXiv 2405.06067",
    dials=Dials,
    tiny={"vectors": 2, "kept": 2, "prepended": 1},
    unclaimed="perplexities of pretrained models",
)
