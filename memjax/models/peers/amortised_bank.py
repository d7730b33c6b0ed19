"""Memory of amortised contexts (MAC; Tack et al. 2024, arXiv 2403.04317), and a reconstruction of a
compression memory for continual knowledge (CMT; Li et al. 2024, arXiv 2412.07393).

A writer reads a chunk, and K learned vectors read its states: after a map and a network of its own
for each vector they are the entry. A question is written to K vectors in the same way; these read
all entries in a few blocks of attention without positions, so the entries are a set. Each of the K
results becomes a few positions before the tokens of a frozen language model, as keys and values of
every layer. A read therefore costs the same after any number of chunks.

The question of an input is the causal state of a second stack at it: an input then has a prefix of
its own, from the inputs so far alone. With `by_input` off, the first input gives the prefix of all.
Before any text the prefix is that of the question. `marks` is ours: it adds a vector for the age of
an entry, without which no chunk can be found by its place.

CMT, of which the abstract alone was read, has the writer of ICAE, and a key for an entry: the k
entries whose keys match the question best are read, with the weights of the match. Its two losses
are the functions `memory_aware` and `self_matching`; they are no part of any objective.

The published windows of MAC are counted by the question's length and not by the bank; there are no
windows here.

Not claimed: scores of Llama and GPT-2 models on streams of questions.

Shapes: B question, N chunk or decoded chunk, M entry, K vector, L token, D width, Q question (L or
1), R row of the bank, H head, E head width, G key and value head, Y layer, P position of a prefix,
F matching width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers import MLP, Linear, make_backbone
from memjax.layers.attention import KeyValues
from memjax.layers.norm import make_norm
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, VECTORS, number_bits, state_at
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.icae import RANK
from memjax.models.peers.peer import BankPeer, Leaves

KEY = "key"
"""The leaf of the keys of entries."""
FAR = -1e9
"""The logarithm of the weight of an entry that is not read."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a memory of amortised contexts."""

    vectors: int = 4
    """K: vectors of an entry and of a question; published are 12."""
    blocks: int = 2
    """Blocks of the writer's vectors and of the aggregator; published are 4."""
    positions: int = 2
    """Positions of a prefix that a vector becomes."""
    by_input: bool = True
    """Every input has a question and a prefix, in place of one of the first input for all."""
    marks: bool = False
    """Add a learned vector to an entry for its age."""


@dataclasses.dataclass(frozen=True)
class CmtDials(Dials):
    """Settings of the reconstruction of CMT."""

    chosen: int = 4
    """Entries that a question reads; 0 is all."""
    key_width: int = 32
    """F."""


