"""Vectors that are optimised for one text: Cramming (Kuratov et al. 2025, arXiv 2502.13063), after
whose code `cramming` is written, and Memory Tokens (Sastre and Rosa 2025, arXiv 2506.15001), after
whose code `memorytokens` is written.

A write is an optimisation: n vectors stand before a chunk, the language model is frozen, and some
steps of gradient descent lower the mean nats of the chunk's tokens. The vectors are the memory, and
a chunk is decoded by the same frozen model behind those of all chunks before. Cramming takes AdamW
steps on several vectors. Memory Tokens takes plain gradient steps on one vector, whose rate rises
at first, and a text that is reproduced exactly is not changed further: greedy decoding reproduces
it exactly when every token is the most likely one behind the tokens before it.

The number of steps is small and fixed here, so that a write is part of a training step; published
are thousands. Chunks are optimised apart, as one batch. The vectors of several chunks were found
alone, and only marks of place and task are trained. The gradient does not pass through the steps.

Not reproduced: an accuracy that leaves out the first token, a mean of L - 1 tokens that is
multiplied by L, and weight decay that moves other rows of the token table.

Not claimed: the capacities of large language models, and texts of over a thousand tokens.

Shapes: N chunk, M entry, K vector, L token, D width, T = K + L - 1 positions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, VECTORS, number_bits
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.peer import BankPeer, Leaves, flat_rows

BETA = 0.9
"""Both decays of AdamW's moments."""
DECAY = 0.01
"""AdamW's weight decay."""
LOWEST = 1 / 3
"""The first rate of plain steps, as a part of the last one."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of vectors that are optimised for a text."""

    vectors: int = 4
    """K: vectors of a chunk."""
    steps: int = 16
    """Gradient steps of a write."""
    rate: float = 0.1
    """Learning rate of these steps; the published one of Cramming is 0.01 with more steps."""
    warmup: int = 0
    """Steps over which the rate of plain steps rises to `rate`."""
    plain: bool = False
    """Plain gradient steps in place of AdamW."""
    stop: bool = False
    """Leave a chunk's vectors as they are once the chunk is reproduced exactly."""


@dataclasses.dataclass(frozen=True)
class TokenDials(Dials):
    """Settings of memory tokens."""

    vectors: int = 1
    """See `Dials`."""
    rate: float = 5.0
    """See `Dials`."""
    warmup: int = 25
    """See `Dials`."""
    plain: bool = True
    """See `Dials`."""
    stop: bool = True
    """See `Dials`."""


class Cramming(BankPeer):
    """An entry is K vectors, found by gradient steps on the language model's loss."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_lm_decoder()
        shape = self.dials.vectors, self.config.decoder.width
        self.first = self.param("first", EMBEDDING_INIT, shape)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        first = jnp.broadcast_to(self.first, (len(tokens), *self.first.shape))
        if self.is_initializing():
            # Parameters cannot be made inside a gradient.
            self.text_nats(first, tokens, valid)
            return {VECTORS: first}

        def loss(module: "Cramming", vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
            nats, exact = module.text_nats(vectors, tokens, valid)
            return nats.sum(), exact

        def moved(change: jax.Array, exact: jax.Array) -> jax.Array:
            return jnp.where((exact & self.dials.stop)[:, None, None], 0, change)

        vectors = descend(self, loss, first, self.optimizer, self.dials.steps, moved)
        return {VECTORS: jax.lax.stop_gradient(vectors)}

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of a write, whose updates of different chunks are independent."""
        dials = self.dials
        if not dials.plain:
            return optax.adamw(dials.rate, b1=BETA, b2=BETA, weight_decay=DECAY)
        rising = optax.linear_schedule(LOWEST * dials.rate, dials.rate, dials.warmup)
        return optax.sgd(rising if dials.warmup else dials.rate)

    def text_nats(
        self,
        vectors: Float[Array, "N K D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
        """Return the mean nats of each chunk behind its vectors, and whether it is exact.

        A chunk is exact where every token is the most likely one.
        """
        count = vectors.shape[1]
        x = self.embed_tokens(tokens, valid)[:, :-1]
        x = jnp.concatenate([vectors.astype(x.dtype), x], axis=1)
        seen = jnp.pad(valid[:, :-1], ((0, 0), (count, 0)), constant_values=True)
        # A token is scored by the state of the last real token before it, or of the last vector.
        real = jnp.where(valid, jnp.arange(1, tokens.shape[1] + 1), 0)
        before = jnp.pad(jax.lax.cummax(real, axis=1)[:, :-1], ((0, 0), (1, 0)))
        states = self.backbone(x, valid=seen)
        scoring = jnp.take_along_axis(states, count - 1 + before[..., None], axis=1)
        logits = self.head(scoring)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        mean = jnp.sum(nats * valid, axis=1) / jnp.maximum(valid.sum(axis=1), 1)
        return mean, jnp.all((jnp.argmax(logits, axis=-1) == tokens) | ~valid, axis=1)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.read_rows(*flat_rows(leaves[VECTORS], leaves[VALID]), x, valid)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        numbers = chunks * self.dials.vectors * self.config.decoder.width
        return {VECTORS: (numbers, number_bits(self.config))}


class MemoryTokens(Cramming):
    """An entry is one vector by default."""

    dials: Dials = TokenDials()


def descend(
    module: nn.Module,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    first: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    moved: Callable[[Any, Any], Any],
) -> Any:
    """Return values after gradient steps on a loss of a module, as a write takes them.

    Args:
      module: the module.
      loss: from the module and values to a number, a sum over chunks, so that a step of one does
        not depend on the others, and something beside it.
      first: the values to begin with.
      optimizer: of the values.
      steps: their number.
      moved: from an update and what is beside the loss to what is added to the values.
    """

    def step(module: nn.Module, carry: tuple[Any, Any], _: None) -> tuple[Any, None]:
        values, moments = carry
        gradients, beside = nn.grad(loss, module, values, has_aux=True)
        change, moments = optimizer.update(gradients[0], moments, values)
        return (jax.tree.map(jnp.add, values, moved(change, beside)), moments), None

    scan = nn.scan(
        step,
        variable_broadcast="params",
        split_rngs={"params": False},
        length=steps,
        check_constancy_invariants=False,
    )
    (values, _), _ = scan(module, (first, optimizer.init(first)), None)
    return values


_TRAINABLE = ((r"^first$", False), *FROZEN_LM)
_UNCLAIMED = "the capacities of large language models"
CRAMMING = peer(
    "cramming",
    Cramming,
    "Vectors of each chunk are optimised when it is written, for a frozen language model that reads"
    " them.",
    published="Cramming 1568 Tokens into a Single Vector and Back Again, arXiv 2502.13063",
    dials=Dials,
    tiny={"vectors": 2, "steps": 2},
    lm_parts=LM_PARTS,
    trainable=_TRAINABLE,
    unclaimed=_UNCLAIMED,
)
MEMORY_TOKENS = peer(
    "memorytokens",
    MemoryTokens,
    "One vector of each chunk is optimised when it is written, for a frozen language model that"
    " reproduces the chunk from it.",
    published="Memory Tokens: Large Language Models Can Generate Reversible Sentence Embeddings,"
    " arXiv 2506.15001",
    dials=TokenDials,
    sized="",
    tiny={"steps": 2, "rate": 0.5},
    lm_parts=LM_PARTS,
    trainable=_TRAINABLE,
    unclaimed=_UNCLAIMED,
)
