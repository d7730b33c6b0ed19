"""R3Mem (Wang et al. 2025, arXiv 2502.15957), from its abstract: neither text nor code was read.

A stack of reversible layers runs over the tokens of a chunk and K rows of memory. A position has
two halves, and a layer computes `a' = a + F(b)` and `b' = b + G(a')` with attention F, both ways,
and a network G over channels. What leaves the stack at the rows is the next memory; the rest is
dropped. Run backward, `b = b' - G(a')` and `a = a' - F(b)`, the same weights turn memory into text:
learned blanks stand for what was dropped, and from what comes out at the tokens the head scores the
chunk, while the memory before the chunk comes out at the rows. So earlier chunks are reconstructed
one after another. The causal decoder reads the memory behind the last reconstructed chunks.

Gradients are computed from outputs of the stack: each layer is inverted in the backward pass, and
no activation of it is kept. The losses of reconstruction and of the cycle, which encodes once more
what was reconstructed, are `auxiliary_losses`, used by no objective. Adapters of a pretrained model
and the hierarchy from documents to entities are not reproduced: all is trained from scratch.

Not claimed: perplexity of long texts and scores in retrieval and dialogue with Llama models.

Shapes: N sequence, L token, K row of memory, T position, D width.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers import MLP, Attention
from memjax.layers.norm import make_norm
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import ChainPeer, Leaves

STATE = "state"
"""The one leaf of a state."""
Sequence = Float[Array, "N T D"]
Places = tuple[Int[Array, "N T"], Bool[Array, "N T"]]
"""Rotary positions, and which of them are valid."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of R3Mem."""

    vectors: int = 32
    """K: rows of memory."""
    unfolded: int = 1
    """Chunks that are reconstructed from the memory and read before it; the newest ones."""
    recompute: bool = True
    """False keeps the activations of the reversible stack for the backward pass."""


class Coupling(nn.Module):
    """A reversible layer, whose input and output are float32, so that little is lost by sums."""

    config: Backbone
    dtype: jnp.dtype

    def setup(self) -> None:
        # Heads are as wide as the decoder's, though a half has half of the channels.
        config = self.config
        half = dataclasses.replace(
            config, width=config.width // 2, head_dim=config.attention_head_dim, causal=False
        )
        self.mix_norm = make_norm(half, self.dtype, "mix_norm")
        self.mix = Attention(half, self.dtype)
        self.mlp_norm = make_norm(half, self.dtype, "mlp_norm")
        self.mlp = MLP(half, self.dtype)

    def __call__(self, x: Sequence, at: Places, forward: bool = True) -> Sequence:
        """Return the output, or where not `forward` the input of which `x` is the output."""
        a, b = jnp.split(x, 2, axis=-1)
        if forward:
            a = a + self.mix(self.mix_norm(b), *at)
            b = b + self.mlp(self.mlp_norm(a))
        else:
            b = b - self.mlp(self.mlp_norm(a))
            a = a - self.mix(self.mix_norm(b), *at)
        return jnp.concatenate([a, b], axis=-1)


