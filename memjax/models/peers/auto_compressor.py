"""AutoCompressor (Chevalier et al. 2023, arXiv 2305.14788), and Memo, which jitters its segments.

K learned rows follow the tokens of a chunk, and one pass runs over `[P; x; s]`: all summaries so
far, the chunk, the learned rows. What leaves at the learned rows is appended to P. A chunk is
decoded behind P, so it reads summaries that were written with all earlier summaries in sight.
Positions restart in every chunk, with P first. With `kept` of 1 only the newest summaries stay,
which overwrites as RMT does. Without `reads_summaries` a write does not read P, and all writes
could be one call. The gradient through P is cut by `config.bptt_chunks`; the paper cuts every 2
segments.

Segments of random length: with a generator, `jitter` moves the end of every segment but the last
back by up to that share of a chunk, and the tokens behind it begin the next segment. A segment
never reaches into a later chunk, so what is decoded never reads itself. Memo (Gupta et al. 2025,
arXiv 2510.19732) is this model with a jitter of 0.2; its agent and its reinforcement learning are
left out.

The learned rows start small and random, not as the end-of-text token. Not claimed: perplexities
of OPT and Llama, in-context learning from compressed demonstrations, and returns of agents.

Shapes: B sequence, W written chunk, N decoded chunk, L token, S entry, K vector, D width, T token
of a segment.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, VECTORS, Memories, number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import GENERATOR, ChainPeer, Leaves, flat_rows, take


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of an AutoCompressor."""

    vectors: int = 4
    """K: summary vectors of a chunk."""
    kept: int = 0
    """Chunks whose summaries are kept; 0 is one less than a training sequence has."""
    reads_summaries: bool = True
    """True lets a write read the summaries before it."""
    jitter: float = 0.0
    """Share of a chunk by which the end of a segment moves in training, at most."""


@dataclasses.dataclass(frozen=True)
class MemoDials(Dials):
    """Settings of Memo."""

    jitter: float = 0.2
    """Share of a chunk by which the end of a segment moves in training, at most."""


class AutoCompressor(ChainPeer):
    """The state is the summaries of the last chunks, oldest first."""

    KIND = "fused"

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        shape = self.dials.vectors, self.config.decoder.width
        self.summary_tokens = self.param("summary_tokens", EMBEDDING_INIT, shape)

    @property
    def slots(self) -> int:
        """S: entries that a state has room for; the oldest leaves first."""
        return self.dials.kept or self.chunks - 1

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; no entry is filled."""
        shape = batch, self.slots, self.dials.vectors, self.config.decoder.width
        empty = jnp.zeros(shape, jnp.dtype(self.config.dtype))
        return {VECTORS: empty, VALID: jnp.zeros(shape[:2], bool)}

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        new = self.summarise(leaves, tokens, valid)
        before, count = leaves[VECTORS], leaves[VALID].sum(axis=1)
        entry = jnp.arange(self.slots)
        moved = take(before, entry + (count == self.slots)[:, None])
        is_new = entry == jnp.minimum(count, self.slots - 1)[:, None]
        vectors = jnp.where(is_new[..., None, None], new[:, None].astype(before.dtype), moved)
        return {VECTORS: vectors, VALID: leaves[VALID] | is_new}

    def summarise(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Float[Array, "B K D"]:
        """Return the summary of a chunk behind a state."""
        x = self.embed_tokens(tokens, valid)
        asked = self.summary_tokens.astype(x.dtype)
        asked = jnp.broadcast_to(asked, (len(x), *asked.shape))
        seen = jnp.pad(valid, ((0, 0), (0, self.dials.vectors)), constant_values=True)
        rows, filled = flat_rows(leaves[VECTORS], leaves[VALID])
        if not self.dials.reads_summaries:
            rows, filled = rows[:, :0], filled[:, :0]
        h = self.read_rows(rows, filled, jnp.concatenate([x, asked], axis=1), seen)
        return h[:, tokens.shape[1] :]

    def embed_tokens(
        self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L D"]:
        """See `Peer.embed_tokens`; in a segment longer than a chunk, the last place repeats."""
        at = jnp.clip(jnp.cumsum(valid, axis=1) - 1, 0, len(self.token_position) - 1)
        x = self.embed(tokens)
        return x + self.token_position.astype(x.dtype)[at]

    def fold(
        self,
        tokens: Int[Array, "B W L"],
        valid: Bool[Array, "B W L"] | None = None,
        state: Memories | None = None,
    ) -> Memories:
        """See `Memory.fold`; with a generator, over segments whose lengths are drawn."""
        most = int(self.dials.jitter * tokens.shape[2])
        if most and self.has_rng(GENERATOR):
            valid = jnp.ones(tokens.shape, bool) if valid is None else valid
            back = jax.random.randint(self.make_rng(GENERATOR), tokens.shape[:2], 0, most + 1)
            tokens, valid = cut_segments(tokens, valid, back.at[:, -1].set(0), most)
        return super().fold(tokens, valid, state)

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
        """See `Memory.ledger`; places of a state that are not filled are not counted."""
        entries = min(chunks, self.slots)
        numbers = entries * self.dials.vectors * self.config.decoder.width
        return {VECTORS: (numbers, number_bits(self.config))}


class Memo(AutoCompressor):
    """An AutoCompressor whose segments have random lengths in training."""

    dials: Dials = MemoDials()


def cut_segments(
    tokens: Int[Array, "B W L"],
    valid: Bool[Array, "B W L"],
    back: Int[Array, "B W"],
    most: int,
) -> tuple[Int[Array, "B W T"], Bool[Array, "B W T"]]:
    """Return the tokens of chunks in segments that end earlier, of T = most + L places.

    Args:
      tokens: the chunks.
      valid: False at padding.
      back: tokens by which each segment ends before its chunk does; the next one begins there.
      most: the largest `back`.
    """
    batch, chunks, length = tokens.shape
    start = jnp.pad(back, ((0, 0), (1, 0)))[:, :-1]
    # The first segment has nothing before it; places before a segment are padding on its left.
    place = jnp.arange(-most, length)
    inside = (place >= -start[..., None]) & (place < length - back[..., None])
    at = jnp.maximum(jnp.arange(chunks)[:, None] * length + place, 0)
    tokens, real = (x.reshape(batch, -1)[:, at] for x in (tokens, valid))
    return tokens, real & inside


PUBLISHED = "Adapting Language Models to Compress Contexts, arXiv 2305.14788"
ADAPTER = peer(
    "autocompressor",
    AutoCompressor,
    "A transformer that appends a few summary vectors per chunk to those that it reads.",
    published=PUBLISHED,
    dials=Dials,
    tiny={"vectors": 2},
    unclaimed="perplexities of OPT and Llama, and learning from compressed demonstrations",
)
MEMO_ADAPTER = peer(
    "memo",
    Memo,
    "An AutoCompressor whose segments have random lengths in training.",
    published="Memo: Training Memory-Efficient Embodied Agents, arXiv 2510.19732",
    dials=MemoDials,
    tiny={"vectors": 2, "jitter": 0.5},
    unclaimed="returns of agents, which are trained by reinforcement learning",
)
