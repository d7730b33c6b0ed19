"""Memoria (Park and Bak 2023, arXiv 2310.03052).

Memory is rows of three kinds, which are read by every layer and live as long as they are of use.

Working memory is made of the states X of the chunk before, which carry no gradient: W = F(softmax(Q
(X A)^T) X B), with learned queries Q and two linear maps F. The short-term rows b with the largest
sum of exp(-|a - b|^2) over working rows a are recalled. From each of them a search begins at the
long-term row with which it fired most often, and each next step finds the row, not yet found, with
which the last one fired most often. Of all rows found, those with the largest sum are recalled. In
every layer positions attend to one another, then to working rows, then to recalled rows. Pairs of
rows that fire together, working and recalled ones, are counted. After a chunk each recalled row
gains alpha r w steps of life, for r recalled rows and its mean weight w in the attention. Every row
has then lived one step, and a row without life is dropped. Working rows become short-term, and
short-term rows above their number, the oldest first, become long-term. No stored row carries a
gradient.

The store is arrays of fixed size. Of long-term rows above their number those with the least life
left are dropped; the published store has no bound. Published faults that are not reproduced: a
state of the module instead of a sequence, a search that takes the last row where it found none, and
ties that are broken at random. Logarithms of sums are compared, since a sum may vanish.

Not claimed: perplexities on WikiText-103, enwik8 and PG-19, and the sorting of long sequences.

Shapes: N sequence, L token, W working, S short-term and G long-term row, M = G + S, P = M + W, R
recalled short-term row, D width, H head, E head width.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers import Block, Linear
from memjax.layers.linear import last_init
from memjax.layers.norm import make_norm
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import MASKED, ChainPeer, Leaves, take

WORKING, ROWS, LIFE, COUNTS = "working", "rows", "life", "counts"
"""Leaves: working rows; long-term and then short-term rows, the newest last; steps that each row,
the working ones last, has to live, 0 where there is none; how often pairs fired together."""
MOST = 2**15 - 1
"""The largest count."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of Memoria."""

    vectors: int = 28
    """P: rows; a seventh of them is working memory, and two sevenths are short-term."""
    recalled: int = 4
    """Short-term rows that are recalled at most, and long-term rows; 0 reads working rows alone."""
    depth: int = 10
    """Steps of a search."""
    lifespan: int = 9
    """Steps that a row lives that is never recalled."""
    alpha: float = 8.0
    """Steps that a recalled row gains on average."""


class Recalled(NamedTuple):
    """The rows that are read."""

    working: Bool[Array, "N W"]
    """Working rows that are there."""
    rows: Bool[Array, "N M"]
    """Stored rows that are recalled."""


class RowReader(nn.Module):
    """Attention of positions to rows."""

    config: Backbone
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "N L D"], rows: Float[Array, "N M D"], seen: Bool[Array, "N M"]
    ) -> tuple[Float[Array, "N L D"], Float[Array, "N L M"]]:
        """Return what positions take in, 0 where no row is seen, and their mean weights."""
        linear = functools.partial(Linear, self.config.attention_dim, dtype=self.dtype)
        query, key, value = (
            linear(name=name)(y).reshape(*y.shape[:2], self.config.heads, -1)
            for name, y in (("query", x), ("key", rows), ("value", rows))
        )
        scores = jnp.einsum("nlhe,nmhe->nlhm", query, key).astype(jnp.float32)
        seen = seen[:, None, None]
        scores = jnp.where(seen, scores / math.sqrt(query.shape[-1]), MASKED)
        weights = jnp.where(seen, nn.softmax(scores, axis=-1), 0)
        mixed = jnp.einsum("nlhm,nmhe->nlhe", weights.astype(value.dtype), value)
        out = Linear(x.shape[-1], dtype=self.dtype, kernel_init=last_init(self.config), name="out")
        return out(mixed.reshape(*x.shape[:2], -1)), weights.mean(axis=2)


class MemoriaBlock(Block):
    """A layer that reads rows between tokens and channels."""

    def setup(self) -> None:
        super().setup()
        self.working_norm = make_norm(self.config, self.dtype, "working_norm")
        self.recalled_norm = make_norm(self.config, self.dtype, "recalled_norm")
        self.reader = RowReader(self.config, self.dtype)

    def with_rows(
        self,
        x: Float[Array, "N L D"],
        valid: Bool[Array, "N L"],
        leaves: Leaves,
        recalled: Recalled,
    ) -> tuple[Float[Array, "N L D"], Float[Array, "N L M"]]:
        """Return the output, and the weights of stored rows."""
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        x = x + self.mix(self.mix_norm(x), positions=positions, valid=valid)
        x = x + self.reader(self.working_norm(x), leaves[WORKING], recalled.working)[0]
        taken, weights = self.reader(self.recalled_norm(x), leaves[ROWS], recalled.rows)
        x = x + taken
        return x + self.mlp(self.mlp_norm(x)), weights


