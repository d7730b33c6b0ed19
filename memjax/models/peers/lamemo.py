"""Memories of the last tokens: Transformer-XL and LaMemo.

Transformer-XL (Dai et al. 2019, arXiv 1901.02860). What entered each layer at the last m tokens is
kept without gradient, and the layer reads it as further keys and values. A score depends on the
distance d of a query q to a key k alone: (q + u) k + (q + v) (W r_d), with learned vectors u and v
and sinusoids r.

LaMemo (Ji et al. 2022, arXiv 2204.07341). Kept are the embeddings of the last m tokens, and of
each layer what the token took in, o, and the logarithm s of the sum of its weights. A pass runs the
kept rows through the stack again. A row of a layer then attends to the right and takes in n, with a
sum s'. With a = exp(s) / (exp(s) + exp(s')) its o becomes a o + (1 - a) n, and its s becomes
log(exp(s) + exp(s')). Scores to the right have a vector v of their own. A row attends to the rows
of the last chunk alone: it attended to those before it in passes before, so that nothing counts
twice.

A published row also attends to the first input of a segment, the token behind the last row. Here
an input begins with a mark, and that token is the last row; no score reaches a token that is not
yet decoded. Layers normalise their inputs, where the published ones normalise outputs. The learned
places of tokens in their chunk, and the marks, are those of all peers.

Not claimed: perplexities on WikiText-103, enwik8 and text8.

Shapes: N sequence, L token, M kept row, T query, S key, H head, E head width, D width, K layer.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers import MLP, Linear
from memjax.layers.linear import last_init
from memjax.layers.norm import make_norm
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import MASKED, ChainPeer, Leaves, take

ROWS, MIXED, TOTAL = "rows", "mixed", "total"
"""Leaves of rows, newest last: what entered layers, what was taken in, the logarithms of sums."""
FILLED, FRESH = "filled", "fresh"
"""Leaves of counts: rows that are there, and those of the last chunk."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a memory of the last tokens."""

    tokens: int = 8
    """M: tokens that are kept."""


class RelativeBlock(nn.Module):
    """A layer whose scores depend on distances.

    Attributes:
      config: width, heads and norms; all heads have keys of their own.
      dtype: dtype of matrix products.
      ahead: whether rows attend to the right too.
    """

    config: Backbone
    dtype: jnp.dtype
    ahead: bool = False

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        linear = functools.partial(Linear, config.attention_dim, dtype=dtype)
        self.query, self.key, self.value, self.distance = (linear() for _ in range(4))
        self.out = Linear(config.width, dtype=dtype, kernel_init=last_init(config))
        if config.qk_norm:
            self.query_norm = make_norm(config, dtype, "query_norm")
            self.key_norm = make_norm(config, dtype, "key_norm")
        self.mix_norm = make_norm(config, dtype, "mix_norm")
        self.mlp_norm = make_norm(config, dtype, "mlp_norm")
        self.mlp = MLP(config, dtype)
        shape = config.heads, config.attention_head_dim
        self.content = self.param("content", EMBEDDING_INIT, shape)
        self.behind = self.param("behind", EMBEDDING_INIT, shape)
        if self.ahead:
            self.before = self.param("before", EMBEDDING_INIT, shape)

    def heads(self, x: Float[Array, "N T D"]) -> tuple[Float[Array, "N T H E"], ...]:
        """Return queries, keys and values."""
        x = self.mix_norm(x)
        query, key, value = (
            linear(x).reshape(*x.shape[:2], self.config.heads, -1)
            for linear in (self.query, self.key, self.value)
        )
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value

    def mix(
        self,
        query: Float[Array, "N T H E"],
        key: Float[Array, "N S H E"],
        value: Float[Array, "N S H E"],
        distance: Int[Array, "N T S"],
        readable: Bool[Array, "N T S"],
        ahead: bool = False,
    ) -> tuple[Float[Array, "N T H E"], Float[Array, "N T H"]]:
        """Return the values that queries take in, and the logarithms of the sums of weights.

        Args:
          query: from `heads`.
          key: from `heads`.
          value: from `heads`.
          distance: between queries and keys, below S, not negative.
          readable: which keys each query reads.
          ahead: whether the keys stand to the right.
        """
        side = self.before if ahead else self.behind
        width, keys = query.shape[-1], key.shape[1]
        places = self.distance(sinusoids(keys, self.config.width))
        places = places.reshape(keys, *query.shape[2:])
        by_content = jnp.einsum("nthe,nshe->nhts", query + self.content.astype(query.dtype), key)
        by_place = jnp.einsum("nthe,phe->nhtp", query + side.astype(query.dtype), places)
        at = jnp.broadcast_to(distance[:, None], by_content.shape)
        by_place = jnp.take_along_axis(by_place, at, axis=-1, mode="clip")
        scores = (by_content + by_place).astype(jnp.float32) / math.sqrt(width)
        scores = jnp.where(readable[:, None], scores, MASKED)
        weights = nn.softmax(scores, axis=-1).astype(value.dtype)
        total = jnp.moveaxis(nn.logsumexp(scores, axis=-1), 1, 2)
        return jnp.einsum("nhts,nshe->nthe", weights, value), total

    def finish(
        self, x: Float[Array, "N T D"], mixed: Float[Array, "N T H E"]
    ) -> Float[Array, "N T D"]:
        """Return what leaves the layer where `mixed` was taken in."""
        x = x + self.out(mixed.reshape(*x.shape[:2], -1))
        return x + self.mlp(self.mlp_norm(x))


