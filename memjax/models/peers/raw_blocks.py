"""InfLLM (Xiao et al. 2024, arXiv 2402.04617), and parts for blocks of raw keys and values.

All layers of a frozen language model keep the keys and values of earlier text, in blocks. A few
tokens represent a block, those whose keys have the highest mean score with the queries from their
own on, and the mean of their keys is the block's key. The blocks are read whose keys have the
highest scores with a mean query, summed over heads, and the first block of the text. Everything
that is read stands at one distance, and one softmax is over it and the local tokens.

As published, the mean is over all queries of a piece of text, so that a token chooses what those
before it read. Here it is over a token's own query and those before it. A chunk, which is the piece
and the window, is read alone, without a window over the one before, so that this is a bank.

Rows of a block have no order when they are read. Each layer stores them by the scores that make
representatives, so that these are the first, and no list of them is stored. By default all tokens
are kept, as published. Capped, the same scores, as means over the layers, decide which tokens of a
chunk are kept: text to which the chunk itself attends is the best guess of what later text will
attend to. Blocks are then of neighbours among these.

Not claimed: passkeys in a million tokens, and InfiniteBench of models with 7B parameters.

Shapes: N chunk or decoded chunk, M entry, J layer, R kept row of a chunk, P stored row = M * R, U
block, G key and value head, H head, E head width, L token, D width.
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.far_attention import Far, FarAttention, highest, make_far_backbone
from memjax.models.peers.peer import MASKED, BankPeer, Leaves
from memjax.models.peers.raw_kv import KEY, VALUE, are_there, kept_rows, most_attended, rows_at


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of InfLLM; published are blocks of 128 tokens and windows of 4,096."""

    tokens: int = 0
    """R: kept tokens of a chunk; 0 keeps all."""
    block: int = 4
    """Tokens of a block."""
    representatives: int = 2
    """Tokens that represent a block; published are 4."""
    most: int = 8
    """Blocks that are read; published are 16."""
    piece: int = 8
    """Queries whose mean chooses blocks: a token's own and those before it."""
    first: bool = True
    """The first block that is stored is one of those that are read."""


