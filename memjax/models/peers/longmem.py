"""LongMem (Wang et al. 2023, arXiv 2306.07174).

A frozen language model writes the keys and values of one of its layers. A side network of half as
many layers, which is trained, reads them: one of its layers retrieves k tokens for each query and
head, in units of neighbours by their mean key, and a learned number for every head weighs this
result and the local one. To what leaves a side layer, the change of the language model's state over
the layers beside it is added, and the language model's head reads the last sum.

In the published code all sequences of a batch read the rows of all, so that each reads the text of
the others; here each reads its own. Side layers begin with outputs of 0, so that the model begins
as the language model; published are copies of every second layer. What is kept of a capped chunk is
stated in raw_kv.py.

Not claimed: perplexities of long books, and in-context learning with thousands of examples.

Shapes: N chunk or decoded chunk, L token, D width.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.far_attention import FarBlock, make_far_backbone
from memjax.models.peers.peer import Leaves
from memjax.models.peers.raw_kv import Dials, OneLayerBank


@dataclasses.dataclass(frozen=True)
class LongMemDials(Dials):
    """Settings of LongMem; published are k = 64 and the keys and values of layer 17 of 24."""

    most: int = 64
    """k: tokens that each query and head reads."""
    unit: int = 4
    """U: neighbouring tokens of a chunk that are retrieved as one."""


class LongMem(OneLayerBank):
    """A side network reads what a frozen language model had of earlier chunks."""

    dials: Any = LongMemDials()

    def setup(self) -> None:
        self.setup_lm_decoder(stack=False)
        model, stack = self.config, self.config.decoder
        self.backbone = make_far_backbone(model)
        features = *stack.features, "zero_outputs"
        side = dataclasses.replace(stack, features=tuple(dict.fromkeys(features)))
        reading, dtype = self.reading_block(), jnp.dtype(model.dtype)
        self.side = [
            (reading if number == self.reading else FarBlock)(side, model.chunk_length, dtype)
            for number in range(self.side_layers)
        ]

    @property
    def side_layers(self) -> int:
        """Layers of the side network."""
        return max(1, self.config.decoder.layers // 2)

    @property
    def reading(self) -> int:
        """The layer of the side network that stands beside the stored one."""
        return self.layer * self.side_layers // self.config.decoder.layers

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        _, local = self.backbone.read_far(self.embed_tokens(tokens, valid), valid)
        key, value, received = (x[self.layer] for x in (local.key, local.value, local.received))
        return self.entry(key, value, received, valid)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        _, local = self.backbone.read_far(x, valid)
        x, far = x.astype(jnp.float32), self.far(leaves)
        states = jnp.concatenate([x[None], local.state])
        for number, block in enumerate(self.side):
            first, end = (
                at * self.config.decoder.layers // self.side_layers for at in (number, number + 1)
            )
            x, _ = block.read_far(x, valid, far if number == self.reading else None)
            x = x + states[end] - states[first]
        return self.backbone.finish(x)


ADAPTER = peer(
    "longmem",
    LongMem,
    "A trained side network reads the keys and values of one layer of a frozen language model.",
    published="Augmenting Language Models with Long-Term Memory, arXiv 2306.07174",
    dials=LongMemDials,
    sized="tokens",
    tiny={"most": 4, "unit": 2},
    lm_parts=LM_PARTS,
    trainable=FROZEN_LM,
    unclaimed="perplexities of long books, and in-context learning with thousands of examples",
)
