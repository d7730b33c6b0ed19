"""Cartridges (Eyuboglu et al. 2025, arXiv 2506.06266): trained keys and values for one text.

An entry is the keys and values of p positions in all layers of a frozen language model. They begin
as those of the first p tokens of a chunk, and some steps of gradient descent change them. The loss
is that of self-study: a teacher, the same model with the chunk in its context, and a student, the
same model behind the entry, both read a text about the chunk, and the student's scores are brought
close to the teacher's: - sum p log q over the most likely tokens of the teacher. The first
positions can stay as they began, because all later text attends to them.

The text that both read is the chunk once more, since a small language model invents no
conversations about it. Without `distil` the loss is that of the chunk's own next tokens, for which
the paper found worse memories. The number of steps is small and fixed here, so that a write is part
of a training step, and each chunk has its own entry; published is one for a whole corpus, over
epochs. Entries were trained alone, and are read one behind another from position 0 on. Keys are
trained as they are rotated in their own chunk, and stored without a rotation. A text of fewer than
p tokens leaves the other positions at 0 in the beginning. The gradient does not pass through the
steps: only marks of place and task are trained by other losses.

Not claimed: 38.6 times less memory at equal quality, and conversations about long corpora.

Shapes: N chunk or decoded chunk, J layer, G key and value head, P stored position, E head width, L
token, R likely token, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from memjax.layers.attention import KeyValues
from memjax.models.peers.adapters import FROZEN_LM, LM_PARTS, peer
from memjax.models.peers.kv_memory import KeyValueBank
from memjax.models.peers.peer import Leaves
from memjax.models.peers.per_text import descend


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of cartridges."""

    positions: int = 1
    """P: stored positions of a chunk; one holds as many numbers as two vectors of the decoder's
    width in every layer."""
    frozen: int = 0
    """First positions of a chunk that stay as they began; published is 1, of many more."""
    steps: int = 8
    """Gradient steps of a write."""
    rate: float = 0.02
    """Learning rate of these steps; the published one is 1e-4 with many more steps."""
    distil: bool = True
    """Learn the scores of a teacher that reads the chunk; False learns the chunk's next tokens."""
    top: int = 20
    """R: most likely tokens of the teacher that the loss is over."""


class Cartridges(KeyValueBank):
    """An entry is keys and values, found by gradient steps."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_lm_decoder()

    @property
    def vectors(self) -> int:
        """See `KeyValueBank.vectors`."""
        return self.dials.positions

    def places(self, filled: Bool[Array, "N M"]) -> tuple[Int[Array, "N M P"], Int[Array, " N"]]:
        """See `KeyValueBank.places`."""
        return self.in_order(filled, self.vectors, 0)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        x = self.embed_tokens(tokens, valid)
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        _, text = self.backbone.read(x, positions, valid)
        rows = first_rows(text, valid, self.vectors)
        if self.is_initializing():
            # Parameters cannot be made inside a gradient.
            self.head(self.behind(rows, tokens, valid))
        elif self.dials.steps:
            rows = self.train(rows, tokens, valid, *self.targets(text, tokens, valid))
        at = jnp.broadcast_to(jnp.arange(self.vectors), (len(tokens), self.vectors))
        return jax.lax.stop_gradient(self.entry(rows, at))

    def behind(
        self, rows: KeyValues, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L D"]:
        """Return the states of a text behind the rows of one entry."""
        filled = jnp.ones((len(tokens), self.vectors), bool)
        first = jnp.full(len(tokens), self.vectors)
        return self.read_behind(rows, filled, first, self.embed_tokens(tokens, valid), valid)[0]

    def targets(
        self, text: KeyValues, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> tuple[Int[Array, "N L R"], Float[Array, "N L R"]]:
        """Return the tokens that each state is to find likely, and their weights.

        Args:
          text: keys and values of the chunk.
          tokens: the chunk.
          valid: False at padding.
        """
        if not self.dials.distil:
            ids = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
            weights = jnp.pad(valid[:, 1:] & valid[:, :-1], ((0, 0), (0, 1)))
            return ids[..., None], weights[..., None].astype(jnp.float32)
        x = self.embed_tokens(tokens, valid)
        states, _ = self.read_behind(text, valid, valid.sum(axis=1), x, valid)
        weights, ids = jax.lax.top_k(
            jax.nn.softmax(self.head(states)), min(self.dials.top, self.vocab_size)
        )
        return ids, weights * valid[..., None]

    def train(
        self,
        rows: KeyValues,
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
        ids: Int[Array, "N L R"],
        weights: Float[Array, "N L R"],
    ) -> KeyValues:
        """Return rows [J, N, G, P, E] after all steps, those of every chunk by themselves."""
        optimizer = optax.adam(self.dials.rate)
        moves = jnp.arange(self.vectors) >= self.dials.frozen

        def loss(module: "Cartridges", rows: KeyValues) -> tuple[jax.Array, None]:
            logits = module.head(module.behind(rows, tokens, valid))
            return jnp.sum(mean_loss(logits, ids, weights, valid)), None

        def moved(change: KeyValues, _: None) -> KeyValues:
            return jax.tree.map(lambda x: jnp.where(moves[:, None], x, 0), change)

        return descend(self, loss, rows, optimizer, self.dials.steps, moved)


def first_rows(text: KeyValues, valid: Bool[Array, "N L"], count: int) -> KeyValues:
    """Return keys and values of the first `count` real positions; 0 behind the last one."""
    place = jnp.arange(count)
    order = jnp.argsort(~valid, axis=1, stable=True)[:, jnp.minimum(place, valid.shape[1] - 1)]
    real = place < valid.sum(axis=1, keepdims=True)
    at, kept = (x[None, :, None, :, None] for x in (order, real))
    return KeyValues(*(jnp.where(kept, jnp.take_along_axis(x, at, axis=3), 0) for x in text))


def mean_loss(
    logits: Float[Array, "N L V"],
    ids: Int[Array, "N L R"],
    weights: Float[Array, "N L R"],
    valid: Bool[Array, "N L"],
) -> Float[Array, " N"]:
    """Return the nats of weighted tokens, as means over the real tokens of each chunk."""
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1)
    return -jnp.sum(weights * found, axis=(1, 2)) / jnp.maximum(valid.sum(axis=1), 1)


ADAPTER = peer(
    "cartridges",
    Cartridges,
    "Keys and values of a few positions of each chunk are trained when it is written, for a frozen"
    " language model that reads them.",
    published="Cartridges: Lightweight and general-purpose long context representations via"
    " self-study, arXiv 2506.06266",
    dials=Dials,
    sized="positions",
    tiny={"positions": 2, "steps": 2},
    lm_parts=LM_PARTS,
    trainable=FROZEN_LM,
    unclaimed="38.6 times less memory at equal quality, and conversations about long corpora",
)
