"""Hierarchical chunk attention memory (HCAM; Lampinen et al. 2021, arXiv 2105.14039).

A chunk leaves content vectors c and a summary s, all without gradient. In every layer each position
reads the memory behind the attention among positions. Its query q weights the k chunks with the
highest (q W_q) (s W_k) / sqrt(D) by a softmax over them alone, a; in each of them it attends with
several heads to the contents, to which sinusoids of their distance to the chunk's end are added, to
y; and the sum of a y over the chunks is added to the position. Each position chooses for itself,
from what stands at and before it.

The paper has agents whose contents are their own states, step by step, and the code of what writes
them is not public. Here a chunk is read with nothing to remember, its states are cut into m pieces
of successive tokens, a content is the mean of a piece, and the summary that of all states. With m
as many as tokens the contents are the states themselves. All chunks are computed, and those that
are not chosen count 0.

Not claimed: results of reinforcement learning, and the ballet, object and maze tasks.

Shapes: N sequence, L token, M chunk, C content, D width, H head, E head width.
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
from memjax.layers import Block, Linear
from memjax.layers.linear import last_init
from memjax.layers.norm import make_norm
from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.lamemo import sinusoids
from memjax.models.peers.peer import MASKED, BankPeer, Leaves

CONTENTS, SUMMARY = "contents", "summary"
"""Leaves of an entry."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a hierarchical chunk attention memory."""

    vectors: int = 3
    """C: contents of a chunk."""
    chosen: int = 4
    """Chunks that a position reads at most."""


class ChunkReader(nn.Module):
    """Attention to the best chunks, and within each of them."""

    config: Backbone
    dtype: jnp.dtype
    chosen: int

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        linear = functools.partial(Linear, config.attention_dim, dtype=dtype)
        self.query, self.key, self.value = linear(), linear(), linear()
        self.out = Linear(config.width, dtype=dtype, kernel_init=last_init(config))
        self.chunk_query = Linear(config.width, dtype=dtype)
        self.chunk_key = Linear(config.width, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "N L D"],
        contents: Float[Array, "N M C D"],
        summary: Float[Array, "N M D"],
        filled: Bool[Array, "N M"],
    ) -> Float[Array, "N L D"]:
        """Return what positions take in; 0 where no chunk is there."""
        weights = self.weigh(x, summary, filled)
        taken = self.within(x, contents)
        return jnp.einsum("nlm,nlmd->nld", weights.astype(taken.dtype), taken)

    def weigh(
        self,
        x: Float[Array, "N L D"],
        summary: Float[Array, "N M D"],
        filled: Bool[Array, "N M"],
    ) -> Float[Array, "N L M"]:
        """Return how much each chunk counts for each position."""
        chunks = summary.shape[1]
        scores = jnp.einsum("nld,nmd->nlm", self.chunk_query(x), self.chunk_key(summary))
        scores = scores.astype(jnp.float32) / math.sqrt(x.shape[-1])
        scores = jnp.where(filled[:, None], scores, MASKED)
        best, which = jax.lax.top_k(scores, min(self.chosen, chunks))
        weights = nn.softmax(best, axis=-1)[..., None] * nn.one_hot(which, chunks)
        return jnp.where(filled[:, None], weights.sum(axis=-2), 0)

    def within(
        self, x: Float[Array, "N L D"], contents: Float[Array, "N M C D"]
    ) -> Float[Array, "N L M D"]:
        """Return what each position takes in from each chunk."""
        places = sinusoids(contents.shape[2], contents.shape[3])[::-1]
        contents = contents + places.astype(contents.dtype)
        query, key, value = (
            linear(y).reshape(*y.shape[:-1], self.config.heads, -1)
            for linear, y in ((self.query, x), (self.key, contents), (self.value, contents))
        )
        scores = jnp.einsum("nlhe,nmche->nlmhc", query, key).astype(jnp.float32)
        weights = nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1).astype(value.dtype)
        mixed = jnp.einsum("nlmhc,nmche->nlmhe", weights, value)
        return self.out(mixed.reshape(*mixed.shape[:3], -1))


class HierarchicalChunkMemory(BankPeer):
    """An entry is the contents of a chunk and their summary."""

    dials: Any = Dials()

    def setup(self) -> None:
        self.setup_decoder(stack=False)
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        layers = range(stack.layers)
        self.blocks = [Block(stack, self.config.chunk_length, dtype) for _ in layers]
        self.read_norms = [make_norm(stack, dtype, f"read_norm_{number}") for number in layers]
        self.readers = [ChunkReader(stack, dtype, self.dials.chosen) for _ in layers]
        self.norm = make_norm(stack, dtype, "norm")

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        states = self.run(None, self.embed_tokens(tokens, valid), valid)
        contents = jnp.einsum("ncl,nld->ncd", pieces(valid, self.dials.vectors), states)
        summary = jnp.einsum("ncl,nld->nd", pieces(valid, 1), states)
        dtype = jnp.dtype(self.config.dtype)
        return {
            CONTENTS: self.store(contents.astype(dtype)),
            SUMMARY: self.store(summary.astype(dtype)),
        }

    def store(self, x: Float[Array, "N *any"]) -> Float[Array, "N *any"]:
        """Return a part of an entry as it is kept: without gradient."""
        return jax.lax.stop_gradient(x)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.run(leaves, x, valid)

    def run(
        self, leaves: Leaves | None, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L D"]:
        """Return the states at inputs; `leaves` of None is nothing to remember."""
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        x = x.astype(jnp.float32)
        for block, norm, reader in zip(self.blocks, self.read_norms, self.readers, strict=True):
            x, _ = block(x, positions, valid)
            if leaves is not None:
                asked = self.query(norm(x), valid)
                x = x + reader(asked, leaves[CONTENTS], leaves[SUMMARY], leaves[VALID])
        return self.norm(x)

    def query(self, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]) -> Float[Array, "N L D"]:
        """Return what the queries of positions are made of: their own states."""
        return x

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        width, bits = self.config.decoder.width, number_bits(self.config)
        return {
            CONTENTS: (chunks * self.dials.vectors * width, bits),
            SUMMARY: (chunks * width, bits),
        }


def pieces(valid: Bool[Array, "N L"], count: int) -> Float[Array, "N C L"]:
    """Return the shares of tokens in the means of successive pieces of a chunk.

    With fewer real tokens than pieces some of them stand in several.
    """
    place = (jnp.cumsum(valid, axis=1) - 1)[:, None]
    real, piece = valid.sum(axis=1)[:, None], jnp.arange(count)
    first, after = piece * real // count, (piece + 1) * real // count
    after = jnp.maximum(after, first + 1)
    inside = valid[:, None] & (place >= first[..., None]) & (place < after[..., None])
    return inside / jnp.maximum(inside.sum(axis=-1, keepdims=True), 1)


ADAPTER = peer(
    "hcam",
    HierarchicalChunkMemory,
    "Each position chooses a few chunks by their summaries, and attends to the contents of each.",
    published="Towards mental time travel: HCAM, arXiv 2105.14039",
    dials=Dials,
    tiny={"vectors": 2, "chosen": 1},
    unclaimed="results of reinforcement learning",
)
