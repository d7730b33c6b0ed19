"""Memory model: a causal decoder that reads memories of earlier chunks in place of their tokens (Badger 2026, memory models).

Shapes: B row, C chunk of the row, X chunk to decode, S slot, M memory, K vector, L token, E encoder width, D decoder width,
V vocabulary, T = S*K + L decoder positions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Embed, Head, Linear
from memjax.models.encoder import Encoder, fold, unfold
from memjax.models.stack import make_stack

PREDICT, RETAIN = 0, 1
"""Tasks the decoder's mark tells apart."""

EMBEDDING_INIT = nn.initializers.normal(1.0)
"""Of tokens, positions and marks alike. As large as a normalised memory, so that in every block a position still says what to take
from it: at 0.02 a decoder takes several times the steps to learn to read memories."""

FILLS = {"slots_of_ones": 1.0, "slots_of_zeros": 0.0}

EMPTY = -1
"""Entry of a slot table that holds no memory."""


def earlier_chunks(chunks: int) -> np.ndarray:
    """The slot table [X, S] of reading on: chunk c has the memories of chunks 0..c-1 in slots 0..c-1, the others empty."""
    chunk, slot = np.arange(chunks)[:, None], np.arange(chunks - 1)
    return np.where(slot < chunk, slot, EMPTY)


