"""Larimar: an episodic memory matrix (Das et al. 2024, arXiv 2403.11901), and needles in it (Nelson
et al. 2024, arXiv 2407.01437).

A chunk is encoded as I items z of width C. The memory is a matrix M of K rows that addresses them:
with a learned start `M_0`, `W_0 = z M_0^+` are the addresses of all items so far, and `M = W_0^+ z`
by least squares. A read of a query q has the weights `w = q M^+` and returns `w M`, which is the
part of q in the row space of M. In training, with noise, the weights are drawn around w. The
decoder receives what is read as past positions in every layer, and added to its inputs.

M depends on sums over items alone, `G = sum of w^T w` and `S = sum of w^T z`, which are the state:
`M = (G + l)^-1 S` with a ridge l, in any order of writes. The ridge is far above the rounding of
the sums and leaves the row space as it is. With `prior`, the unwritten part of the start remains:
`M = M_0 + (G + l)^-1 (S - G M_0)`, the mean of a Gaussian posterior.

A query is a causal state of the same encoder over the inputs so far: that of the first input gives
the past positions, that of every input what is added to it. The published query is a text apart.
The place of a chunk is added to its tokens, so the number of written chunks is part of the state.

The published iteration for a pseudo-inverse starts so small that a few steps are far from it; ours
(`iterations`) has a start that converges. The penalty on the weights is the function
`weight_penalty`; it is no part of any objective.

Not claimed: scores of BERT with GPT-2 or GPT-J, fact edits, and needles in a million tokens.

Shapes: B sequence, N decoded chunk, L token, I item of a chunk, K slot, C item width, D width, Y
layer, T = I + L keys; R and Q are rows and columns of any matrix.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear, make_backbone
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import state_at
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import GENERATOR, ChainPeer, Leaves

GRAM = "gram"
"""The leaf of the addresses' products G."""
SUM = "sum"
"""The leaf of the addressed items S."""
COUNT = "count"
"""The leaf of the number of written chunks."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of Larimar."""

    slots: int = 32
    """K: rows of the memory, at most C."""
    items: int = 4
    """I: items of a chunk; published is 1."""
    width: int = 0
    """C: width of an item; 0 is the decoder's."""
    write_ridge: float = 1e-2
    """l."""
    read_ridge: float = 1e-4
    """Added to the diagonal of the product of a memory with itself."""
    iterations: int = 0
    """Steps of the iteration for pseudo-inverses of memories; 0 is a ridge solution."""
    noise: float = 0.0
    """Standard deviation of a read's weights in training."""
    prior: bool = False
    """Keep the unwritten part of the start, in place of the published block write."""