class Separate(nn.Module):
    """A linear map of its own for each of the vectors."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*any K D"]) -> Float[Array, "*any K O"]:
        shape = (*x.shape[-2:], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=(0,)), shape)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-2], self.features))
        y = jnp.einsum("...kd,kdo->...ko", x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype)


class Reading(nn.Module):
    """A block whose inputs read rows, and not one another.

    It computes q + attention(norm(q), rows), then q + mlp(norm(q)).
    """

    config: Backbone
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, q: Float[Array, "N Q D"], rows: Float[Array, "N R D"], weight: Float[Array, "N #Q R"]
    ) -> Float[Array, "N Q D"]:
        """Args are the inputs, the rows, and the logarithms of their weights, or `FAR`."""
        heads, width = self.config.heads, self.config.width

        def split(x: jax.Array, name: str) -> jax.Array:
            x = Linear(width, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], heads, width // heads)

        query = split(make_norm(self.config, self.dtype, "mix_norm")(q), "query")
        key, value = split(rows, "key"), split(rows, "value")
        scores = jnp.einsum("NQHE,NRHE->NHQR", query, key) * (width // heads) ** -0.5
        share = jax.nn.softmax(scores.astype(jnp.float32) + weight[:, None], axis=-1)
        # Where no row is read, the softmax is over rows that are not there.
        share = jnp.where(weight[:, None] > FAR / 2, share, 0).astype(value.dtype)
        mixed = jnp.einsum("NHQR,NRHE->NQHE", share, value)
        q = q + Linear(width, dtype=self.dtype, name="out")(mixed.reshape(*q.shape[:2], width))
        gelu = dataclasses.replace(self.config, mlp="gelu")
        return q + MLP(gelu, self.dtype)(make_norm(self.config, self.dtype, "mlp_norm")(q))


class AmortisedBank(BankPeer):
    """A bank that a question aggregates into a prefix of a frozen language model."""

    dials: Any = Dials()

    def setup_reader(self) -> None:
        """Make the language model, the question's stack, the aggregator and the prefix."""
        self.setup_lm_decoder()
        config, dials, decoder = self.config, self.dials, self.config.decoder
        dtype = jnp.dtype(config.dtype)
        self.question_backbone = make_backbone(config, decoder, config.chunk_length)
        shape = dials.vectors, decoder.width
        self.question_vectors = self.param("question_vectors", EMBEDDING_INIT, shape)
        self.question = Linear(decoder.width, dtype=dtype)
        self.aggregator = [Reading(decoder, dtype) for _ in range(dials.blocks)]
        heads = decoder.kv_heads or decoder.heads
        numbers = 2 * decoder.layers * heads * decoder.attention_head_dim
        self.prefix_in = Separate(decoder.width, dtype)
        self.prefix_out = Separate(dials.positions * numbers, dtype)
        if dials.marks:
            shape = self.chunks, decoder.width
            self.age_mark = self.param("age_mark", EMBEDDING_INIT, shape)

    def vectors_of(self, leaves: Leaves) -> Float[Array, "N M K D"]:
        """Return the vectors of entries."""
        return leaves[VECTORS]

    def weight(self, leaves: Leaves, h: Float[Array, "N Q D"]) -> Float[Array, "N #Q M"]:
        """Return the logarithm of the weight that each question gives each entry, or `FAR`."""
        return jnp.where(leaves[VALID], 0.0, FAR)[:, None]

    def aggregate(self, leaves: Leaves, h: Float[Array, "N Q D"]) -> Float[Array, "N Q K D"]:
        """Return the vectors of questions after they have read the bank."""
        vectors, filled = self.vectors_of(leaves), leaves[VALID]
        count = self.dials.vectors
        if self.dials.marks:
            age = jnp.cumsum(filled[:, ::-1], axis=1)[:, ::-1] - 1
            mark = self.age_mark.astype(vectors.dtype)[jnp.clip(age, 0, self.chunks - 1)]
            vectors = vectors + mark[:, :, None]
        batch, entries, per, width = vectors.shape
        rows = vectors.reshape(batch, entries * per, width)
        q = self.question_vectors.astype(h.dtype) + self.question(h)[:, :, None]
        weight = jnp.repeat(self.weight(leaves, h), per, axis=2)
        if weight.shape[1] > 1:
            weight = jnp.repeat(weight, count, axis=1)
        q = q.reshape(batch, -1, width)
        for block in self.aggregator:
            q = block(q, rows, weight)
        return q.reshape(batch, -1, count, width)

    def prefix(self, q: Float[Array, "N Q K D"]) -> KeyValues:
        """Return what each layer reads: keys and values [Y, N, G, P, E], P of all questions."""
        decoder, batch = self.config.decoder, len(q)
        heads = decoder.kv_heads or decoder.heads
        parts = self.prefix_out(nn.gelu(self.prefix_in(q)))
        shape = batch, -1, 2, decoder.layers, heads, decoder.attention_head_dim
        return KeyValues(*jnp.transpose(parts.reshape(shape), (2, 3, 0, 4, 1, 5)))

    def questions(
        self, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N Q D"]:
        """Return causal states of the inputs, or that of the first one."""
        h = self.question_backbone(x, valid=valid)
        return h if self.dials.by_input else state_at(h, jnp.argmax(valid, axis=1))[:, None]

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        before = self.prefix(self.aggregate(leaves, self.questions(x, valid)))
        length, asked = x.shape[1], before.key.shape[3]
        # An input reads the positions of its own question, and inputs so far.
        own = jnp.eye(length, dtype=bool) if self.dials.by_input else jnp.ones((length, 1), bool)
        own = jnp.repeat(own, asked // own.shape[1], axis=1)
        own = jnp.broadcast_to(own, (len(x), length, asked))
        earlier = jnp.tril(jnp.ones((length, length), bool)) & valid[:, None]
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        readable = jnp.concatenate([own, earlier], axis=2)
        return self.backbone.read_after(x, positions, readable, before)[0]

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        numbers = chunks * self.dials.vectors * self.config.decoder.width
        return {VECTORS: (numbers, number_bits(self.config))}


class Mac(AmortisedBank):
    """The memory of amortised contexts."""

    def setup(self) -> None:
        self.setup_reader()
        config, dials, decoder = self.config, self.dials, self.config.decoder
        dtype = jnp.dtype(config.dtype)
        self.writer_backbone = make_backbone(config, decoder, config.chunk_length)
        shape = dials.vectors, decoder.width
        self.writer_vectors = self.param("writer_vectors", EMBEDDING_INIT, shape)
        self.writer = [Reading(decoder, dtype) for _ in range(dials.blocks)]
        self.written_linear = Linear(decoder.width, dtype=dtype)
        self.written_norm = make_norm(decoder, dtype, "written_norm")
        self.written_in = Separate(decoder.width, dtype)
        self.written_out = Separate(decoder.width, dtype)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        h = self.writer_backbone(self.embed_tokens(tokens, valid), valid=valid)
        u = self.writer_vectors.astype(h.dtype)
        u = jnp.broadcast_to(u, (len(h), *u.shape))
        # The vectors read one another too.
        seen = jnp.pad(valid, ((0, 0), (0, u.shape[1])), constant_values=True)
        weight = jnp.where(seen, 0.0, FAR)[:, None]
        for block in self.writer:
            u = block(u, jnp.concatenate([h, u.astype(h.dtype)], axis=1), weight)
        network = self.written_out(jnp.tanh(self.written_in(self.written_norm(u))))
        return {VECTORS: self.written_linear(u) + network}


class Cmt(AmortisedBank):
    """The reconstruction of CMT: entries are chosen by keys."""

    dials: CmtDials = CmtDials()

    def setup(self) -> None:
        self.setup_reader()
        config, dials, decoder = self.config, self.dials, self.config.decoder
        length = config.chunk_length + dials.vectors
        self.writer_backbone = make_backbone(config, decoder, length)
        shape = dials.vectors, decoder.width
        self.memory_tokens = self.param("memory_tokens", EMBEDDING_INIT, shape)
        self.match_key = Linear(dials.key_width, dtype=jnp.dtype(config.dtype))
        self.match_query = Linear(dials.key_width, dtype=jnp.dtype(config.dtype))

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        x = self.embed_tokens(tokens, valid)
        last = self.memory_tokens.astype(x.dtype)
        last = jnp.broadcast_to(last, (len(x), *last.shape))
        seen = jnp.pad(valid, ((0, 0), (0, self.dials.vectors)), constant_values=True)
        h = self.writer_backbone(jnp.concatenate([x, last], axis=1), valid=seen)
        vectors = h[:, tokens.shape[1] :]
        return {VECTORS: vectors, KEY: self.match_key(vectors.mean(axis=1))}

    def weight(self, leaves: Leaves, h: Float[Array, "N Q D"]) -> Float[Array, "N Q M"]:
        """See `AmortisedBank.weight`."""
        query, filled = self.match_query(h), leaves[VALID][:, None]
        match = jnp.einsum("NQF,NMF->NQM", query, leaves[KEY]) * self.dials.key_width**-0.5
        match = jnp.where(filled, match.astype(jnp.float32), FAR)
        entries, chosen = match.shape[-1], jnp.broadcast_to(filled, match.shape)
        if 0 < self.dials.chosen < entries:
            best = jax.lax.top_k(match, self.dials.chosen)[1]
            chosen &= jax.nn.one_hot(best, entries, dtype=bool).any(axis=-2)
        share = jax.nn.log_softmax(jnp.where(chosen, match, FAR), axis=-1)
        return jnp.where(chosen, share, FAR)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        keys = chunks * self.dials.key_width
        return {**super().ledger(chunks), KEY: (keys, number_bits(self.config))}


def memory_aware(
    nats: Float[Array, "*any"], without: Float[Array, "*any"], margin: float, weight: float
) -> Float[Array, "*any"]:
    """Return nats, and a penalty where a memory does not help by a margin.

    Args:
      nats: of an answer, with memories.
      without: the same without them; it has no gradient.
      margin: nats that a memory is to save.
      weight: of the penalty; 0 is none.
    """
    return nats + weight * jax.nn.relu(margin + nats - jax.lax.stop_gradient(without))


def self_matching(queries: Float[Array, "B F"], keys: Float[Array, "B F"]) -> Float[Array, ""]:
    """Return the mean nats by which questions find their own keys among all of a batch."""
    match = queries @ keys.T * queries.shape[-1] ** -0.5
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(match, axis=-1)))


