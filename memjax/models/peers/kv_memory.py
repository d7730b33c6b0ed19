"""Memories of keys and values: gist tokens, and 500xCompressor.

Gist tokens (Mu et al. 2023, arXiv 2304.08467): K learned rows follow the tokens of a chunk through
the transformer, and later text sees the keys and values of these rows in all layers, and nothing
else of the chunk. The paper masks one pass over `[x; gists; text]`; here the chunk is read alone,
its keys and values are stored, and a decoded chunk is read behind those of all chunks before it.
Both forms are equal (tests). Gists of a chunk do not see gists of earlier chunks, so this is a
bank. Text stands where it stood: a chunk and its gists take L + K positions.

500xCompressor (Li et al. 2024, arXiv 2408.03094): the same, with a writer of its own, a copy of the
language model with low-rank adapters, before the language model itself, frozen. Positions count the
stored rows alone. In the published code these begin again at K while the stored keys are rotated by
L to L + K - 1, so that a token stands before what it reads, and padding is scored; neither is
reproduced, since keys are stored without their rotation and rotated where they are read.

Not claimed: instruction following and ROUGE of Llama and FLAN-T5, and question answering at 6x to
480x. The published compressor has adapters of rank 64.

Shapes: B sequence, N chunk, M entry, J layer, G key and value head, K vector, E head width, L
token, P stored row = M * K, D width, T position.
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Backbone, make_backbone, rotate
from memjax.layers.attention import KeyValues
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.peer import BankPeer, Leaves

KEY, VALUE = "key", "value"
"""The leaves of an entry."""
RANK = 16
"""Rank of the adapters of 500xCompressor's writer."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a memory of keys and values."""

    vectors: int = 1
    """K: rows of a chunk whose keys and values are stored; one holds as many numbers as two
    vectors of the decoder's width in every layer."""


@dataclasses.dataclass(frozen=True)
class CompressorDials(Dials):
    """Settings of 500xCompressor."""

    true_positions: bool = False
    """True lets a chunk take L + K positions, as it does with gist tokens."""


class KeyValueBank(BankPeer):
    """An entry is the keys and values of a few positions in all layers, before their rotation."""

    @property
    @abc.abstractmethod
    def vectors(self) -> int:
        """K."""

    @abc.abstractmethod
    def places(self, filled: Bool[Array, "N M"]) -> tuple[Int[Array, "N M K"], Int[Array, " N"]]:
        """Return rotary positions of stored rows, and of the first token behind them."""

    def in_order(
        self, filled: Bool[Array, "N M"], span: int, first: int
    ) -> tuple[Int[Array, "N M K"], Int[Array, " N"]]:
        """Return `places` where every filled entry takes `span` positions, rows from `first` on."""
        before = span * (jnp.cumsum(filled, axis=1) - filled)
        places = before[..., None] + first + jnp.arange(self.vectors)
        return places, span * filled.sum(axis=1)

    def rotate_keys(
        self, key: Float[Array, "N *any T G E"], positions: Int[Array, "N *any T"]
    ) -> Float[Array, "N *any T G E"]:
        """Rotate keys by positions, which may be negative."""
        decoder = self.config.decoder
        flat = positions.reshape(-1, positions.shape[-1])
        turned = rotate(
            key.reshape(*flat.shape, *key.shape[-2:]),
            flat,
            decoder.rope_theta,
            decoder.rope_scaling,
        )
        return turned.reshape(key.shape)

    def entry(self, cache: KeyValues, positions: Int[Array, "N T"]) -> Leaves:
        """Return what is stored of a pass's keys and values at its last K positions.

        Args:
          cache: from `Backbone.read`.
          positions: those of the pass.
        """
        key, value = (jnp.moveaxis(x, 0, 1)[..., -self.vectors :, :] for x in cache)
        back = -jnp.broadcast_to(
            positions[:, None, -self.vectors :], (*key.shape[:2], self.vectors)
        )
        key = jnp.swapaxes(self.rotate_keys(jnp.swapaxes(key, 2, 3), back), 2, 3)
        return {KEY: key, VALUE: value}

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        before, filled, first = self.stored(leaves)
        return self.read_behind(before, filled, first, x, valid)[0]

    def stored(self, leaves: Leaves) -> tuple[KeyValues, Bool[Array, "N P"], Int[Array, " N"]]:
        """Return the rows of a state as a pass reads them, and the position behind them.

        Returns:
          Keys and values [J, N, G, P, E], which of the P are filled, and the position.
        """
        filled = leaves[VALID]
        places, first = self.places(filled)
        # [N, M, J, G, K, E] to [J, N, G, P, E].
        key, value = (
            jnp.where(filled[(..., *(None,) * 4)], leaves[name], 0) for name in (KEY, VALUE)
        )
        turned = jnp.swapaxes(key, 3, 4)
        at = jnp.broadcast_to(places[:, :, None], turned.shape[:4])
        key = jnp.swapaxes(self.rotate_keys(turned, at), 3, 4)
        key, value = (
            jnp.moveaxis(rows, (2, 3), (0, 2)).reshape(
                rows.shape[2], rows.shape[0], rows.shape[3], -1, rows.shape[5]
            )
            for rows in (key, value)
        )
        return KeyValues(key, value), jnp.repeat(filled, self.vectors, axis=1), first

    def read_behind(
        self,
        before: KeyValues,
        filled: Bool[Array, "N P"],
        first: Int[Array, " N"],
        x: Float[Array, "N L D"],
        valid: Bool[Array, "N L"],
    ) -> tuple[Float[Array, "N L D"], KeyValues]:
        """Run the backbone over inputs behind stored rows.

        Args:
          before: keys and values [J, N, G, P, E], rotated.
          filled: which of them are read.
          first: position of the first input.
          x: the inputs.
          valid: False at padding.
        """
        length = x.shape[1]
        own = jnp.tri(length, dtype=bool) & valid[:, None]
        rows = jnp.broadcast_to(filled[:, None], (len(x), length, filled.shape[1]))
        positions = first[:, None] + jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        readable = jnp.concatenate([rows, own | jnp.eye(length, dtype=bool)], axis=2)
        return self.backbone.read_after(x, positions, readable, before)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        decoder = self.config.decoder
        head = (decoder.kv_heads or decoder.heads) * decoder.attention_head_dim
        numbers = chunks * decoder.layers * self.vectors * head
        return dict.fromkeys((KEY, VALUE), (numbers, number_bits(self.config)))