class TransformerXL(ChainPeer):
    """The state is what entered each layer at the last M tokens."""

    KIND = "fused"
    AHEAD = False

    dials: Any = Dials()

    def setup(self) -> None:
        self.setup_decoder(stack=False)
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        self.blocks = [RelativeBlock(stack, dtype, self.AHEAD) for _ in range(stack.layers)]
        self.norm = make_norm(stack, dtype, "norm")

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        stack = self.config.decoder
        shape = batch, self.dials.tokens, stack.layers, stack.width
        rows = jnp.zeros(shape, jnp.dtype(self.config.dtype))
        return {ROWS: rows, FILLED: jnp.zeros(batch, jnp.int32)}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Leaves:
        """See `Peer.update`."""
        _, found = self.run(leaves, self.embed_tokens(tokens, valid), valid)
        there = jnp.concatenate([self.there(leaves), valid], axis=1)
        newest = jnp.argsort(there, axis=1, stable=True)[:, valid.shape[1] :]
        kept = {name: self.store(take(x, newest)) for name, x in found.items()}
        filled = jnp.minimum(leaves[FILLED] + valid.sum(axis=1), self.dials.tokens)
        return {**kept, FILLED: filled.astype(jnp.int32)}

    def store(self, x: Float[Array, "N M *any"]) -> Float[Array, "N M *any"]:
        """Return rows as they are kept: without gradient."""
        return jax.lax.stop_gradient(x)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.run(leaves, x, valid)[0]

    def run(
        self, leaves: Leaves, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> tuple[Float[Array, "N L D"], Leaves]:
        """Return the states at the inputs, and the leaves of kept rows and then of inputs."""
        rows, distance, readable = leaves[ROWS], self.distances(valid), self.readable(leaves, valid)
        kept, entered, x = rows.shape[1], [], x.astype(jnp.float32)
        for number, block in enumerate(self.blocks):
            entered.append(x)
            both = jnp.concatenate([rows[:, :, number].astype(x.dtype), x], axis=1)
            query, key, value = block.heads(both)
            mixed, _ = block.mix(query[:, kept:], key, value, distance[:, kept:], readable)
            x = block.finish(x, mixed)
        new = jnp.stack(entered, axis=2).astype(rows.dtype)
        return self.norm(x), {ROWS: jnp.concatenate([rows, new], axis=1)}

    def there(self, leaves: Leaves) -> Bool[Array, "N M"]:
        """Return which of the kept rows are there."""
        kept = self.dials.tokens
        return jnp.arange(kept) >= kept - leaves[FILLED][:, None]

    def distances(self, valid: Bool[Array, "N L"]) -> Int[Array, "N S S"]:
        """Return the distances of kept rows and inputs to one another."""
        inputs = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        rows = jnp.arange(-self.dials.tokens, 0)
        rows = jnp.broadcast_to(rows, (len(valid), *rows.shape))
        place = jnp.concatenate([rows, inputs], axis=1)
        return jnp.abs(place[:, :, None] - place[:, None])

    def readable(self, leaves: Leaves, valid: Bool[Array, "N L"]) -> Bool[Array, "N L S"]:
        """Return which rows and inputs each input reads."""
        length = valid.shape[1]
        there = jnp.broadcast_to(self.there(leaves)[:, None], (*valid.shape, self.dials.tokens))
        return jnp.concatenate([there, valid[:, None] & jnp.tri(length, dtype=bool)], axis=2)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        stack, kept = self.config.decoder, self.dials.tokens
        numbers = kept * stack.layers * stack.width
        return {ROWS: (numbers, number_bits(self.config)), FILLED: (1, max(1, kept.bit_length()))}


class LaMemo(TransformerXL):
    """The state is embeddings of the last M tokens, and what each layer took in at them."""

    AHEAD = True

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        rows = batch, self.dials.tokens
        heads = *rows, stack.layers, stack.heads
        return {
            ROWS: jnp.zeros((*rows, stack.width), dtype),
            MIXED: jnp.zeros((*heads, stack.attention_head_dim), dtype),
            TOTAL: jnp.zeros(heads, jnp.float32),
            FILLED: jnp.zeros(batch, jnp.int32),
            FRESH: jnp.zeros(batch, jnp.int32),
        }

    def update(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Leaves:
        """See `Peer.update`."""
        fresh = jnp.minimum(valid.sum(axis=1), self.dials.tokens).astype(jnp.int32)
        return {**super().update(leaves, tokens, valid), FRESH: fresh}

    def run(
        self, leaves: Leaves, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> tuple[Float[Array, "N L D"], Leaves]:
        """See `TransformerXL.run`."""
        distance, readable = self.distances(valid), self.readable(leaves, valid)
        ahead, rows = self.looked_at(leaves, valid), leaves[ROWS]
        kept, taken, totals = rows.shape[1], [], []
        x = first = jnp.concatenate([rows, x.astype(rows.dtype)], axis=1)
        x = x.astype(jnp.float32)
        for number, block in enumerate(self.blocks):
            query, key, value = block.heads(x)
            mixed, total = block.mix(query[:, kept:], key, value, distance[:, kept:], readable)
            more = block.mix(query[:, :kept], key, value, distance[:, :kept], ahead, True)
            before = leaves[MIXED][:, :, number], leaves[TOTAL][:, :, number]
            refreshed, sums = merge(*before, *more, self.share(before[1], more[1]))
            taken.append(jnp.concatenate([refreshed.astype(mixed.dtype), mixed], axis=1))
            totals.append(jnp.concatenate([sums, total], axis=1))
            x = block.finish(x, taken[-1])
        found = {MIXED: jnp.stack(taken, axis=2).astype(leaves[MIXED].dtype)}
        found |= {ROWS: first, TOTAL: jnp.stack(totals, axis=2)}
        return self.norm(x[:, kept:]), found

    def share(self, old: Float[Array, "N M H"], new: Float[Array, "N M H"]) -> jax.Array:
        """Return how much of what a row took in before stays, from logarithms of sums."""
        return nn.sigmoid(old - new)

    def looked_at(self, leaves: Leaves, valid: Bool[Array, "N L"]) -> Bool[Array, "N M S"]:
        """Return which rows and inputs each kept row attends to: rows of the last chunk."""
        kept = jnp.arange(self.dials.tokens)
        fresh = kept >= len(kept) - leaves[FRESH][:, None]
        to_the_right = fresh[:, None] & (kept > kept[:, None])
        return jnp.pad(to_the_right, ((0, 0), (0, 0), (0, valid.shape[1])))

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        stack, kept, bits = self.config.decoder, self.dials.tokens, number_bits(self.config)
        count = 1, max(1, kept.bit_length())
        return {
            ROWS: (kept * stack.width, bits),
            MIXED: (kept * stack.layers * stack.attention_dim, bits),
            TOTAL: (kept * stack.layers * stack.heads, 32),
            FILLED: count,
            FRESH: count,
        }


def merge(
    old: Float[Array, "N M H E"],
    old_total: Float[Array, "N M H"],
    new: Float[Array, "N M H E"],
    new_total: Float[Array, "N M H"],
    share: Float[Array, "N M H"],
) -> tuple[Float[Array, "N M H E"], Float[Array, "N M H"]]:
    """Return what was taken in from two sets of keys, and the logarithm of the sum over both.

    Args:
      old: taken in from one set.
      old_total: the logarithm of its sum of weights.
      new: taken in from the other.
      new_total: the logarithm of its sum.
      share: of the first set.
    """
    share = share[..., None]
    return share * old + (1 - share) * new, jnp.logaddexp(old_total, new_total)


def sinusoids(length: int, width: int) -> Float[Array, "P D"]:
    """Return sines and cosines of distances from 0 to `length` - 1."""
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    angle = jnp.arange(length)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[:, :width]


XL_ADAPTER = peer(
    "transformerxl",
    TransformerXL,
    "What entered each layer at the last tokens is kept and read by it, by distances.",
    published="Transformer-XL, arXiv 1901.02860",
    dials=Dials,
    sized="tokens",
    tiny={"tokens": 6},
    unclaimed="perplexities on WikiText-103, enwik8 and text8",
)
ADAPTER = peer(
    "lamemo",
    LaMemo,
    "The last tokens are kept, and attend to the tokens behind them before they are read.",
    published="LaMemo: Language Modeling with Look-Ahead Memory, arXiv 2204.07341",
    dials=Dials,
    sized="tokens",
    tiny={"tokens": 6},
    unclaimed="perplexities on WikiText-103, enwik8 and text8",
)
