"""MemoryPrompt (Rakotonirina and Baroni 2024, arXiv 2402.15268): an LSTM writes a soft prompt.

A frozen language model reads a chunk behind P prompt vectors. Its state z at the last token passes
a small network, u = W_2 relu(W_1 z), and an LSTM, (h, c) = LSTM(u, h, c), of P times the model's
width. The vectors of h are the prompt of the next chunk, and h and c are the state. The first chunk
has no prompt. The network begins so small that u is almost 0 whatever the text, so that the model
begins almost as it was.

The paper adds 0.1 times the mean size of the prompt to the loss; that is `prompt_size`, which no
objective uses. The published LSTM has 4 P D (U + P D) weights; with `rank` its matrix is a product
of two, or it would be larger than a small language model. Its forget gate begins open here, by a
bias of 1. In the published code gradients are clipped before they are computed, and the score takes
a masked token for a right one; neither is reproduced.

Not claimed: scores of OPT on facts that change, and the comparison with full context.

Shapes: N sequence, L token, P prompt vector, D width, U width of u.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear
from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.peer import ChainPeer, Leaves, flat_rows, last_valid

PROMPT, CELL = "prompt", "cell"
"""Leaves: h as P vectors, and c."""
SMALL_INIT = nn.initializers.variance_scaling(1e-8, "fan_avg", "uniform")
"""Xavier's first values with a gain of 1e-4."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of MemoryPrompt."""

    vectors: int = 16
    """P: prompt vectors; the state has two numbers for each of theirs."""
    hidden: int = 256
    """U: width of both layers of the small network; published is 1024."""
    rank: int = 64
    """Rank of the LSTM's matrix; 0 is a full one, as published."""


class MemoryPrompt(ChainPeer):
    """The state is a prompt and the cell of the LSTM that writes it."""

    KIND = "fused"

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_lm_decoder()
        dials, dtype = self.dials, jnp.dtype(self.config.dtype)
        self.state_in, self.state_out = (
            Linear(dials.hidden, use_bias=True, dtype=dtype, kernel_init=SMALL_INIT)
            for _ in range(2)
        )
        if dials.rank:
            self.gates_in = Linear(dials.rank, dtype=dtype)
        units = dials.vectors * self.config.decoder.width
        self.gates = Linear(4 * units, use_bias=True, dtype=dtype)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; there is no prompt."""
        shape = batch, self.dials.vectors, self.config.decoder.width
        zeros = jnp.zeros(shape, jnp.dtype(self.config.dtype))
        return {PROMPT: zeros, CELL: zeros, VALID: jnp.zeros((batch, 1), bool)}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Leaves:
        """See `Peer.update`."""
        states = self.read(leaves, self.embed_tokens(tokens, valid), tokens, valid)
        prompt, cell = self.remember(leaves, self.summarise(states, valid))
        return {PROMPT: prompt, CELL: cell, VALID: jnp.ones_like(leaves[VALID])}

    def summarise(
        self, states: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N U"]:
        """Return u of a chunk."""
        return self.state_out(nn.relu(self.state_in(last_valid(states, valid))))

    def remember(
        self, leaves: Leaves, u: Float[Array, "N U"]
    ) -> tuple[Float[Array, "N P D"], Float[Array, "N P D"]]:
        """Return the prompt and the cell after a step of the LSTM."""
        prompt, cell = leaves[PROMPT], leaves[CELL]
        given = jnp.concatenate([u, prompt.reshape(len(u), -1).astype(u.dtype)], axis=1)
        gates = self.gates(self.gates_in(given) if self.dials.rank else given)
        parts = gates.astype(jnp.float32).reshape(len(u), 4, *prompt.shape[1:])
        write, forget, show, new = jnp.moveaxis(parts, 1, 0)
        after = nn.sigmoid(forget + 1) * cell + nn.sigmoid(write) * jnp.tanh(new)
        return (nn.sigmoid(show) * jnp.tanh(after)).astype(prompt.dtype), after.astype(cell.dtype)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.read_rows(*flat_rows(leaves[PROMPT][:, None], leaves[VALID]), x, valid)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        numbers = self.dials.vectors * self.config.decoder.width
        return dict.fromkeys((PROMPT, CELL), (numbers, number_bits(self.config)))


def prompt_size(prompt: Float[Array, "*any P D"], valid: Bool[Array, "*any 1"]) -> jax.Array:
    """Return the mean absolute value of the numbers of prompts; 0 where there is none."""
    sizes = jnp.mean(jnp.abs(prompt), axis=(-2, -1))
    return jnp.sum(sizes * valid[..., 0]) / jnp.maximum(valid.sum(), 1)


ADAPTER = peer(
    "memoryprompt",
    MemoryPrompt,
    "An LSTM turns the last state of each chunk into a soft prompt of a frozen language model.",
    published="MemoryPrompt: A Light Wrapper to Improve Context Tracking in Pre-trained Language"
    " Models, arXiv 2402.15268",
    dials=Dials,
    tiny={"vectors": 2, "hidden": 8, "rank": 4},
    lm_parts=LM_PARTS,
    trainable=FROZEN_LM,
    unclaimed="scores of OPT on facts that change",
)
