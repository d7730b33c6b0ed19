"""PMI: perception, memory and inference, of which this is the memory (Zeng et al. 2023, arXiv
2310.09297).

Only the abstract was read; this is after PMI, whose full equations are not known to us. The state
is a working memory of S slots and a long-term memory of C pages of as many slots. A chunk is read
by the decoder's stack. Its states compete for the slots: each slot attends to the `top` states with
the highest scores alone, and a gate as in a relational memory core lets a part replace it. Then the
working memory is written into the long-term one (our rule): a page share r = softmax(u R) of the
mean state u, and a page M becomes M + r (LN(M + working memory) - M), so that a page without a
share stays as it was, bit by bit.

A read is in front of the decoder's stack: the inputs attend to the working memory, what they find
there attends to all slots of all pages, and alpha of the first and 1 - alpha of the second are
added to the inputs. The pages begin empty, at 0. The working memory begins learned, of a scale at
which its slots read apart.

Not claimed: bAbI, relational reasoning on images, and language modelling of the paper.

Shapes: B sequence, N decoded chunk, L token, S slot, C page, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Stage
from memjax.layers import Linear
from memjax.models.memory import number_bits
from memjax.models.memory_model import UNIT_INIT
from memjax.models.peers.adapters import peer
from memjax.models.peers.memory_network import weights_of
from memjax.models.peers.peer import ChainPeer, Leaves
from memjax.models.peers.relational import KINDS, Gate

WORKING, PAGES = "working", "pages"
"""Leaves: the working memory and the long-term memory."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a dual memory."""

    slots: int = 4
    """S: vectors of the working memory and of each page."""
    pages: int = 3
    """C: pages of the long-term memory."""
    top: int = 4
    """Tokens of a chunk that each slot reads."""
    alpha: float = 0.5
    """Share of the working memory in what is read; the rest is the long-term memory's."""
    gate: str = "unit"
    """The gate of the slots, one of KINDS of a relational memory core."""


class Attend(nn.Module):
    """One head of attention of rows over others, of which a row reads the `top` best or all."""

    width: int
    dtype: jnp.dtype
    top: int = 0

    @nn.compact
    def __call__(
        self,
        rows: Float[Array, "N R D"],
        others: Float[Array, "N O D"],
        filled: Bool[Array, "N O"] | None = None,
    ) -> Float[Array, "N R D"]:
        query, key, value = (
            Linear(self.width, dtype=self.dtype, name=name)(x)
            for name, x in (("query", rows), ("key", others), ("value", others))
        )
        scores = jnp.einsum("nrd,nod->nro", query, key) / self.width**0.5
        some = jnp.ones(scores.shape, bool) if filled is None else filled[:, None]
        if 0 < self.top < others.shape[1]:
            masked = jnp.where(some, scores, -jnp.inf)
            # By index, not by score: a tie chooses earlier ones, and never more than `top`.
            chosen = jax.lax.top_k(masked, self.top)[1]
            some &= (chosen[..., None] == jnp.arange(others.shape[1])).any(axis=-2)
        return jnp.einsum("nro,nod->nrd", weights_of(scores, some).astype(value.dtype), value)


class DualMemory(ChainPeer):
    """The state is a working memory and pages, into which it is written after every chunk."""

    KIND = "chain"

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        dials, width, dtype = self.dials, self.config.decoder.width, jnp.dtype(self.config.dtype)
        self.first = self.param("first", UNIT_INIT, (dials.slots, width))
        self.compete = Attend(width, dtype, dials.top)
        self.slots_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.gate = Gate(dials.gate, width, dtype)
        self.share = Linear(dials.pages, dtype=dtype)
        self.pages_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.recall, self.recall_pages = Attend(width, dtype), Attend(width, dtype)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        shape, dtype = (batch, *self.first.shape), jnp.dtype(self.config.dtype)
        pages = jnp.zeros((batch, self.dials.pages, *self.first.shape), dtype)
        return {WORKING: jnp.broadcast_to(self.first.astype(dtype), shape), PAGES: pages}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        states = self.backbone(self.embed_tokens(tokens, valid), valid=valid)
        return self.consolidate(*self.rewrite(leaves, states, valid))

    def rewrite(
        self, leaves: Leaves, states: Float[Array, "B L D"], valid: Bool[Array, "B L"]
    ) -> tuple[Leaves, Float[Array, "B D"]]:
        """Return the leaves with a new working memory, and the mean state."""
        working = leaves[WORKING]
        states = jnp.where(valid[..., None], states, 0)
        mean = states.sum(axis=1) / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
        mean = mean.astype(states.dtype)
        new = self.slots_norm(working + self.compete(working, states, valid))
        return {**leaves, WORKING: self.gate(working, new, mean).astype(working.dtype)}, mean

    def consolidate(self, leaves: Leaves, mean: Float[Array, "B D"]) -> Leaves:
        """Return the leaves with the working memory written into the pages."""
        working, pages = leaves[WORKING], leaves[PAGES]
        share = nn.softmax(self.share(mean).astype(jnp.float32), axis=-1)[..., None, None]
        # A page at 0 has no variance, and its norm a steep gradient: what is normalised is never
        # a page alone.
        new = self.pages_norm(pages + working[:, None])
        return {**leaves, PAGES: (pages + share * (new - pages)).astype(pages.dtype)}

    def find(self, leaves: Leaves, x: Float[Array, "N L D"]) -> Float[Array, "N L D"]:
        """Return what inputs read from both memories."""
        alpha, pages = self.dials.alpha, leaves[PAGES]
        found = self.recall(x, leaves[WORKING])
        older = self.recall_pages(found, pages.reshape(len(pages), -1, pages.shape[-1]))
        return alpha * found + (1 - alpha) * older

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.backbone(x + self.find(leaves, x), valid=valid)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        numbers, bits = self.dials.slots * self.config.decoder.width, number_bits(self.config)
        return {WORKING: (numbers, bits), PAGES: (self.dials.pages * numbers, bits)}


def _check(config: Config, stage: Stage, key: str) -> None:
    dials = ADAPTER.dials_of(stage, key)
    ConfigError.require(
        dials.gate in KINDS,
        f"{key}.dials.gate: {dials.gate!r}, expected one of {', '.join(KINDS)}. Change it",
    )
    ConfigError.require(
        0 <= dials.alpha <= 1,
        f"{key}.dials.alpha: {dials.alpha}, expected a number from 0 to 1. Change it",
    )


ADAPTER = peer(
    "pmi",
    DualMemory,
    "Tokens compete for a few slots, which are written into the pages of a long-term memory.",
    published="A Framework for Inference Inspired by Human Memory Mechanisms, arXiv 2310.09297",
    dials=Dials,
    sized="slots",
    tiny={"slots": 2, "pages": 2, "top": 2},
    check=_check,
    unclaimed="bAbI, relational reasoning on images, and language modelling",
)
