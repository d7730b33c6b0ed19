"""In-context autoencoder (ICAE; Ge et al. 2023, arXiv 2307.06945).

K learned tokens follow the tokens of a chunk through a causal language model with low-rank
adapters; what leaves at them is the memory. The same language model without adapters, frozen,
decodes behind the memories of all earlier chunks. The writer is a copy of the language model's
stack, whose own matrices stay frozen too (`writer_backbone`), with adapters by the rules that
`ADAPTER.trainable` gives.

Not claimed: BLEU of Llama models, and the instruction tuning of the published ones.

Shapes: N chunk, M entry, K vector, L token, D width.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import make_backbone
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, VECTORS, number_bits
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.peer import BankPeer, Leaves, flat_rows

RANK = 16
"""Rank of the writer's adapters."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of an in-context autoencoder."""

    vectors: int = 4
    """K: memory tokens of a chunk."""


class InContextAutoencoder(BankPeer):
    """An entry is K states of the writer."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_lm_decoder()
        length = self.config.chunk_length + self.dials.vectors
        self.writer_backbone = make_backbone(self.config, self.config.decoder, length)
        shape = self.dials.vectors, self.config.decoder.width
        self.memory_tokens = self.param("memory_tokens", EMBEDDING_INIT, shape)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        x = self.embed_tokens(tokens, valid)
        asked = self.memory_tokens.astype(x.dtype)
        asked = jnp.broadcast_to(asked, (len(x), *asked.shape))
        seen = jnp.pad(valid, ((0, 0), (0, self.dials.vectors)), constant_values=True)
        h = self.writer_backbone(jnp.concatenate([x, asked], axis=1), valid=seen)
        return {VECTORS: h[:, tokens.shape[1] :]}

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


ADAPTER = peer(
    "icae",
    InContextAutoencoder,
    "A language model with adapters turns a chunk into a few vectors; the same model, frozen, reads"
    " them.",
    published="In-context Autoencoder for Context Compression, arXiv 2307.06945",
    dials=Dials,
    tiny={"vectors": 2},
    lm_parts=f"{LM_PARTS},backbone:writer_backbone",
    trainable=(
        (r"^writer_backbone/blocks/mix/(query|value)/kernel$", RANK),
        (r"^writer_backbone/", False),
        *FROZEN_LM,
    ),
    unclaimed="scores of Llama models, and instruction tuning",
)
