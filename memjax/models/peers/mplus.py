"""M+ (Wang et al. 2025, arXiv 2502.00592).

A pool as in MemoryLLM (memory_pool.py), and behind it a store of the rows that were dropped. A
layer has two maps, of stored rows to keys and of what enters the layer to a query, and the k' rows
with the highest scores are read before the pool, in order of age. A stored row lives for some
updates of the store, which do not count while no more than k' rows would be left.

As published the query is a mean over all inputs, so that later inputs choose what earlier ones
read. Here it is of the first input alone, which has read the pool. Copies that the first write made
are dropped for good, every write updates the store, and the store has room for m rows.

The selection has no gradient: `MPlus.selector_loss` trains its maps as in the paper, without its
penalty, and nothing here uses it. Trained on next tokens alone, the maps stay as they were drawn.

Not claimed: retention over more than 160,000 tokens of a model with 8B parameters.

Shapes: B sequence, N layer, n row of the pool, K row of a chunk, m row of the store, R = k' row
that is retrieved, P row of a map, L token, D width, E key width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import ConfigError
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.memory_pool import POOL, Dials, MemoryLLM, rows_at
from memjax.models.peers.peer import MASKED, Leaves

AGE = "age"
STORE, STORE_KEY, STORE_AGE, STORE_LIFE = "store", "store_key", "store_age", "store_life"


@dataclasses.dataclass(frozen=True)
class StoreDials(Dials):
    """Settings of a pool and a store behind it."""

    rows: int = 8
    """n: rows of every layer."""
    vectors: int = 2
    """K: rows that a chunk writes."""
    stored: int = 6
    """m: rows of every layer's store; the one that came first leaves for a new one."""
    retrieved: int = 4
    """k': stored rows that are read."""
    key_width: int = 32
    """E: numbers of a key."""
    life: int = 10
    """Updates of the store that a row lives for."""


class Selector(nn.Module):
    """Two layers from normalised states to keys or queries, for every layer of a stack."""

    layers: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N P D"]) -> Float[Array, "B N P E"]:
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        into = self.param("into", init, (self.layers, x.shape[-1], self.features))
        out = self.param("out", init, (self.layers, self.features, self.features))
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        h = nn.gelu(jnp.einsum("bnpd,ndh->bnph", x, into.astype(x.dtype)))
        return jnp.einsum("bnph,nhe->bnpe", h, out.astype(x.dtype))


