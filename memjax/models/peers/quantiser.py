"""A quantiser for any memory's vectors, and memory bank compression (MBC; Katraouras and Rafailidis
2026, arXiv 2601.00756): MAC whose bank holds whole numbers.

A vector is stored as the number of the nearest code of a book. What is read is that code; its
gradient is passed to the vector as if there were no quantiser, and the book has none of it. The
book learns by a loss of its own, `|code - sg(v)|^2 + 0.25 |sg(code) - v|^2`, whose gradient joins
that of the objectives wherever a generator is given, which is in training.

A state holds numbers alone. The states that are read in training have the codes beside them, as
whole numbers have no gradient. The published reset of unused codes depends on counts over steps; it
is the functions `usage` and `reset`, which nothing here calls.

The language model's keys and values have low-rank adapters (`ADAPTER.trainable`). They are those of
all layers; published are the last six, with a dropout.

Not claimed: scores of Llama and GPT-2 models on streams of questions.

Shapes: B sequence, N chunk or decoded chunk, M entry, K vector, D width, C code, V vector.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.models.encoder import fold, unfold
from memjax.models.memory import VALID, VECTORS, Memories
from memjax.models.peers.adapters import FROZEN_LM, peer
from memjax.models.peers.amortised_bank import LM_COPIES, Dials, Mac
from memjax.models.peers.icae import RANK
from memjax.models.peers.peer import GENERATOR, Leaves

INDEX = "index"
"""The leaf of the numbers of codes."""
COMMITMENT = 0.25
"""Weight of the part of the quantiser's loss that moves vectors to their codes."""
RARE = 1e-4
"""Share of uses below which a code is replaced."""


@dataclasses.dataclass(frozen=True)
class MbcDials(Dials):
    """Settings of memory bank compression."""

    codes: int = 512
    """C: codes of the book."""
    own_weight: float = 1.0
    """Weight of the quantiser's loss."""


class Quantiser(nn.Module):
    """A book of codes, each vector's nearest one, and the loss by which both meet."""

    codes: int
    width: int

    def setup(self) -> None:
        self.book = self.param("book", _small, (self.codes, self.width))

    def index(self, vectors: Float[Array, "*any D"]) -> Int[Array, "*any"]:
        """Return the numbers of the nearest codes."""
        # The square of the vector is the same for all codes.
        v, book = vectors.astype(jnp.float32), self.book
        far = jnp.sum(book * book, axis=-1) - 2 * v @ book.T
        return jnp.argmin(jax.lax.stop_gradient(far), axis=-1).astype(jnp.int32)

    def code(self, index: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        """Return codes by their numbers; objectives do not move them."""
        return jax.lax.stop_gradient(self.book)[index]

    def __call__(
        self, vectors: Float[Array, "*any D"]
    ) -> tuple[Int[Array, "*any"], Float[Array, "*any D"]]:
        """Return the numbers of the nearest codes, and the codes with the vectors' gradient."""
        index = self.index(vectors)
        # The difference is exactly 0: what is read are the codes themselves.
        return index, self.code(index) + (vectors - jax.lax.stop_gradient(vectors))

    def loss(
        self, vectors: Float[Array, "*any D"], index: Int[Array, "*any"]
    ) -> Float[Array, "*any"]:
        """Return the loss of each vector, by its mean square over the width.

        A sum would be the larger part of every clipped gradient.
        """
        fixed = jax.lax.stop_gradient
        book = jnp.mean((self.book[index] - fixed(vectors)) ** 2, axis=-1)
        return book + COMMITMENT * jnp.mean((self.code(index) - vectors) ** 2, axis=-1)


class Mbc(Mac):
    """MAC with a quantiser between the writer and the bank."""

    dials: MbcDials = MbcDials()

    def setup(self) -> None:
        super().setup()
        self.quantiser = Quantiser(self.dials.codes, self.config.decoder.width)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        return {INDEX: self.quantiser.index(super().encode(tokens, valid)[VECTORS])}

    def written(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"], order: np.ndarray
    ) -> Memories:
        """See `Peer.written`; the codes stand beside their numbers, for the gradient."""
        own, batch = 1 + int(order.max(initial=0)), len(tokens)
        tokens, valid = tokens[:, :own], valid[:, :own]
        vectors = super().encode(fold(tokens), fold(valid))[VECTORS]
        index, codes = self.quantiser(vectors)
        if self.has_rng(GENERATOR) and self.dials.own_weight:
            some = valid.any(axis=-1).reshape(-1, 1)
            loss = jnp.where(some, self.quantiser.loss(vectors, index), 0).mean()
            codes = with_loss(codes, self.dials.own_weight * loss)
        found = {INDEX: unfold(index, batch), VECTORS: unfold(codes, batch)}
        leaves = {name: leaf[:, order] for name, leaf in found.items()}
        leaves[VALID] = valid.any(axis=-1)[:, order]
        return Memories(leaves, jnp.full(batch, len(order), jnp.int32), self.KIND)

    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """See `Memory.at`; a state holds numbers alone."""
        state = super().at(prefixes, count)
        kept = {name: leaf for name, leaf in state.leaves.items() if name != VECTORS}
        return Memories(kept, state.count, self.KIND)

    def vectors_of(self, leaves: Leaves) -> Float[Array, "N M K D"]:
        """See `AmortisedBank.vectors_of`."""
        dtype = jnp.dtype(self.config.dtype)
        if VECTORS in leaves:
            return leaves[VECTORS].astype(dtype)
        return self.quantiser.code(leaves[INDEX]).astype(dtype)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the book is a parameter."""
        bits = max(1, (self.dials.codes - 1).bit_length())
        return {INDEX: (chunks * self.dials.vectors, bits)}


@jax.custom_vjp
def with_loss(x: Float[Array, "*any"], loss: Float[Array, ""]) -> Float[Array, "*any"]:
    """Return `x`; the gradient of a loss joins that of everything that x leads to."""
    return x


with_loss.defvjp(lambda x, loss: (x, jnp.ones_like(loss)), lambda one, gradient: (gradient, one))


def usage(
    share: Float[Array, " C"], index: Int[Array, "*any"], decay: float = 0.99
) -> Float[Array, " C"]:
    """Return the running share of uses of every code after one more batch of numbers."""
    uses = jnp.bincount(index.ravel(), length=len(share)) / index.size
    return decay * share + (1 - decay) * uses


def reset(
    book: Float[Array, "C D"], share: Float[Array, " C"], vectors: Float[Array, "V D"], key: Array
) -> tuple[Float[Array, "C D"], Float[Array, " C"]]:
    """Return a book whose unused codes are vectors at random, with the mean share of uses."""
    unused = share < RARE
    drawn = vectors[jax.random.randint(key, (len(book),), 0, len(vectors))]
    return jnp.where(unused[:, None], drawn, book), jnp.where(unused, share.mean(), share)


def _small(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1 / shape[0], maxval=1 / shape[0])


ADAPTER = peer(
    "mbc",
    Mbc,
    "A chunk is a few numbers of codes; a question turns the codes of all chunks into a short"
    " prefix of a language model with adapters.",
    published="Memory Bank Compression for Continual Adaptation of Large Language Models, arXiv"
    " 2601.00756",
    dials=MbcDials,
    # A number has so few bits that a budget would buy more vectors than a chunk has tokens.
    sized="",
    tiny={"vectors": 2, "blocks": 1, "codes": 16},
    lm_parts=LM_COPIES,
    trainable=((r"^backbone/blocks/mix/(key|value)/kernel$", RANK), *FROZEN_LM),
    unclaimed="scores of Llama and GPT-2 models on streams of questions",
)