class BlockReader(FarAttention):
    """Attention to the blocks with the highest scores, the same for all heads.

    Attributes:
      entry_blocks: the most blocks of an entry.
      rows: R.
      representatives: as the dial, and so are the others.
    """

    entry_blocks: int = 1
    rows: int = 1
    representatives: int = 1
    most: int = 1
    piece: int = 1
    first: bool = True

    def chosen(
        self,
        query: Float[Array, "N L H E"],
        key: Float[Array, "N P H E"],
        far: Far,
        valid: Bool[Array, "N L"],
    ) -> Bool[Array, "N 1 L P"]:
        """See `FarAttention.chosen`."""
        assert far.block is not None
        at, blocks = jnp.arange(key.shape[1]), key.shape[1] // self.rows * self.entry_blocks
        begins = jnp.pad(far.block[:, 1:] != far.block[:, :-1], ((0, 0), (1, 0)))
        rank = at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)
        member = (far.block[..., None] == jnp.arange(blocks)) & far.there[..., None]
        speaks = (member & (rank < self.representatives)[..., None]).astype(key.dtype)
        keys = jnp.einsum("npu,nphe->nuhe", speaks, key)
        keys /= jnp.maximum(speaks.sum(axis=1), 1)[..., None, None]
        score = jnp.einsum("nlhe,nuhe->nlu", self.asked(query, valid), keys)
        if self.first:
            score = score.at[:, :, 0].set(-MASKED)
        score = jnp.where(member.any(axis=1)[:, None], score, MASKED)
        read = highest(score, self.most).astype(key.dtype)
        return (jnp.einsum("nlu,npu->nlp", read, member.astype(key.dtype)) > 0)[:, None]

    def asked(
        self, query: Float[Array, "N L H E"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L H E"]:
        """Return the mean of each query and those before it, `piece` in all."""
        length = query.shape[1]
        near = jnp.tri(length, dtype=bool) & ~jnp.tri(length, k=-self.piece, dtype=bool)
        weight = (near & valid[:, None]).astype(query.dtype)
        weight /= jnp.maximum(weight.sum(axis=2, keepdims=True), 1)
        return jnp.einsum("nls,nshe->nlhe", weight, query)


class BlockBank(BankPeer):
    """An entry is the keys and values of all layers at a chunk's tokens, in blocks."""

    dials: Any = Dials()
    reader: type[BlockReader] = BlockReader

    def setup(self) -> None:
        self.setup_lm_decoder(stack=False)
        dials = self.dials
        make = functools.partial(
            self.reader,
            distance=self.config.chunk_length,
            entry_blocks=self.entry_blocks,
            rows=self.rows,
            representatives=dials.representatives,
            most=dials.most,
            piece=dials.piece,
            first=dials.first,
        )
        self.backbone = make_far_backbone(self.config, make)

    @property
    def rows(self) -> int:
        """R."""
        return kept_rows(self.config.chunk_length, self.dials.tokens)

    @property
    @abc.abstractmethod
    def entry_blocks(self) -> int:
        """The most blocks of an entry."""

    @abc.abstractmethod
    def numbers(
        self,
        states: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
        at: Int[Array, "N R"],
    ) -> Int[Array, "N R"]:
        """Return the number of the block of each kept token of a chunk.

        Args:
          states: the language model's.
          tokens: the chunk.
          valid: False at padding.
          at: the kept tokens, in order.
        """

    @abc.abstractmethod
    def stored_numbers(self, leaves: Leaves) -> Int[Array, "N M R"]:
        """Return the number of each row's block in its entry."""

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        states, local = self.backbone.read_far(self.embed_tokens(tokens, valid), valid)
        at, real = most_attended(local.received.mean(axis=0), valid, self.rows)
        number = jnp.where(real, self.numbers(states, tokens, valid, at), self.entry_blocks - 1)
        # In each layer the tokens that represent a block come first, and what is empty last.
        received = jnp.where(real, jnp.take_along_axis(local.received, at[None], axis=2), MASKED)
        order = jnp.lexsort((-received, jnp.broadcast_to(number, received.shape)), axis=-1)
        taken = jnp.take_along_axis(jnp.broadcast_to(at, order.shape), order, axis=2)
        rows = jax.vmap(rows_at, (0, 0, None), out_axes=1)
        leaves = {KEY: rows(local.key, taken, real), VALUE: rows(local.value, taken, real)}
        return {**leaves, **self.marks(number)}

    def marks(self, number: Int[Array, "N R"]) -> Leaves:
        """Return what is stored of the numbers of blocks, by leaf."""
        return {}

    def far(self, leaves: Leaves) -> Far:
        """Return the rows of all entries, by layer."""
        filled = leaves[VALID]
        key, value = (jnp.moveaxis(leaves[name], 2, 0) for name in (KEY, VALUE))
        flat = *key.shape[:2], -1
        there = (are_there(key, value) & filled[..., None]).reshape(flat)
        before = self.entry_blocks * jnp.arange(filled.shape[1])[:, None]
        block = (before + self.stored_numbers(leaves)).reshape(flat[1:])
        key, value = (x.reshape(*flat, *x.shape[4:]) for x in (key, value))
        return Far(key, value, there, jnp.broadcast_to(block, there.shape))

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.backbone.read_far(x, valid, self.far(leaves))[0]

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        decoder = self.config.decoder
        head = (decoder.kv_heads or decoder.heads) * decoder.attention_head_dim
        numbers = chunks * decoder.layers * self.rows * head
        return dict.fromkeys((KEY, VALUE), (numbers, number_bits(self.config)))


class InfLLM(BlockBank):
    """Blocks are of equal size."""

    @property
    def entry_blocks(self) -> int:
        """See `BlockBank.entry_blocks`."""
        return -(-self.rows // self.dials.block)

    def numbers(
        self,
        states: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
        at: Int[Array, "N R"],
    ) -> Int[Array, "N R"]:
        """See `BlockBank.numbers`."""
        return jnp.broadcast_to(jnp.arange(self.rows) // self.dials.block, at.shape)

    def stored_numbers(self, leaves: Leaves) -> Int[Array, "N M R"]:
        """See `BlockBank.stored_numbers`."""
        number = jnp.arange(self.rows) // self.dials.block
        return jnp.broadcast_to(number, (*leaves[VALID].shape, self.rows))


ADAPTER = peer(
    "infllm",
    InfLLM,
    "A frozen language model reads blocks of earlier keys and values in all layers, chosen by a"
    " few tokens that represent each.",
    published="InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context"
    " Memory, arXiv 2402.04617",
    dials=Dials,
    sized="tokens",
    tiny={"block": 2, "representatives": 1, "most": 2, "piece": 2},
    lm_parts=LM_PARTS,
    trainable=FROZEN_LM,
    unclaimed="passkeys in a million tokens, and InfiniteBench of models with 7B parameters",
)