class Larimar(ChainPeer):
    """The state is the sums that give the memory matrix."""

    KIND = "chain"

    dials: Dials = Dials()

    @property
    def width(self) -> int:
        """C."""
        return self.dials.width or self.config.decoder.width

    def setup(self) -> None:
        self.setup_decoder()
        config, dials, dtype = self.config, self.dials, jnp.dtype(self.config.dtype)
        length = config.chunk_length + dials.items
        self.writer_backbone = make_backbone(config, config.decoder, length)
        shape = dials.items, config.decoder.width
        self.item_tokens = self.param("item_tokens", EMBEDDING_INIT, shape)
        self.item = Linear(self.width, use_bias=True, dtype=dtype)
        self.query = Linear(dials.items * self.width, use_bias=True, dtype=dtype)
        self.start_memory = self.param("start_memory", identity, (dials.slots, self.width))
        self.past = Linear(config.decoder.layers * config.decoder.width, dtype=dtype)
        self.added = Linear(config.decoder.width, dtype=dtype)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; nothing is written, so every sum is 0."""
        slots = self.dials.slots
        return {
            GRAM: jnp.zeros((batch, slots, slots)),
            SUM: jnp.zeros((batch, slots, self.width)),
            COUNT: jnp.zeros(batch, jnp.int32),
        }

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        z = self.items(tokens, valid, leaves[COUNT])
        # The start is one matrix for all sequences.
        w = z @ self.inverse(self.start_memory[None])
        return {
            GRAM: leaves[GRAM] + jnp.swapaxes(w, 1, 2) @ w,
            SUM: leaves[SUM] + jnp.swapaxes(w, 1, 2) @ z,
            COUNT: leaves[COUNT] + 1,
        }

    def items(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"], count: Int[Array, " B"]
    ) -> Float[Array, "B I C"]:
        """Return the items of chunks, which stand at given places."""
        x = self.embed_tokens(tokens, valid)
        place = self.chunk_position.astype(x.dtype)[jnp.minimum(count, self.chunks - 1)]
        last = self.item_tokens.astype(x.dtype)
        last = jnp.broadcast_to(last, (len(x), *last.shape))
        seen = jnp.pad(valid, ((0, 0), (0, self.dials.items)), constant_values=True)
        x = jnp.concatenate([x + place[:, None], last], axis=1)
        h = self.writer_backbone(x, valid=seen)[:, tokens.shape[1] :]
        return self.item(h).astype(jnp.float32)

    def inverse(self, matrix: Float[Array, "B K C"]) -> Float[Array, "B C K"]:
        """Return the pseudo-inverse of memories."""
        if self.dials.iterations:
            return iterated_inverse(matrix, self.dials.iterations)
        return ridge_inverse(matrix, self.dials.read_ridge)

    def memory_matrix(self, leaves: Leaves) -> Float[Array, "B K C"]:
        """Return M, the least squares of all that is written."""
        gram, written = leaves[GRAM], leaves[SUM]
        ridge = self.dials.write_ridge * jnp.eye(gram.shape[-1])
        if not self.dials.prior:
            return jnp.linalg.solve(gram + ridge, written)
        change = jnp.linalg.solve(gram + ridge, written - gram @ self.start_memory)
        return self.start_memory + change

    def recall(self, leaves: Leaves, queries: Float[Array, "B Q C"]) -> Float[Array, "B Q C"]:
        """Return what the memory holds of queries."""
        memory = self.memory_matrix(leaves)
        w = queries.astype(jnp.float32) @ self.inverse(memory)
        if self.dials.noise and self.has_rng(GENERATOR):
            w += self.dials.noise * jax.random.normal(self.make_rng(GENERATOR), w.shape)
        return w @ memory

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        batch, length, width = x.shape
        items, layers = self.dials.items, self.config.decoder.layers
        queries = self.query(self.writer_backbone(x, valid=valid))
        found = self.recall(leaves, queries.reshape(batch, length * items, self.width))
        found = found.reshape(batch, length, items * self.width).astype(x.dtype)
        first = state_at(found, jnp.argmax(valid, axis=1)).reshape(batch, items, self.width)
        past = self.past(first).reshape(batch, items, layers, width)
        past = jnp.moveaxis(past, 2, 0)
        seen = jnp.pad(valid, ((0, 0), (items, 0)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
        earlier = jnp.tril(jnp.ones((length, length), bool))
        readable = jnp.pad(earlier, ((0, 0), (items, 0)), constant_values=True) & seen[:, None]
        x = x + self.added(found)
        return self.backbone.read_layers(x, positions, readable, past)[0]

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        slots = self.dials.slots
        return {
            GRAM: (slots * slots, 32),
            SUM: (slots * self.width, 32),
            COUNT: (1, max(chunks, 1).bit_length()),
        }


def identity(key: jax.Array, shape: tuple[int, int]) -> Float[Array, "K C"]:
    """Return the first values of the start: a matrix with ones on the diagonal."""
    return jnp.eye(*shape)


def ridge_inverse(x: Float[Array, "*any R Q"], ridge: float) -> Float[Array, "*any Q R"]:
    """Return the pseudo-inverse of matrices, up to a ridge."""
    gram = x @ jnp.swapaxes(x, -1, -2) + ridge * jnp.eye(x.shape[-2])
    # A symmetric matrix: its inverse times x, turned, is x turned times its inverse.
    return jnp.swapaxes(jnp.linalg.solve(gram, x), -1, -2)


def iterated_inverse(x: Float[Array, "*any R Q"], steps: int) -> Float[Array, "*any Q R"]:
    """Return the pseudo-inverse of matrices by `A <- 2 A - A x A`, which squares the error.

    The start is x turned, divided by its largest sum of a row and of a column: then it converges.
    """
    size = jnp.abs(x)
    bound = size.sum(-1).max(-1) * size.sum(-2).max(-1)
    found = jnp.swapaxes(x, -1, -2) / jnp.maximum(bound, 1e-12)[..., None, None]
    for _ in range(steps):
        found = 2 * found - found @ x @ found
    return found


def weight_penalty(
    weights: Float[Array, "*any K"], noise: float, floor: float = 0.0
) -> Float[Array, "*any"]:
    """Return the divergence of `Normal(weights, noise)` from `Normal(0, 1)`, over slots.

    Args:
      weights: of a read.
      noise: their standard deviation, above 0.
      floor: a slot adds this at least, so that small divergences have no gradient.
    """
    by_slot = 0.5 * (weights**2 + noise**2 - 1) - jnp.log(noise)
    return jnp.maximum(by_slot, floor).sum(-1)


ADAPTER = peer(
    "larimar",
    Larimar,
    "A matrix holds items of chunks by least squares, in any order; a read is a projection on it.",
    published="Larimar: Large Language Models with Episodic Memory Control, arXiv 2403.11901;"
    " Needle in the Haystack for Memory Based Large Language Models, arXiv 2407.01437",
    dials=Dials,
    sized="slots",
    tiny={"slots": 6, "items": 2},
    unclaimed="scores of BERT with GPT-2 or GPT-J, fact edits, and needles in a million tokens",
)
