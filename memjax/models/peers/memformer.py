"""Memformer (Wu et al. 2020, arXiv 2010.06891).

Slots are read by every layer: its positions attend to them behind the attention among one another.
After a chunk every slot attends, sharply, to itself and to the chunk's states, and to no other
slot. A slot forgets by a learned bias that is added before it is scaled to length 1. Before any
text a slot is its bias at length 1. `config.remat` recomputes chunks in the backward pass, which is
the paper's replay of memory.

Source: the equations as others quote them; the published code is of a later variant with a stream
of memory per layer, gates and a reset, which is not reproduced.

Not claimed: perplexities on WikiText-103, and the savings of memory at the paper's sizes.

Shapes: N sequence, L token, S slot, D width, H head, E head width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Block, Linear
from memjax.layers.norm import make_norm
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.memoria import RowReader
from memjax.models.peers.peer import MASKED, ChainPeer, Leaves

SLOTS = "slots"
"""The one leaf of a state."""
LEAST = 1e-6
"""The least length that a slot is divided by."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a Memformer."""

    vectors: int = 32
    """S: slots."""
    temperature: float = 0.25
    """The divisor of the scores of a write; below 1, a slot takes few of the chunk's states."""


class Memformer(ChainPeer):
    """The state is S slots of length 1."""

    KIND = "fused"

    dials: Any = Dials()

    def setup(self) -> None:
        self.setup_decoder(stack=False)
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        layers = range(stack.layers)
        self.blocks = [Block(stack, self.config.chunk_length, dtype) for _ in layers]
        self.read_norms = [make_norm(stack, dtype, f"read_norm_{number}") for number in layers]
        self.readers = [RowReader(stack, dtype) for _ in layers]
        self.norm = make_norm(stack, dtype, "norm")
        self.bias = self.param(
            "bias", nn.initializers.normal(1.0), (self.dials.vectors, stack.width)
        )
        self.write_query, self.write_key, self.write_value = (
            Linear(stack.width, dtype=dtype) for _ in range(3)
        )

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        first = unit(self.bias).astype(jnp.dtype(self.config.dtype))
        return {SLOTS: jnp.broadcast_to(first, (batch, *first.shape))}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Leaves:
        """See `Peer.update`."""
        states = self.read(leaves, self.embed_tokens(tokens, valid), tokens, valid)
        return {SLOTS: self.write_slots(leaves[SLOTS], states, valid)}

    def write_slots(
        self,
        slots: Float[Array, "N S D"],
        states: Float[Array, "N L D"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N S D"]:
        """Return slots after they attended to themselves and to the states of a chunk."""
        query, own_key = self.write_query(slots), self.write_key(slots)
        own = jnp.sum(query * own_key, axis=-1, keepdims=True)
        others = jnp.einsum("nsd,nld->nsl", query, self.write_key(states))
        scores = jnp.concatenate([own, others], axis=-1).astype(jnp.float32)
        scores /= self.dials.temperature * slots.shape[-1] ** 0.5
        seen = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)[:, None]
        weights = nn.softmax(jnp.where(seen, scores, MASKED), axis=-1)
        taken = jnp.einsum("nsl,nld->nsd", weights[..., 1:], self.write_value(states))
        # A slot keeps itself as it is, so that one that attends to itself alone is kept.
        return unit(weights[..., :1] * slots + taken + self.bias).astype(slots.dtype)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        x, slots = x.astype(jnp.float32), leaves[SLOTS]
        filled = jnp.ones(slots.shape[:2], bool)
        for block, norm, reader in zip(self.blocks, self.read_norms, self.readers, strict=True):
            x, _ = block(x, positions, valid)
            x = x + reader(norm(x), slots, filled)[0]
        return self.norm(x)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        return {SLOTS: (self.dials.vectors * self.config.decoder.width, number_bits(self.config))}


def unit(x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
    """Return vectors at length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), LEAST)


ADAPTER = peer(
    "memformer",
    Memformer,
    "Slots that every layer reads; after a chunk each attends to itself and to the chunk's states.",
    published="Memformer: A Memory-Augmented Transformer, arXiv 2010.06891",
    dials=Dials,
    tiny={"vectors": 2},
    unclaimed="perplexities on WikiText-103, and the savings of memory at the paper's sizes",
)
