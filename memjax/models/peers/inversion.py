"""Inversion of a frozen vector (vec2text; Morris et al. 2023, arXiv 2310.06816).

A chunk is kept as one vector of a frozen embedder, the mean of a language model's states, of length
1 as vectors of a search index are. A read turns it back into text: a corrector reads the vector,
the vector of its last hypothesis, the difference of the two, and the hypothesis itself, and writes
a better one, some rounds in turn. The decoder reads the states of the last round, a row for each
token, before the tokens of a chunk.

The published models write a hypothesis token by token and keep several. Here all tokens of a
hypothesis are written at once, each the most likely one, and the first round is a round of the same
corrector whose hypothesis is learned rows and no text. As published, no gradient passes through a
hypothesis: rounds before the last one learn only from `inversion_nats`.

Not claimed: the exact texts of the published models, and embedders of search engines.

Shapes: N vector, M entry, R round, L token, D width, s row of a part, T = 3 (s + 1) + 1 + L
positions.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Embed, Linear, make_backbone
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, VECTORS, Memories, number_bits
from memjax.models.peers.adapters import LM_PARTS, peer
from memjax.models.peers.peer import BankPeer, Leaves, flat_rows

PARTS = 3
"""Parts beside text: the vector, that of the hypothesis, and the difference of both."""
ROWS = "rows"
"""The leaf of inverted entries, which are no part of a state."""
SMALLEST = 1e-6
"""The smallest length of a vector that is divided by."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of an inversion."""

    rows: int = 4
    """s: rows that each part is expanded to."""
    rounds: int = 3
    """Corrections after the first hypothesis."""


class Expansion(nn.Module):
    """A network from a vector to rows."""

    rows: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N s D"]:
        width = x.shape[-1]
        h = nn.gelu(Linear(width, use_bias=True, dtype=self.dtype, name="first")(x))
        h = Linear(self.rows * width, use_bias=True, dtype=self.dtype, name="last")(h)
        return h.reshape(len(x), self.rows, width)


class Vec2Text(BankPeer):
    """An entry is one vector, from which the text is guessed when it is read."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_lm_decoder()
        config, parts = self.config, self.dials.rows
        width, length, dtype = config.decoder.width, config.chunk_length, jnp.dtype(config.dtype)
        self.embedder_embed = Embed(self.vocab_size, width, dtype, EMBEDDING_INIT)
        self.embedder_backbone = make_backbone(config, config.decoder, length)
        self.corrector = make_backbone(config, config.decoder, PARTS * (parts + 1) + 1 + length)
        self.expansions = [Expansion(parts, dtype) for _ in range(PARTS)]
        self.separator = self.param("separator", EMBEDDING_INIT, (width,))
        self.draft = self.param("draft", EMBEDDING_INIT, (length, width))

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        return {VECTORS: self.vector_of(tokens, valid)[:, None]}

    def vector_of(
        self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N D"]:
        """Return the frozen vector of each text, of length 1."""
        states = self.embedder_backbone(self.embedder_embed(tokens), valid=valid)
        total = jnp.sum(jnp.where(valid[..., None], states, 0), axis=1)
        length = jnp.linalg.norm(total, axis=-1, keepdims=True)
        return jax.lax.stop_gradient(total / jnp.maximum(length, SMALLEST))

    def correct(
        self,
        vectors: Float[Array, "N D"],
        guess: Float[Array, "N D"],
        hypothesis: Float[Array, "N L D"],
    ) -> Float[Array, "N L D"]:
        """Return the states that score the tokens of a better hypothesis.

        Args:
          vectors: what is inverted.
          guess: the vector of the hypothesis.
          hypothesis: its tokens, embedded.
        """
        # A number of a vector of length 1 has the variance 1 / D, and that of an input has 1.
        scale = vectors.shape[-1] ** 0.5
        parts = [vectors, guess, vectors - guess]
        separator = self.separator.astype(hypothesis.dtype)
        separator = jnp.broadcast_to(separator, (len(vectors), 1, *separator.shape))
        rows = [
            jnp.concatenate([separator, expand(scale * part).astype(hypothesis.dtype)], axis=1)
            for expand, part in zip(self.expansions, parts, strict=True)
        ]
        x = jnp.concatenate([*rows, separator, hypothesis], axis=1)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        # A corrector reads its whole hypothesis, the tokens behind a place too.
        everything = jnp.ones((1, x.shape[1], x.shape[1]), bool)
        h = self.corrector(x, positions, everything)
        return h[:, -hypothesis.shape[1] :]

    def rounds(
        self, vectors: Float[Array, "N D"]
    ) -> tuple[Float[Array, "R N L D"], Int[Array, "R N L"]]:
        """Return the states of each round, and the hypothesis that they score highest."""

        def one_round(
            module: "Vec2Text", carry: tuple[jax.Array, jax.Array], _: None
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
            states = module.correct(vectors, *carry)
            text = jnp.argmax(module.head(states), axis=-1)
            guess = module.vector_of(text, jnp.ones(text.shape, bool))
            return (guess, module.embed(text)), (states, text)

        draft = jnp.broadcast_to(self.draft, (len(vectors), *self.draft.shape))
        scan = nn.scan(
            one_round,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=self.dials.rounds + 1,
            check_constancy_invariants=self.is_initializing(),
        )
        first = jnp.zeros_like(vectors), draft.astype(jnp.dtype(self.config.dtype))
        return scan(self, first, None)[1]

    def inversion_nats(
        self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "R N"]:
        """Return the mean nats of texts in each round of inverting their vectors."""
        states, _ = self.rounds(self.vector_of(tokens, valid))
        labels = jnp.broadcast_to(tokens, states.shape[:3])
        nats = self.head.token_losses(states, labels)[0]
        return jnp.sum(nats * valid, axis=-1) / jnp.maximum(valid.sum(axis=-1), 1)

    def inverted(self, vectors: Float[Array, "B M K D"]) -> Float[Array, "B M L D"]:
        """Return the rows that the decoder reads for each vector."""
        batch, entries, _, width = vectors.shape
        states = self.rounds(vectors.reshape(-1, width))[0][-1]
        return states.reshape(batch, entries, *states.shape[1:])

    def seen(self, prefixes: Memories, visible: Int[Array, "B X"]) -> Leaves:
        """See `Peer.seen`; an entry is inverted once for all chunks that read it."""
        leaves = {**prefixes.leaves, ROWS: self.inverted(prefixes.leaves[VECTORS])}
        return super().seen(Memories(leaves, prefixes.count, self.KIND), visible)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        rows = leaves[ROWS] if ROWS in leaves else self.inverted(leaves[VECTORS])
        return self.read_rows(*flat_rows(rows, leaves[VALID]), x, valid)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        return {VECTORS: (chunks * self.config.decoder.width, number_bits(self.config))}


ADAPTER = peer(
    "vec2text",
    Vec2Text,
    "A chunk is one vector of a frozen embedder; a corrector guesses its text in some rounds, and"
    " the decoder reads the last guess.",
    published="Text Embeddings Reveal (Almost) As Much As Text, arXiv 2310.06816",
    dials=Dials,
    sized="",
    tiny={"rows": 1, "rounds": 1},
    lm_parts=f"{LM_PARTS},embed:embedder_embed,backbone:embedder_backbone",
    trainable=((r"^embedder_", False), (".*", True)),
    unclaimed="the exact texts of the published models, and embedders of search engines",
)