LM_COPIES = f"{LM_PARTS},backbone:writer_backbone,backbone:question_backbone"
"""Parts from the language model; the stacks of writer and question begin as its own."""

ADAPTER = peer(
    "mac",
    Mac,
    "A chunk is a few vectors; a question turns all chunks into a short prefix of a frozen language"
    " model.",
    published="Online Adaptation of Language Models with a Memory of Amortized Contexts, arXiv"
    " 2403.04317",
    dials=Dials,
    tiny={"vectors": 2, "blocks": 1},
    lm_parts=LM_COPIES,
    trainable=FROZEN_LM,
    unclaimed="scores of Llama and GPT-2 models on streams of questions",
)
CMT_ADAPTER = peer(
    "cmt",
    Cmt,
    "Vectors of the chunks that match a question best become a short prefix of a frozen language"
    " model.",
    published="CMT: A Memory Compression Method for Continual Knowledge Learning of Large Language"
    " Models, arXiv 2412.07393",
    dials=CmtDials,
    tiny={"vectors": 2, "blocks": 1, "chosen": 1, "key_width": 8},
    lm_parts=LM_COPIES,
    trainable=(
        (r"^writer_backbone/blocks/mix/(query|value)/kernel$", RANK),
        (r"^writer_backbone/", False),
        *FROZEN_LM,
    ),
    unclaimed="scores of Llama models on streams of questions; a reconstruction from the abstract",
)
