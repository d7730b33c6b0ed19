"""Attendre (Yang and Hua 2024, arXiv 2401.04881).

All layers keep the keys and values of R tokens of earlier text. A chunk is read behind those, and
then as many rows leave as came: those that were attended to longest ago (`recent`), or least often
(`frequent`), or those that came first (`first`). A query attends to a key where its weight, as a
mean over heads, is at least the one that all keys would have if their weights were equal. How often
is a share of queries, in which those of a chunk count more than all before. Among equals the oldest
leaves, so that of equal weights all three rules are the same. A layer's rows stand in their order,
right before the text that reads them.

After the abstract: the published policies are named there, and these forms of them are ours. The
published system also lets queries wait until later keys are there. A causal language model has no
use for that half, and it is left out.

Not claimed: reading comprehension on TriviaQA.

Shapes: B sequence, N decoded chunk, J layer, R stored row, L token, S = R + L, G key and value
head, E head width, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from memjax.config import ConfigError
from memjax.layers import rotate
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.far_attention import Far, FarAttention, make_far_backbone
from memjax.models.peers.peer import ChainPeer, Leaves
from memjax.models.peers.raw_kv import KEY, VALUE, are_there

USE = "use"
"""The leaf by which rows leave: queries since a row was attended to, or the share that did."""
RULES = ("recent", "frequent", "first")
"""Rows stay that were attended to most recently or most often, or that came last."""
EQUAL = 0.9999
"""The share of an equal weight from which a key is attended to, for rounding."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of Attendre."""

    tokens: int = 7
    """R: tokens whose keys and values are kept, in every layer."""
    evict: str = "frequent"
    """One of RULES."""
    decay: float = 0.5
    """The weight of all earlier queries in the share that attended to a row; that of the last
    chunk's is the rest."""


