"""EM-LLM (Fountas et al. 2024, arXiv 2407.09450).

As InfLLM (raw_blocks.py), with blocks that are events. An event begins with a token whose surprise,
its nats after all before it in the chunk, is above the mean and `gamma` standard deviations of
those of the tokens before, within a least and a greatest size. A token's surprise is there when it
has been read, so that borders depend on no later token.

Borders are not refined by the similarity of keys, and no neighbours of a chosen event are read:
both are off in the published setting for Mistral. As published, a token also chooses what those
before it read, which is not reproduced. The state has one bit between each two stored rows of a
chunk, which marks a border. Which tokens are kept of a capped chunk is stated in raw_blocks.py; an
event of which none is kept has no number.

Not claimed: LongBench and InfiniteBench of models with 7B and 8B parameters, and borders as those
that people set.

Shapes: N chunk, M entry, R kept row of a chunk, L token, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.models.memory import VALID
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.peer import Leaves
from memjax.models.peers.raw_blocks import BlockBank, Dials

BORDER = "border"
"""The leaf that marks where one event ends and the next begins."""
LEAST_DEVIATION = 1e-6
"""Added to a standard deviation of surprise, in nats."""


@dataclasses.dataclass(frozen=True)
class EventDials(Dials):
    """Settings of EM-LLM; published are events of 8 to 128 tokens."""

    block: int = 8
    """The greatest number of tokens of an event."""
    least: int = 2
    """The least number of tokens of an event, except the last of a chunk."""
    gamma: float = 1.0
    """Standard deviations above the mean from which a token is a surprise."""
    window: int = 8
    """Tokens before a token that its surprise is compared with."""


class EventMemory(BlockBank):
    """Blocks are events, which begin with a surprise."""

    dials: Any = EventDials()

    @property
    def entry_blocks(self) -> int:
        """See `BlockBank.entry_blocks`."""
        return min(self.rows, -(-self.config.chunk_length // self.dials.least))

    def numbers(
        self,
        states: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
        at: Int[Array, "N R"],
    ) -> Int[Array, "N R"]:
        """See `BlockBank.numbers`."""
        nats, _ = self.head.token_losses(states[:, :-1], tokens[:, 1:])
        begins = event_starts(jnp.pad(nats, ((0, 0), (1, 0))), valid, self.dials)
        event = jnp.take_along_axis(jnp.cumsum(begins, axis=1), at, axis=1)
        return jnp.cumsum(jnp.diff(event, axis=1, prepend=event[:, :1]) != 0, axis=1)

    def marks(self, number: Int[Array, "N R"]) -> Leaves:
        """See `BlockBank.marks`."""
        return {BORDER: number[:, 1:] != number[:, :-1]} if self.rows > 1 else {}

    def stored_numbers(self, leaves: Leaves) -> Int[Array, "N M R"]:
        """See `BlockBank.stored_numbers`."""
        if self.rows == 1:
            return jnp.zeros((*leaves[VALID].shape, 1), jnp.int32)
        return jnp.cumsum(jnp.pad(leaves[BORDER], ((0, 0), (0, 0), (1, 0))), axis=2)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; a mark is one bit."""
        marks = chunks * (self.rows - 1)
        return super().ledger(chunks) | ({BORDER: (marks, 1)} if marks else {})


def event_starts(
    nats: Float[Array, "N L"], valid: Bool[Array, "N L"], dials: EventDials
) -> Bool[Array, "N L"]:
    """Return the tokens that begin an event: the first one, and surprises.

    Args:
      nats: surprise of each token; that of the first real one is not used.
      valid: False at padding.
      dials: sizes of events, and what a surprise is.
    """
    length = nats.shape[1]
    scored = valid & jnp.pad(valid[:, :-1], ((0, 0), (1, 0)))
    before = jnp.tri(length, k=-1, dtype=bool) & ~jnp.tri(length, k=-dials.window - 1, dtype=bool)
    weight = (before & scored[:, None]).astype(jnp.float32)
    number = jnp.maximum(weight.sum(axis=2), 1)
    mean = jnp.einsum("nls,ns->nl", weight, nats) / number
    spread = jnp.einsum("nls,nls->nl", weight, (nats[:, None] - mean[..., None]) ** 2) / number
    level = mean + dials.gamma * (jnp.sqrt(spread) + LEAST_DEVIATION)
    surprise = (nats > level) & weight.any(axis=2)

    def step(
        size: Int[Array, " N"], given: tuple[Bool[Array, " N"], Bool[Array, " N"]]
    ) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
        surprise, real = given
        begins = real & ((size >= dials.block) | (surprise & (size >= dials.least)))
        return jnp.where(begins, 1, size + real), begins

    full = jnp.full(len(nats), dials.block)
    _, begins = jax.lax.scan(step, full, (surprise.T, valid.T))
    return begins.T


ADAPTER = peer(
    "emllm",
    EventMemory,
    "A frozen language model reads events of earlier keys and values in all layers; an event begins"
    " with a surprising token.",
    published="Human-like Episodic Memory for Infinite Context LLMs, arXiv 2407.09450",
    dials=EventDials,
    sized="tokens",
    tiny={"block": 3, "least": 1, "representatives": 1, "most": 2, "piece": 2},
    lm_parts=LM_PARTS,
    trainable=FROZEN_LM,
    unclaimed="LongBench and InfiniteBench of models with 7B and 8B parameters",
)