class MemoryModel(nn.Module):
    """Encoder and decoder. A token reaches later chunks through its chunk's memory and by no other path.

    Attributes:
      config: the model's settings.
      chunks: C, chunks in a row.
      vocabulary: V.
      memory: False builds the control, a decoder whose slots are always empty and that has no encoder.
    """

    config: Model
    chunks: int
    vocabulary: int
    memory: bool = True

    @property
    def slots(self) -> int:
        """S: the last chunk is never read, so one fewer than chunks (published code: as many)."""
        return self.chunks - (self._fill_value is None)

    @property
    def _fill_value(self) -> float | None:
        """What published code puts into a slot without a memory, where the decoder attends to it; None masks it out."""
        return next((value for quirk, value in FILLS.items() if quirk in self.config.compat), None)

    def setup(self) -> None:
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        if self.memory:
            self.encoder = Encoder(config, self.vocabulary)
            if config.encoder.width != width:
                self.bridge = Linear(width, use_bias=True, dtype=dtype)
        self.embed = Embed(self.vocabulary, width, dtype, EMBEDDING_INIT)
        if config.token_positions:
            self.token_position = self.param("token_position", EMBEDDING_INIT, (config.chunk_length, width))
        if config.chunk_positions:
            self.chunk_position = self.param("chunk_position", EMBEDDING_INIT, (self.chunks, width))
        if config.task_mark:
            self.task_mark = self.param("task_mark", EMBEDDING_INIT, (2, width))
        self.backbone = make_stack(config, config.decoder, self.slots * config.vectors + config.chunk_length)
        self.head = Head(width, self.vocabulary, self.embed if config.decoder.tied_head else None)

    def encode(self, tokens: Int[Array, "B M L"], valid: Bool[Array, "B M L"] | None = None) -> Float[Array, "B M K E"]:
        """Memories of all given chunks, in one call."""
        if not self.memory:
            raise ValueError("this model was built with memory=False: it has no encoder")
        valid = None if valid is None else fold(valid)
        return unfold(self.encoder(fold(tokens), valid), tokens.shape[0])

    def hidden(
        self,
        tokens: Int[Array, "B X L"],
        memories: Float[Array, "B M K E"] | None = None,
        slots: Int[Array, "X S"] | None = None,
        chunk: Int[Array, " X"] | None = None,
        task: Int[Array, " X"] | int = PREDICT,
        memory_valid: Bool[Array, "B M"] | None = None,
        token_valid: Bool[Array, "B X L"] | None = None,
    ) -> Float[Array, "B X L D"]:
        """Decoder states at the token positions of all given chunks, in one call; arguments as in `decode`."""
        config = self.config
        batch, n, length = tokens.shape
        if slots is None:
            slots = jnp.asarray(earlier_chunks(self.chunks)[:n])
        if chunk is None:
            chunk = jnp.arange(n)
        x = self.embed(tokens)
        if config.token_positions:
            x += self.token_position.astype(x.dtype)[:length]
        if config.chunk_positions:
            x += self.chunk_position.astype(x.dtype)[chunk][:, None]
        if config.task_mark:
            x += jnp.broadcast_to(self.task_mark.astype(x.dtype)[task], (n, config.decoder.width))[:, None]
        if token_valid is None or "attended_padding" in config.compat:
            token_valid = jnp.ones(tokens.shape, bool)
        in_slots, filled = self._fill(memories, slots, memory_valid, batch, n)
        sequence = jnp.concatenate([in_slots.astype(x.dtype), x], axis=2)
        valid = jnp.concatenate([filled, token_valid], axis=2)
        positions = self._positions(filled, token_valid)
        h = self.backbone(fold(sequence), fold(positions), fold(valid))
        return unfold(h[:, -length:], batch)

    def _fill(
        self, memories: jax.Array | None, slots: jax.Array, memory_valid: jax.Array | None, batch: int, n: int
    ) -> tuple[Float[Array, "B X SK D"], Bool[Array, "B X SK"]]:
        """What stands in each slot position, and where something does."""
        config, width = self.config, self.config.decoder.width
        if "attended_padding" in config.compat:
            memory_valid = None
        count, constant = self.slots * config.vectors, self._fill_value
        if memories is None or not self.memory:
            filled = jnp.full((batch, n, count), constant is not None)
            return jnp.full((batch, n, count, width), constant or 0.0), filled
        if config.encoder.width != width:
            memories = self.bridge(memories)
        slots = jnp.asarray(slots)
        slots = jnp.pad(slots, ((0, 0), (0, self.slots - slots.shape[1])), constant_values=EMPTY)
        at = jnp.maximum(slots, 0)
        filled_BXS = jnp.broadcast_to(slots != EMPTY, (batch, *slots.shape))
        if memory_valid is not None:
            filled_BXS &= jnp.asarray(memory_valid)[:, at]
        x = memories[:, at]
        if config.chunk_positions:
            x += self.chunk_position.astype(x.dtype)[: self.slots, None]
        x = jnp.where(filled_BXS[..., None, None], x, constant or 0.0)
        filled = jnp.repeat(filled_BXS | (constant is not None), config.vectors, axis=-1)
        return x.reshape(batch, n, count, width), filled

    def _positions(self, filled: jax.Array, token_valid: jax.Array) -> Int[Array, "B X T"]:
        """Rotary positions: all slots and then the tokens (fixed), or the filled slots and then the tokens (variable)."""
        if self.config.layout == "variable":
            return jnp.maximum(jnp.cumsum(jnp.concatenate([filled, token_valid], axis=-1), axis=-1) - 1, 0)
        slot_positions = jnp.broadcast_to(jnp.arange(filled.shape[-1]), filled.shape)
        token_positions = jnp.maximum(jnp.cumsum(token_valid, axis=-1) - 1, 0)
        return jnp.concatenate([slot_positions, token_positions + filled.shape[-1]], axis=-1)

    def decode(
        self,
        tokens: Int[Array, "B X L"],
        memories: Float[Array, "B M K E"] | None = None,
        slots: Int[Array, "X S"] | None = None,
        chunk: Int[Array, " X"] | None = None,
        task: Int[Array, " X"] | int = PREDICT,
        memory_valid: Bool[Array, "B M"] | None = None,
        token_valid: Bool[Array, "B X L"] | None = None,
    ) -> Float[Array, "B X L V"]:
        """Logits of all given chunks; position t has read tokens 0..t of its chunk and the memories in its slots.

        Args:
          tokens: what the decoder is shown.
          memories: from `encode`; None for none.
          slots: which memory stands in each slot of each chunk, `EMPTY` for none; by default those of all earlier chunks.
          chunk: place of each chunk in its row; by default 0, 1, 2, ...
          task: PREDICT or RETAIN, for each chunk or for all.
          memory_valid: False for a memory of a chunk without tokens; it is masked out.
          token_valid: False where `tokens` is padding.
        """
        return self.head(self.hidden(tokens, memories, slots, chunk, task, memory_valid, token_valid))

    def score(
        self,
        tokens: Int[Array, "B X L"],
        labels: Int[Array, "B X L"],
        memories: Float[Array, "B M K E"] | None = None,
        slots: Int[Array, "X S"] | None = None,
        chunk: Int[Array, " X"] | None = None,
        task: Int[Array, " X"] | int = PREDICT,
        memory_valid: Bool[Array, "B M"] | None = None,
        token_valid: Bool[Array, "B X L"] | None = None,
    ) -> tuple[Float[Array, "B X L"], Bool[Array, "B X L"]]:
        """Nats of `labels` under `decode`'s logits, and whether each is the most likely token; never holds the logits."""
        h = self.hidden(tokens, memories, slots, chunk, task, memory_valid, token_valid)
        shape, flat = labels.shape, (labels.shape[0], -1)
        nats, correct = self.head.score(h.reshape(*flat, h.shape[-1]), labels.reshape(flat))
        return nats.reshape(shape), correct.reshape(shape)

    def __call__(self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None) -> Float[Array, "B C L V"]:
        """Encodes all chunks but the last, decodes all: logits at position t are about token t+1 of the same chunk."""
        if self.memory and tokens.shape[1] > 1:
            memories = self.encode(tokens[:, :-1], None if valid is None else valid[:, :-1])
            memory_valid = None if valid is None else valid[:, :-1].any(axis=-1)
        else:
            memories, memory_valid = None, None
        return self.decode(tokens, memories, memory_valid=memory_valid, token_valid=valid)