class Attendre(ChainPeer):
    """The state is R keys and values for every layer, with the oldest first."""

    KIND = "fused"

    dials: Dials = Dials()

    def setup(self) -> None:
        ConfigError.require_one_of("dials.evict", self.dials.evict, RULES)
        self.setup_decoder(stack=False)
        make = functools.partial(FarAttention, distance=None)
        self.backbone = make_far_backbone(self.config, make)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; no row is there."""
        stack, dials = self.config.decoder, self.dials
        heads = stack.kv_heads or stack.heads
        shape = batch, stack.layers, dials.tokens
        rows = jnp.zeros((*shape, heads, stack.attention_head_dim), jnp.dtype(self.config.dtype))
        leaves = {KEY: rows, VALUE: rows}
        if dials.evict != "first":
            kind = jnp.int32 if dials.evict == "recent" else jnp.float32
            leaves[USE] = jnp.zeros(shape, kind)
        return leaves

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        x = self.embed_tokens(tokens, valid)
        _, local = self.backbone.read_far(x, valid, self.far(leaves))
        there = are_there(leaves[KEY], leaves[VALUE])
        own = jnp.broadcast_to(valid[:, None], (*there.shape[:2], valid.shape[1]))
        there = jnp.concatenate([there, own], axis=2)
        rows = {
            name: jnp.concatenate([leaves[name], jnp.moveaxis(new, 0, 1)], axis=2)
            for name, new in ((KEY, local.key), (VALUE, local.value))
        }
        stays: jax.Array = jnp.zeros(there.shape, jnp.int32)
        if self.dials.evict != "first":
            weights = jnp.moveaxis(local.weights, 0, 1)
            rows[USE] = used(leaves[USE], weights, there, valid, self.dials)
            stays = -rows[USE] if self.dials.evict == "recent" else rows[USE]
        at, real = staying(there, stays, self.dials.tokens)
        return {name: rows_at(row, at, real) for name, row in rows.items()}

    def far(self, leaves: Leaves) -> Far:
        """Return the rows as a pass reads them: rotated to the positions before its first one."""
        config, stored = self.config.decoder, self.dials.tokens
        key, value = (jnp.moveaxis(leaves[name], 1, 0) for name in (KEY, VALUE))
        flat = key.reshape(-1, *key.shape[2:])
        at = jnp.broadcast_to(jnp.arange(-stored, 0), flat.shape[:2])
        turned = rotate(flat, at, config.rope_theta, config.rope_scaling).reshape(key.shape)
        return Far(turned, value, are_there(key, value))

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.backbone.read_far(x, valid, self.far(leaves))[0]

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        stack, dials = self.config.decoder, self.dials
        rows = stack.layers * dials.tokens
        numbers = rows * (stack.kv_heads or stack.heads) * stack.attention_head_dim
        use = {USE: (rows, 32)} if dials.evict != "first" else {}
        return dict.fromkeys((KEY, VALUE), (numbers, number_bits(self.config))) | use


def used(
    before: Int[Array, "B J R"] | Float[Array, "B J R"],
    weights: Float[Array, "B J L S"],
    there: Bool[Array, "B J S"],
    valid: Bool[Array, "B L"],
    dials: Dials,
) -> Int[Array, "B J S"] | Float[Array, "B J S"]:
    """Return how all keys were used, after the queries of a chunk.

    Args:
      before: the use of stored rows before the chunk.
      weights: of all keys, stored ones first.
      there: which keys there are.
      valid: False at padding.
      dials: the rule, `recent` or `frequent`, and the decay.
    """
    stored, length = before.shape[2], valid.shape[1]
    seen = jnp.pad(jnp.tri(length, dtype=bool), ((0, 0), (stored, 0)), constant_values=True)
    asked = seen & valid[:, None, :, None] & there[:, :, None]
    hit = asked & (weights * asked.sum(axis=3, keepdims=True) >= EQUAL)
    before = jnp.pad(before, ((0, 0), (0, 0), (0, length)))
    if dials.evict == "frequent":
        share = hit.sum(axis=2) / jnp.maximum(asked.sum(axis=2), 1)
        older = jnp.arange(stored + length) < stored
        return jnp.where(older, dials.decay * before + (1 - dials.decay) * share, share)
    number = jnp.cumsum(valid, axis=1)
    last = jnp.max(jnp.where(hit, number[:, None, :, None], 0), axis=2)
    # A token counts as attended to when it comes.
    last = jnp.maximum(last, jnp.pad(number, ((0, 0), (stored, 0)))[:, None])
    queries = number[:, -1, None, None]
    return jnp.where(last > 0, queries - last, before + queries)


def staying(
    there: Bool[Array, "B J S"],
    stays: Int[Array, "B J S"] | Float[Array, "B J S"],
    most: int,
) -> tuple[Int[Array, "B J R"], Bool[Array, "B J R"]]:
    """Return the R rows with the highest numbers, and where there are any.

    Of equal ones the newest stay. They are in their order, behind those that are not there.
    """
    place = jnp.broadcast_to(jnp.arange(there.shape[2]), there.shape)
    kept = jnp.lexsort((place, stays, there), axis=-1)[..., -most:]
    real = jnp.take_along_axis(there, kept, axis=2)
    order = jnp.argsort(jnp.where(real, kept, -1), axis=2)
    return jnp.take_along_axis(kept, order, axis=2), jnp.take_along_axis(real, order, axis=2)


def rows_at(
    rows: Shaped[Array, "B J S *any"], at: Int[Array, "B J R"], real: Bool[Array, "B J R"]
) -> Shaped[Array, "B J R *any"]:
    """Return rows, 0 where there is none."""
    at, real = (x.reshape(*x.shape, *(1,) * (rows.ndim - 3)) for x in (at, real))
    return jnp.where(real, jnp.take_along_axis(rows, at, axis=2), 0)


ADAPTER = peer(
    "attendre",
    Attendre,
    "All layers keep the keys and values of a number of tokens; those that are attended to least"
    " leave.",
    published="Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based"
    " Transformers for Long Context Processing, arXiv 2401.04881",
    dials=Dials,
    sized="tokens",
    tiny={"tokens": 6},
    unclaimed="reading comprehension on TriviaQA",
)
