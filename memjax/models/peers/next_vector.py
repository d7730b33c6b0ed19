"""Models of the next vector, and the large concept model (LCM; Barrault et al. 2024, arXiv
2412.08821).

An autoencoder turns text into vectors, and a causal transformer over the vectors of earlier text
predicts those of the text that follows. Here the vectors of earlier chunks are the memory. The
transformer reads them and then the start input of a chunk, which has the marks of its place and its
task, so that a chunk to recall can be predicted too. The prediction is decoded, and the tokens of
the chunk are read behind it: it is all that the decoder has of earlier text.

LCM: the vector of the chunk encoder (models/encoder.py) is a concept. Concepts are normalised by a
median and an interquartile range (`robust_scale`), and the prediction is a linear map of the vector
model's state. CALM has a file of its own (calm.py).

The papers train the autoencoder first and freeze it, and then train the vector model by losses on
vectors (next_vector_losses.py). Here all is trained by the nats of tokens, through the prediction;
`next_vectors` returns what those losses compare. The frozen form of LCM is a stage whose `encoder`
comes from an autoencoder and is not trained.

Not claimed: the sentence vectors of SONAR, and the languages of the published model.

Shapes: N chunk, M entry, P vector of a chunk, E its width, R row that the decoder reads, L token, D
width, S sample, B sequence, C chunk of a sequence.
"""

import abc
import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear, make_backbone
from memjax.models.encoder import EMBEDDING_INIT, Encoder
from memjax.models.memory import VALID, VECTORS, number_bits, state_at
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import BankPeer, Leaves, flat_rows
from memjax.models.request import PREDICT


class NextVector(BankPeer):
    """An entry is the vectors of a chunk, and a decoder reads a prediction of the next ones."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """P and E: vectors of a chunk, and numbers of each."""

    @abc.abstractmethod
    def predict(self, states: Float[Array, "N P D"]) -> Float[Array, "N P E"]:
        """Return vectors from the states of the vector model."""

    @abc.abstractmethod
    def expand(self, vectors: Float[Array, "N P E"]) -> Float[Array, "N R D"]:
        """Return the rows that the decoder reads for vectors."""

    def setup_vectors(self) -> None:
        """Make the decoder and the vector model."""
        self.setup_decoder()
        config, patches = self.config, self.shape[0]
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        self.into = Linear(width, use_bias=True, dtype=dtype)
        self.vector_model = make_backbone(config, config.decoder, patches * self.chunks)
        self.asked = self.param("asked", EMBEDDING_INIT, (patches, width))

    def normal(self, vectors: Float[Array, "*any E"]) -> Float[Array, "*any E"]:
        """Return vectors as the vector model reads them."""
        return vectors

    def next_of(self, leaves: Leaves, start: Float[Array, "N D"]) -> Float[Array, "N P E"]:
        """Predict the vectors of the chunk that is decoded."""
        vectors = self.into(self.normal(leaves[VECTORS]))
        place = jnp.minimum(jnp.arange(vectors.shape[1]), self.chunks - 1)
        vectors = vectors + self.chunk_position.astype(vectors.dtype)[place][:, None]
        rows, filled = flat_rows(vectors, leaves[VALID])
        asked = start[:, None] + self.asked.astype(start.dtype)
        seen = jnp.pad(filled, ((0, 0), (0, asked.shape[1])), constant_values=True)
        x = jnp.concatenate([rows.astype(asked.dtype), asked], axis=1)
        return self.predict(self.vector_model(x, valid=seen)[:, rows.shape[1] :])

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`; only the first input reaches the vector model."""
        start = state_at(x, jnp.argmax(valid, axis=1))
        return self.read_rows(self.expand(self.next_of(leaves, start)), None, x, valid)

    def next_vectors(
        self, tokens: Int[Array, "B C L"], start: int, samples: int = 1
    ) -> tuple[Float[Array, "S B C P E"], Float[Array, "B C P E"]]:
        """Return predictions of every chunk from those before it, and the vectors themselves.

        Both are as the vector model reads them.

        Args:
          tokens: the chunks.
          start: the id of the start input.
          samples: predictions of each, which differ where the prediction is random.
        """
        batch, chunks, _ = tokens.shape
        entries = self.fold(tokens)
        place = jnp.broadcast_to(jnp.arange(chunks), (batch, chunks))
        leaves, place = self.seen(entries, place), place.ravel()
        first = jnp.full((len(place), 1), start, jnp.int32)
        task = jnp.full_like(place, PREDICT)
        x = self.embed_inputs(first, jnp.ones(first.shape, bool), place, task)[:, 0]
        repeated = {name: jnp.concatenate([leaf] * samples) for name, leaf in leaves.items()}
        found = self.next_of(repeated, jnp.concatenate([x] * samples))
        target = self.normal(entries.leaves[VECTORS])
        return found.reshape(samples, *target.shape), target

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        patches, width = self.shape
        return {VECTORS: (chunks * patches * width, number_bits(self.config))}


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a large concept model."""

    width: int = 0
    """E: numbers of a concept; 0 is the width of `config.model.encoder`."""


class LargeConceptModel(NextVector):
    """A chunk is one vector, and the next one is predicted by a linear map."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_vectors()
        width, dtype = self.shape[1], jnp.dtype(self.config.dtype)
        stack = dataclasses.replace(self.config.encoder, width=width)
        self.encoder = Encoder(dataclasses.replace(self.config, encoder=stack), self.vocab_size)
        self.centre = self.param("centre", nn.initializers.zeros, (width,))
        self.spread = self.param("spread", nn.initializers.ones, (width,))
        self.concept = Linear(width, use_bias=True, dtype=dtype)
        self.bridge = Linear(self.config.decoder.width, use_bias=True, dtype=dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """See `NextVector.shape`."""
        return self.config.memory_vectors, self.dials.width or self.config.encoder.width

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        return {VECTORS: self.encoder(tokens, valid)}

    def normal(self, vectors: Float[Array, "*any E"]) -> Float[Array, "*any E"]:
        """See `NextVector.normal`."""
        return (vectors - self.centre.astype(vectors.dtype)) / self.spread.astype(vectors.dtype)

    def restored(self, vectors: Float[Array, "*any E"]) -> Float[Array, "*any E"]:
        """Undo `normal`."""
        return vectors * self.spread.astype(vectors.dtype) + self.centre.astype(vectors.dtype)

    def predict(self, states: Float[Array, "N P D"]) -> Float[Array, "N P E"]:
        """See `NextVector.predict`."""
        return self.concept(states)

    def expand(self, vectors: Float[Array, "N P E"]) -> Float[Array, "N R D"]:
        """See `NextVector.expand`."""
        return self.bridge(self.restored(vectors))


ADAPTER = peer(
    "lcm",
    LargeConceptModel,
    "A chunk is one vector; that of the next chunk is predicted, and the decoder reads the"
    " prediction.",
    published="Large Concept Models, arXiv 2412.08821",
    dials=Dials,
    sized="width",
    tiny={"width": 8},
    trainable=((r"^(centre|spread)$", False), (".*", True)),
    unclaimed="the sentence vectors of SONAR, and its languages",
)
