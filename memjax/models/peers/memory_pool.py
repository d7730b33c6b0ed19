"""MemoryLLM (Wang et al. 2024, arXiv 2402.04624).

Every layer has a pool of n rows. A chunk is written by one pass in which each layer reads the
newest K rows of its pool and the tokens before; rows are keys and values, and nothing is computed
of them. What leaves a layer at the last K tokens is appended to its pool, and as many rows are
dropped: where randomness is given they are drawn, so that a row survives t writes with probability
(1 - K / n)^t, and otherwise the oldest are. The first write fills the pool with its rows over and
over. A chunk with fewer than K tokens fills up with the newest rows before it. A read is a pass
whose layers read their whole pool. A learned mark stands on the last K tokens of a write.

Training of low-rank adapters in stages, and writes that make the pool longer for a while, are left
out: everything is trained from scratch. Rows stand at positions before the tokens, so that a token
does not move with the size of the pool, as it does in the published code.

Not claimed: question answering and retention of models with 7B and 8B parameters.

Shapes: B sequence, N layer, n row of the pool, K row of a chunk, P row that is read, R row that is
taken, L token, D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import ConfigError
from memjax.models.memory import number_bits
from memjax.models.memory_model import UNIT_INIT
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import GENERATOR, ChainPeer, Leaves

POOL, WRITTEN = "pool", "written"


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a pool."""

    rows: int = 16
    """n: rows of every layer."""
    vectors: int = 4
    """K: rows that a chunk writes."""
    sink: bool = True
    """Begin every layer's rows with a learned one, which stays."""


class MemoryLLM(ChainPeer):
    """The state is a pool of rows for every layer."""

    KIND = "chain"

    dials: Any = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        dials, stack = self.dials, self.config.decoder
        ConfigError.require(
            0 < dials.vectors <= dials.rows,
            f"dials.vectors: {dials.vectors}, expected at most dials.rows={dials.rows}",
        )
        self.new_mark = self.param("new_mark", nn.initializers.zeros, (stack.width,))
        if dials.sink:
            self.sink = self.param("sink", UNIT_INIT, (stack.layers, 1, stack.width))

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; no row is there."""
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        pool = jnp.zeros((batch, stack.layers, self.dials.rows, stack.width), dtype)
        return {POOL: pool, WRITTEN: jnp.zeros(batch, bool)}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        new = self.new_rows(leaves, tokens, valid)
        return self.replace(leaves, new, self.dropped_first(len(tokens)))

    def new_rows(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Float[Array, "B N K D"]:
        """Return what a chunk writes."""
        vectors, pool = self.dials.vectors, leaves[POOL]
        old = pool[:, :, -vectors:]
        last = jnp.cumsum(valid[:, ::-1], axis=1)[:, ::-1] <= vectors
        x = self.embed_tokens(tokens, valid)
        x += jnp.where(last[..., None], self.new_mark.astype(x.dtype), 0)
        there = jnp.broadcast_to(leaves[WRITTEN][:, None], (len(x), vectors))
        _, layers = self.read_behind(old, there, x, valid)
        rows = jnp.concatenate([old, jnp.swapaxes(layers, 0, 1).astype(old.dtype)], axis=2)
        there = jnp.concatenate([there, valid], axis=1)
        # The last K that are there; over and over, where the first chunk has fewer tokens.
        kept = jnp.maximum(jnp.minimum(there.sum(axis=1), vectors), 1)
        back = jnp.arange(vectors)[::-1] % kept[:, None]
        at = jnp.take_along_axis(jnp.argsort(there, axis=1), there.shape[1] - 1 - back, axis=1)
        return rows_at(rows, at)

    def dropped_first(self, batch: int) -> Int[Array, "B n"]:
        """Return the order of pools' rows in which the next K to be dropped are first."""
        shape, vectors = (batch, self.dials.rows), self.dials.vectors
        if not self.has_rng(GENERATOR):
            return jnp.broadcast_to(jnp.arange(shape[1]), shape)
        order = jnp.argsort(jax.random.uniform(self.make_rng(GENERATOR), shape), axis=1)
        parts = order[:, :vectors], order[:, vectors:]
        return jnp.concatenate([jnp.sort(part, axis=1) for part in parts], axis=1)

    def replace(
        self, leaves: Leaves, new: Float[Array, "B N K D"], order: Int[Array, "B n"]
    ) -> Leaves:
        """Return a pool in which new rows stand for the first K of an order."""
        pool, rows, vectors = leaves[POOL], self.dials.rows, self.dials.vectors
        kept = rows_at(pool, order[:, vectors:])
        first = jnp.tile(new, (1, 1, -(-rows // vectors), 1))[:, :, -rows:]
        written = leaves[WRITTEN]
        pool = jnp.where(written[:, None, None, None], jnp.concatenate([kept, new], axis=2), first)
        return {POOL: pool, WRITTEN: jnp.ones_like(written)}

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.read_behind(*self.pool_rows(leaves), x, valid)[0]

    def pool_rows(self, leaves: Leaves) -> tuple[Float[Array, "B N n D"], Bool[Array, "B n"]]:
        """Return the rows of a pool, and where they are there."""
        pool = leaves[POOL]
        there = jnp.broadcast_to(leaves[WRITTEN][:, None], (len(pool), pool.shape[2]))
        return pool, there

    def read_behind(
        self,
        rows: Float[Array, "B N P D"],
        there: Bool[Array, "B P"],
        x: Float[Array, "B L D"],
        valid: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "N B L D"]]:
        """Run the backbone over inputs that read rows of every layer, and return all states.

        Those that are there stand at positions up to -1: the newest is always as near, and a place
        without a row moves none, not the sink either.
        """
        rows = jnp.swapaxes(rows, 0, 1)
        if self.dials.sink:
            sink = self.sink[:, None].astype(rows.dtype)
            sink = jnp.broadcast_to(sink, (*rows.shape[:2], 1, rows.shape[3]))
            rows = jnp.concatenate([sink, rows], axis=2)
            there = jnp.pad(there, ((0, 0), (1, 0)), constant_values=True)
        before = -jnp.cumsum(there[:, ::-1], axis=1)[:, ::-1]
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        length = valid.shape[1]
        own = jnp.tri(length, dtype=bool) & valid[:, None]
        rest = jnp.broadcast_to(there[:, None], (len(x), length, there.shape[1]))
        readable = jnp.concatenate([rest, own], axis=2)
        positions = jnp.concatenate([before, positions], axis=1)
        return self.backbone.read_layers(x, positions, readable, rows)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        stack = self.config.decoder
        numbers = stack.layers * self.dials.rows * stack.width
        return {POOL: (numbers, number_bits(self.config)), WRITTEN: (1, 1)}


def rows_at(rows: Float[Array, "B N P D"], at: Int[Array, "B R"]) -> Float[Array, "B N R D"]:
    """Take the same rows of all layers."""
    return jnp.take_along_axis(rows, at[:, None, :, None], axis=2)


ADAPTER = peer(
    "memoryllm",
    MemoryLLM,
    "Every layer has a pool of rows; a chunk replaces a few of them and all are read.",
    published="MemoryLLM: Towards Self-Updatable Large Language Models, arXiv 2402.04624",
    dials=Dials,
    sized="rows",
    tiny={"rows": 4, "vectors": 2},
    unclaimed="question answering and retention of models with 7B and 8B parameters",
)