class MPlus(MemoryLLM):
    """The state is a pool of rows for every layer, and a store of those that were dropped.

    Rows are numbered as they are written, with the same numbers in all layers: their age.
    """

    dials: StoreDials = StoreDials()

    def setup(self) -> None:
        super().setup()
        dials, layers = self.dials, self.config.decoder.layers
        ConfigError.require(
            0 < dials.retrieved <= dials.stored,
            f"dials.retrieved: {dials.retrieved}, expected at most dials.stored={dials.stored}",
        )
        self.asks = Selector(layers, dials.key_width)
        self.holds = Selector(layers, dials.key_width)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        leaves, dials = super().start(batch), self.dials
        _, layers, _, width = leaves[POOL].shape
        dtype, rows = leaves[POOL].dtype, (batch, layers, dials.stored)
        return {
            **leaves,
            AGE: jnp.full((batch, dials.rows), -1, jnp.int32),
            STORE: jnp.zeros((*rows, width), dtype),
            STORE_KEY: jnp.zeros((*rows, dials.key_width), dtype),
            STORE_AGE: jnp.full((batch, dials.stored), -1, jnp.int32),
            STORE_LIFE: jnp.zeros((batch, dials.stored), jnp.int8),
        }

    def replace(
        self, leaves: Leaves, new: Float[Array, "B N K D"], order: Int[Array, "B n"]
    ) -> Leaves:
        """See `MemoryLLM.replace`; dropped rows come into the store, unless they are copies."""
        vectors, age = self.dials.vectors, leaves[AGE]
        by_order = jnp.take_along_axis(age, order, axis=1)
        number = 1 + age[:, -1:] + jnp.arange(vectors)
        return {
            **super().replace(leaves, new, order),
            AGE: jnp.concatenate([by_order[:, vectors:], number], axis=1),
            **self.stored(leaves, rows_at(leaves[POOL], order[:, :vectors]), by_order[:, :vectors]),
        }

    def stored(
        self, leaves: Leaves, rows: Float[Array, "B N K D"], age: Int[Array, "B K"]
    ) -> Leaves:
        """Return a store to which rows come; an age of -1 is no row."""
        dials, life = self.dials, leaves[STORE_LIFE]
        staying = (leaves[STORE_AGE] >= 0) & (life > 1)
        remaining = staying.sum(axis=1) + (age >= 0).sum(axis=1)
        ticks = (remaining > dials.retrieved)[:, None]
        old_age = jnp.where(ticks & ~staying, -1, leaves[STORE_AGE])
        life = jnp.where(ticks, jnp.maximum(life - 1, 0), life)
        key = self.holds(jax.lax.stop_gradient(rows)).astype(rows.dtype)
        age = jnp.concatenate([old_age, age], axis=1)
        life = jnp.pad(life, ((0, 0), (0, rows.shape[2])), constant_values=dials.life)
        # Stable: rows stay in the order in which they came.
        last = jnp.argsort(age >= 0, axis=1)[:, -dials.stored :]
        store = jnp.concatenate([leaves[STORE], rows], axis=2)
        keys = jnp.concatenate([leaves[STORE_KEY], key], axis=2)
        return {
            STORE: rows_at(store, last),
            STORE_KEY: rows_at(keys, last),
            STORE_AGE: jnp.take_along_axis(age, last, axis=1),
            STORE_LIFE: jnp.take_along_axis(life, last, axis=1),
        }

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        pool, there = self.pool_rows(leaves)
        rows, found = self.retrieve(leaves, self.entering(leaves, x, valid))
        rows = jnp.concatenate([rows, pool], axis=2)
        return self.read_behind(rows, jnp.concatenate([found, there], axis=1), x, valid)[0]

    def entering(
        self, leaves: Leaves, x: Float[Array, "B L D"], valid: Bool[Array, "B L"]
    ) -> Float[Array, "B N 1 D"]:
        """Return what enters each layer at the first input, behind the pool."""
        at = jnp.argmax(valid, axis=1)[:, None, None]
        first = jnp.take_along_axis(x, at, axis=1)
        _, left = self.read_behind(*self.pool_rows(leaves), first, jnp.ones((len(x), 1), bool))
        entering = jnp.concatenate([first[None].astype(left.dtype), left[:-1]])
        return jax.lax.stop_gradient(jnp.swapaxes(entering, 0, 1))

    def retrieve(
        self, leaves: Leaves, entering: Float[Array, "B N 1 D"]
    ) -> tuple[Float[Array, "B N R D"], Bool[Array, "B R"]]:
        """Return stored rows for every layer by their age, and where there are some."""
        age, most = leaves[STORE_AGE], self.dials.retrieved
        there, key = (age >= 0)[:, None], leaves[STORE_KEY].astype(jnp.float32)
        score = jnp.where(there, scores(self.asks(entering), key), MASKED)
        _, chosen = jax.lax.top_k(score, most)
        ages = jnp.take_along_axis(jnp.broadcast_to(age[:, None], score.shape), chosen, axis=2)
        by_age = jnp.argsort(ages, axis=2)
        chosen = jnp.take_along_axis(chosen, by_age, axis=2)
        # All layers store equally many rows, and those that are none have the lowest age.
        found = jnp.arange(most) >= most - there[:, 0].sum(axis=1, keepdims=True)
        return jnp.take_along_axis(leaves[STORE], chosen[..., None], axis=2), found

    def selector_loss(
        self,
        leaves: Leaves,
        x: Float[Array, "B L D"],
        valid: Bool[Array, "B L"],
        relevant: Bool[Array, "B m"],
    ) -> Float[Array, ""]:
        """Return the mean binary cross-entropy of scores, in nats; only the maps have gradients.

        Args:
          leaves: the state, with stored rows of a text that the inputs belong to, and others.
          x: the inputs, embedded.
          valid: False at padding.
          relevant: which stored rows are of that text.
        """
        query = self.asks(self.entering(leaves, x, valid))
        score = scores(query, self.holds(jax.lax.stop_gradient(leaves[STORE])))
        nats = nn.softplus(jnp.where(relevant[:, None], -score, score))
        there = jnp.broadcast_to((leaves[STORE_AGE] >= 0)[:, None], nats.shape)
        return jnp.where(there, nats, 0).sum() / jnp.maximum(there.sum(), 1)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        dials, stack = self.dials, self.config.decoder
        rows, bits = stack.layers * dials.stored, number_bits(self.config)
        return {
            **super().ledger(chunks),
            AGE: (dials.rows, 32),
            STORE: (rows * stack.width, bits),
            STORE_KEY: (rows * dials.key_width, bits),
            STORE_AGE: (dials.stored, 32),
            STORE_LIFE: (dials.stored, 8),
        }


def scores(query: Float[Array, "B N 1 E"], key: Float[Array, "B N m E"]) -> jax.Array:
    """Return the scores of rows, [B, N, m]; a sigmoid of them is a probability."""
    return jnp.einsum("bnpe,bnme->bnm", query, key)


ADAPTER = peer(
    "mplus",
    MPlus,
    "Every layer has a pool of rows, and reads those of a store of dropped ones that score best.",
    published="M+: Extending MemoryLLM with Scalable Long-Term Memory, arXiv 2502.00592",
    dials=StoreDials,
    sized="stored",
    tiny={"rows": 2, "vectors": 1, "stored": 3, "retrieved": 2, "key_width": 4},
    unclaimed="retention over more than 160,000 tokens of a model with 8B parameters",
)