class ReversibleMemory(ChainPeer):
    """The state is K rows."""

    KIND = "chain"

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        self.blocks = [Coupling(stack, dtype) for _ in range(stack.layers)]
        self.first = self.param("first", EMBEDDING_INIT, (self.dials.vectors, stack.width))
        self.blank = self.param("blank", EMBEDDING_INIT, (self.config.chunk_length, stack.width))

    def run(self, x: Sequence, valid: Bool[Array, "N T"], forward: bool = True) -> Sequence:
        """Run the reversible stack, forward or backward; the output is float32."""
        at = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0), valid
        blocks, x = self.blocks[:: 1 if forward else -1], x.astype(jnp.float32)
        if self.is_initializing() or not self.dials.recompute:
            for block in blocks:
                x = block(x, at, forward)
            return x
        pure, variables = zip(*(block.unbind() for block in blocks), strict=True)
        return run_blocks(pure, forward, variables, x, at)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        first = self.first.astype(jnp.dtype(self.config.dtype))
        return {STATE: jnp.broadcast_to(first, (batch, *first.shape))}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Leaves:
        """See `Peer.update`."""
        x, state = self.embed_tokens(tokens, valid), leaves[STATE]
        seen = jnp.pad(valid, ((0, 0), (0, state.shape[1])), constant_values=True)
        after = self.run(jnp.concatenate([x, state], axis=1), seen)[:, tokens.shape[1] :]
        return {STATE: after.astype(state.dtype)}

    def unfold(
        self, state: Float[Array, "N K D"]
    ) -> tuple[Float[Array, "N L D"], Float[Array, "N K D"]]:
        """Return what is found at the tokens of the last chunk, and the state before it."""
        blank = jnp.broadcast_to(self.blank.astype(state.dtype), (len(state), *self.blank.shape))
        x = jnp.concatenate([blank, state], axis=1)
        x = self.run(x, jnp.ones(x.shape[:2], bool), forward=False).astype(state.dtype)
        return x[:, : len(self.blank)], x[:, len(self.blank) :]

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        state, rows = leaves[STATE], [leaves[STATE]]
        for _ in range(self.dials.unfolded):
            text, state = self.unfold(state)
            rows.insert(0, text)
        return self.read_rows(jnp.concatenate(rows, axis=1), None, x, valid)

    def auxiliary_losses(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> tuple[Float[Array, "N L"], Float[Array, " N"]]:
        """Return nats of the last chunk, padded at its end, and mean squares of the cycle's error.

        The cycle writes the likeliest tokens into the state before the chunk.
        """
        text, before = self.unfold(leaves[STATE])
        text = text[:, : tokens.shape[1]]
        nats, _ = self.head.token_losses(text, tokens)
        again = self.update({STATE: before}, jnp.argmax(self.head(text), axis=-1), valid)[STATE]
        return jnp.where(valid, nats, 0), jnp.square(again - leaves[STATE]).mean(axis=(1, 2))

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        return {STATE: (self.dials.vectors * self.config.decoder.width, number_bits(self.config))}


Blocks, Variables = tuple[Coupling, ...], tuple[Any, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_blocks(
    blocks: Blocks, forward: bool, variables: Variables, x: Sequence, at: Places
) -> Sequence:
    """Run layers one after another; the gradient is computed from the output alone."""
    for block, own in zip(blocks, variables, strict=True):
        x = jnp.asarray(block.apply(own, x, at, forward))
    return x


def _run_and_keep(
    blocks: Blocks, forward: bool, variables: Variables, x: jax.Array, at: Places
) -> tuple[jax.Array, Variables]:
    after = run_blocks(blocks, forward, variables, x, at)
    return after, (variables, after, at)


def _pull_back(blocks: Blocks, forward: bool, kept: Variables, slope: jax.Array) -> Variables:
    variables, x, at = kept
    found = []
    for block, own in zip(blocks[::-1], variables[::-1], strict=True):
        x = block.apply(own, x, at, not forward)
        _, pull = jax.vjp(lambda own, x, block=block: block.apply(own, x, at, forward), own, x)
        of_block, slope = pull(slope)
        found.insert(0, of_block)
    return tuple(found), slope, None


run_blocks.defvjp(_run_and_keep, _pull_back)

ADAPTER = peer(
    "r3mem",
    ReversibleMemory,
    "A reversible stack writes a chunk into rows of memory; run backward, it reconstructs the chunk"
    " from them.",
    published="R3Mem: Bridging Memory Retention and Retrieval via Reversible Compression, arXiv"
    " 2502.15957",
    dials=Dials,
    tiny={"vectors": 2},
    unclaimed="perplexity of long texts, and scores in retrieval and dialogue with Llama models",
)