class Gist(KeyValueBank):
    """The transformer that reads the gists also writes them."""

    dials: Any = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        self.make_rows()

    def make_rows(self) -> None:
        """Make the learned rows."""
        shape = self.dials.vectors, self.config.decoder.width
        self.memory_tokens = self.param("memory_tokens", EMBEDDING_INIT, shape)

    @property
    def vectors(self) -> int:
        """See `KeyValueBank.vectors`."""
        return self.dials.vectors

    def places(self, filled: Bool[Array, "N M"]) -> tuple[Int[Array, "N M K"], Int[Array, " N"]]:
        """See `KeyValueBank.places`."""
        length = self.config.chunk_length
        return self.in_order(filled, length + self.vectors, length)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        x = self.embed_tokens(tokens, valid)
        asked = self.memory_tokens.astype(x.dtype)
        asked = jnp.broadcast_to(asked, (len(x), *asked.shape))
        seen = jnp.pad(valid, ((0, 0), (0, self.vectors)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
        _, cache = self.writer.read(jnp.concatenate([x, asked], axis=1), positions, seen)
        return self.entry(cache, positions)

    @property
    def writer(self) -> Backbone:
        """The stack that writes."""
        return self.backbone


class Compressor500(Gist):
    """The frozen language model reads what a copy with adapters writes."""

    dials: Any = CompressorDials()

    def setup(self) -> None:
        self.setup_lm_decoder()
        self.make_rows()
        length = self.config.chunk_length + self.vectors
        self.writer_backbone = make_backbone(self.config, self.config.decoder, length)

    def places(self, filled: Bool[Array, "N M"]) -> tuple[Int[Array, "N M K"], Int[Array, " N"]]:
        """See `KeyValueBank.places`."""
        if self.dials.true_positions:
            return super().places(filled)
        return self.in_order(filled, self.vectors, 0)

    @property
    def writer(self) -> Backbone:
        """The stack that writes."""
        return self.writer_backbone


GIST_ADAPTER = peer(
    "gist",
    Gist,
    "A transformer that reads the keys and values of a few learned rows behind every chunk.",
    published="Learning to Compress Prompts with Gist Tokens, arXiv 2304.08467",
    dials=Dials,
    tiny={"vectors": 2},
    unclaimed="instruction following and ROUGE of Llama and FLAN-T5",
)
COMPRESSOR_ADAPTER = peer(
    "500xcompressor",
    Compressor500,
    "A language model with adapters turns a chunk into keys and values; the same model, frozen,"
    " reads them.",
    published="500xCompressor, arXiv 2408.03094",
    dials=CompressorDials,
    tiny={"vectors": 2},
    lm_parts=f"{LM_PARTS},backbone:writer_backbone",
    trainable=(
        (r"^writer_backbone/blocks/mix/(query|value)/kernel$", RANK),
        (r"^writer_backbone/", False),
        *FROZEN_LM,
    ),
    unclaimed="question answering of Llama models at ratios from 6 to 480",
)
