"""xRAG (Cheng et al. 2024, arXiv 2405.13792): a retriever's vector is an input of a language model.

A frozen retriever gives a chunk one unit vector e, which is what is stored. A small network turns
it into an input, `v = W_2 GELU(W_1 e)`, and the inputs of all earlier chunks stand before the
tokens of a frozen language model. The network is all that is trained.

The retriever is an encoder like the language model's stack, and has its weights unless a trained
retriever is named for the part `encoder`. The second published loss, the divergence of the model
that reads the vector from the one that reads the text, is the function `distillation`; it is no
part of any objective.

Not claimed: scores of Mistral models on questions; copies, as a retriever's vector holds little of
a text's words.

Shapes: N chunk or decoded chunk, M entry, L token, D width, V vocabulary.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear
from memjax.models.encoder import Encoder
from memjax.models.memory import VALID, VECTORS, number_bits
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.peer import BankPeer, Leaves, flat_rows
from memjax.models.retriever import unit


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of xRAG."""

    hidden_ratio: float = 1.0
    """Hidden width of the network, as a multiple of the language model's width."""


class Xrag(BankPeer):
    """An entry is the vector of a frozen retriever."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_lm_decoder()
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width = config.decoder.width
        retriever = dataclasses.replace(
            config, encoder=config.decoder, memory_vectors=1, readout="last", bottleneck=0
        )
        self.encoder = Encoder(retriever, self.vocab_size)
        self.bridge_in = Linear(int(width * self.dials.hidden_ratio), use_bias=True, dtype=dtype)
        self.bridge_out = Linear(width, use_bias=True, dtype=dtype)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`; the retriever has no gradient."""
        e = unit(self.encoder(tokens, valid)[:, 0])
        return {VECTORS: jax.lax.stop_gradient(e).astype(jnp.dtype(self.config.dtype))}

    def bridge(self, e: Float[Array, "N M D"]) -> Float[Array, "N M D"]:
        """Return the inputs that vectors become, which begin at about unit scale."""
        # Entries of a unit vector are as small as its width is large.
        e = e * e.shape[-1] ** 0.5
        return self.bridge_out(nn.gelu(self.bridge_in(e), approximate=False))

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        rows = self.bridge(leaves[VECTORS])[:, :, None]
        return self.read_rows(*flat_rows(rows, leaves[VALID]), x, valid)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        return {VECTORS: (chunks * self.config.decoder.width, number_bits(self.config))}


def distillation(
    teacher: Float[Array, "*any L V"], student: Float[Array, "*any L V"]
) -> Float[Array, "*any L"]:
    """Return the divergence of a student's scores from those of a teacher, which has no gradient.

    Args:
      teacher: of the model that reads the text.
      student: of the model that reads its vector.
    """
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32))
    found = jax.nn.log_softmax(student.astype(jnp.float32))
    return jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1)


ADAPTER = peer(
    "xrag",
    Xrag,
    "A frozen retriever's vector of a chunk becomes one input of a frozen language model.",
    published="xRAG: Extreme Context Compression for Retrieval-augmented Generation with One Token,"
    " arXiv 2405.13792",
    dials=Dials,
    sized="",
    lm_parts=f"{LM_PARTS},embed:encoder/embed,backbone:encoder/backbone",
    trainable=((r"^encoder/", False), *FROZEN_LM),
    unclaimed="scores of Mistral models on questions; copies of text",
)