class Memoria(ChainPeer):
    """The state is rows, what each has to live, and how often pairs fired together."""

    KIND = "fused"

    dials: Any = Dials()

    def setup(self) -> None:
        self.setup_decoder(stack=False)
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        length = self.config.chunk_length
        self.blocks = [MemoriaBlock(stack, length, dtype) for _ in range(stack.layers)]
        self.norm = make_norm(stack, dtype, "norm")
        self.queries = self.param("queries", EMBEDDING_INIT, (self.working, stack.width))
        linear = functools.partial(Linear, stack.width, True, dtype)
        self.abstract_key, self.abstract_value = linear(), linear()
        self.abstract_in, self.abstract_out = linear(), linear()

    @property
    def working(self) -> int:
        """W."""
        return max(1, self.dials.vectors // 7)

    @property
    def short(self) -> int:
        """S."""
        return max(1, 2 * self.dials.vectors // 7)

    @property
    def long(self) -> int:
        """G."""
        return max(1, self.dials.vectors - self.working - self.short)

    @property
    def stored(self) -> int:
        """M."""
        return self.long + self.short

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; no row has a life."""
        width, dtype = self.config.decoder.width, jnp.dtype(self.config.dtype)
        rows = self.stored + self.working
        return {
            WORKING: jnp.zeros((batch, self.working, width), dtype),
            ROWS: jnp.zeros((batch, self.stored, width), dtype),
            LIFE: jnp.zeros((batch, rows), jnp.float32),
            COUNTS: jnp.zeros((batch, rows, rows), jnp.int16),
        }

    def update(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Leaves:
        """See `Peer.update`."""
        recalled = self.recall(leaves)
        states, weights = self.run(leaves, recalled, self.embed_tokens(tokens, valid), valid)
        gained = self.gains(recalled, weights, valid)
        return self.after(leaves, recalled, gained, self.abstract(states, valid))

    def gains(
        self, recalled: Recalled, weights: Float[Array, "N L M"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N M"]:
        """Return the steps that stored rows gain, from their weights in the attention."""
        share = jnp.where(valid[..., None], weights, 0).sum(axis=1)
        share /= jnp.maximum(valid.sum(axis=1), 1)[:, None]
        return self.dials.alpha * recalled.rows.sum(axis=1, keepdims=True) * share

    def abstract(
        self, states: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N W D"]:
        """Return the working memory that a chunk leaves; no gradient reaches its states."""
        states = self.store(states)
        scores = jnp.einsum("wd,nld->nwl", self.queries, self.abstract_key(states))
        scores = jnp.where(valid[:, None], scores.astype(jnp.float32), MASKED)
        weights = nn.softmax(scores, axis=-1).astype(states.dtype)
        mixed = jnp.einsum("nwl,nld->nwd", weights, self.abstract_value(states))
        return self.abstract_out(self.abstract_in(mixed))

    def store(self, x: Float[Array, "N *any"]) -> Float[Array, "N *any"]:
        """Return what stands outside of training: it has no gradient."""
        return jax.lax.stop_gradient(x)

    def recall(self, leaves: Leaves) -> Recalled:
        """Return which rows are read, which depends on the state alone."""
        leaves, long, stored = jax.lax.stop_gradient(dict(leaves)), self.long, self.stored
        alive, counts, most = leaves[LIFE] > 0, leaves[COUNTS], self.dials.recalled
        near = nearness(leaves[WORKING], alive[:, stored:], leaves[ROWS])
        short, which = best(near[:, long:], alive[:, long:stored], most)
        first = jnp.take_along_axis(counts[:, long:stored, :long], which[..., None], axis=1)
        begins = jnp.take_along_axis(short, which, axis=1)
        found = search(first, begins, counts[:, :long, :long], alive[:, :long], self.dials.depth)
        found, _ = best(near[:, :long], found, most)
        return Recalled(alive[:, stored:], jnp.concatenate([found, short], axis=1))

    def run(
        self,
        leaves: Leaves,
        recalled: Recalled,
        x: Float[Array, "N L D"],
        valid: Bool[Array, "N L"],
    ) -> tuple[Float[Array, "N L D"], Float[Array, "N L M"]]:
        """Return the states at inputs, and the mean weights of stored rows."""
        x, weights = x.astype(jnp.float32), []
        for block in self.blocks:
            x, found = block.with_rows(x, valid, leaves, recalled)
            weights.append(found)
        return self.norm(x), sum(weights[1:], start=weights[0]) / len(weights)

    def after(
        self,
        leaves: Leaves,
        recalled: Recalled,
        gained: Float[Array, "N M"],
        working: Float[Array, "N W D"],
    ) -> dict[str, jax.Array]:
        """Return the leaves one step later.

        Args:
          leaves: the state of which rows were read.
          recalled: which rows fired.
          gained: steps that stored rows gain.
          working: the next working memory.
        """
        long, short = self.long, self.short
        fired = jnp.concatenate([recalled.rows, recalled.working], axis=1)
        counts = leaves[COUNTS].astype(jnp.int32) + (fired[:, None] & fired[..., None])
        life = leaves[LIFE] + jnp.pad(gained, ((0, 0), (0, self.working))) - 1
        life = jnp.where(leaves[LIFE] > 0, jnp.maximum(life, 0), 0)
        # Rows stand in the order of their age: of short-term and working rows the last are kept.
        newest = long + jnp.argsort(life[:, long:] > 0, axis=1, stable=True)
        older = jnp.broadcast_to(jnp.arange(long), (len(life), long))
        older = jnp.concatenate([older, newest[:, :-short]], axis=1)
        by_life = jnp.argsort(jnp.take_along_axis(life, older, axis=1), axis=1, stable=True)
        kept = jnp.take_along_axis(older, by_life, axis=1)[:, -long:]
        kept = jnp.concatenate([kept, newest[:, -short:]], axis=1)
        life = jnp.take_along_axis(life, kept, axis=1)
        alive = life > 0
        rows = take(jnp.concatenate([leaves[ROWS], leaves[WORKING]], axis=1), kept)
        counts = jax.vmap(lambda table, at: table[at][:, at])(counts, kept)
        counts = jnp.where(alive[:, None] & alive[..., None], jnp.minimum(counts, MOST), 0)
        pad = (0, self.working)
        return {
            WORKING: working.astype(leaves[WORKING].dtype),
            ROWS: self.store(jnp.where(alive[..., None], rows, 0)),
            LIFE: jax.lax.stop_gradient(
                jnp.pad(life, ((0, 0), pad), constant_values=float(self.dials.lifespan))
            ),
            COUNTS: jnp.pad(counts, ((0, 0), pad, pad)).astype(jnp.int16),
        }

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.run(leaves, self.recall(leaves), x, valid)[0]

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        width, bits = self.config.decoder.width, number_bits(self.config)
        rows = self.stored + self.working
        return {
            WORKING: (self.working * width, bits),
            ROWS: (self.stored * width, bits),
            LIFE: (rows, 32),
            COUNTS: (rows * rows, 16),
        }


def nearness(
    working: Float[Array, "N W D"], there: Bool[Array, "N W"], rows: Float[Array, "N M D"]
) -> Float[Array, "N M"]:
    """Return the logarithms of sums of exp(-|a - b|^2) over the working rows that are there."""
    apart = (working[:, :, None] - rows[:, None]).astype(jnp.float32)
    return nn.logsumexp(jnp.where(there[..., None], -jnp.square(apart).sum(axis=-1), MASKED), 1)


def best(
    scores: Float[Array, "N M"], allowed: Bool[Array, "N M"], count: int
) -> tuple[Bool[Array, "N M"], Int[Array, "N R"]]:
    """Return which of the allowed rows have the highest scores, and the places of R rows.

    With fewer allowed rows than R some places are of others.
    """
    rows = scores.shape[1]
    _, which = jax.lax.top_k(jnp.where(allowed, scores, -jnp.inf), min(count, rows))
    return (which[..., None] == jnp.arange(rows)).any(axis=1) & allowed, which


def search(
    first: Int[Array, "N R G"],
    begins: Bool[Array, "N R"],
    counts: Int[Array, "N G G"],
    alive: Bool[Array, "N G"],
    depth: int,
) -> Bool[Array, "N G"]:
    """Return the long-term rows that searches find.

    Args:
      first: how often each long-term row fired with the short-term row where a search begins.
      begins: False where there is no search.
      counts: how often long-term rows fired together.
      alive: long-term rows that are there.
      depth: steps of a search after the first one.
    """

    def step(
        _: int, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        found, here, fired = carry
        # A search ends where no row is left to find.
        left = (alive & ~found)[:, None]
        here = here & left.any(axis=-1)
        at = jnp.argmax(jnp.where(left, fired, -1), axis=-1)
        new = (at[..., None] == jnp.arange(alive.shape[1])) & here[..., None]
        return found | new.any(axis=1), here, jnp.take_along_axis(counts, at[..., None], axis=1)

    begin = jnp.zeros(alive.shape, bool), begins, first
    return jax.lax.fori_loop(0, 1 + depth, step, begin)[0]


ADAPTER = peer(
    "memoria",
    Memoria,
    "Working, short-term and long-term rows; what is recalled and attended to lives longer.",
    published="Memoria, arXiv 2310.03052",
    dials=Dials,
    tiny={"vectors": 7, "recalled": 2, "depth": 1},
    unclaimed="perplexities on WikiText-103, enwik8 and PG-19, and the sorting of long sequences",
)
