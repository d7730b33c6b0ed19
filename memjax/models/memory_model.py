"""Memory model: a causal decoder reads memories of earlier chunks in place of their tokens.

Source: Badger 2026, memory models.

Shapes: B row, C chunk of the row, X chunk to decode, S slot, M memory, K vector, L token, E encoder
width, D decoder width, V vocabulary, P entry of a prefix, T decoder position.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.config import ConfigError
from memjax.layers import Embed, Head, Linear, make_backbone
from memjax.layers.attention import Positions
from memjax.layers.shared_prefix import SharedPrefix
from memjax.models.elastic import is_kept
from memjax.models.encoder import Encoder, fold, read_positions, require_places, unfold
from memjax.models.memory import VALID, VECTORS, Memories, number_bits
from memjax.models.request import PREDICT, Joined, Prefix, Request, alone, next_chunks
from memjax.models.slots import SlotMemory, earlier_chunks

UNIT_INIT = nn.initializers.normal(1.0)
"""Initial scale of token, position and task embeddings. It is as large as a normalised memory, so
that a position determines in every block which part of the memory to read: at 0.02 a decoder takes
several times as many steps to learn to read memories, and a ranker to identify its query."""


class MemoryModel(SlotMemory):
    """Encoder and decoder.

    A token reaches later chunks through its chunk's memory and by no other path.
    """

    KIND = "bank"
    TASKS: ClassVar[int] = 2
    """Rows of the table of task marks."""

    def setup(self) -> None:
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        if self.memory:
            self.encoder = Encoder(config, self.vocab_size)
            if config.encoder.width != width:
                self.bridge = Linear(width, use_bias=True, dtype=dtype)
        self.embed = Embed(self.vocab_size, width, dtype, UNIT_INIT)
        if config.token_positions:
            self.token_position = self.param(
                "token_position", UNIT_INIT, (config.chunk_length, width)
            )
        if config.chunk_positions:
            self.chunk_position = self.param("chunk_position", UNIT_INIT, (self.chunks, width))
        if config.task_embedding:
            self.task_mark = self.param("task_mark", UNIT_INIT, (self.TASKS, width))
        positions = self.slots * config.memory_vectors + config.chunk_length
        self.backbone = make_backbone(config, config.decoder, positions, config.memory_vectors)
        self.head = Head(
            width, self.vocab_size, self.embed if config.decoder.tie_embeddings else None
        )

    def encode(
        self, tokens: Int[Array, "B M L"], valid: Bool[Array, "B M L"] | None = None
    ) -> Float[Array, "B M K E"]:
        """Encode all given chunks, in one call."""
        ConfigError.require(
            self.memory, "this model was built with memory=False: it has no encoder"
        )
        valid = None if valid is None else fold(valid)
        return unfold(self.encoder(fold(tokens), valid), tokens.shape[0])

    def states(
        self,
        tokens: Int[Array, "B X L"],
        memories: Float[Array, "B M K E"] | None = None,
        slots: Int[Array | np.ndarray, "X S"] | None = None,
        chunk: Int[Array | np.ndarray, " X"] | None = None,
        task: Int[Array | np.ndarray, " X"] | int = PREDICT,
        memory_valid: Bool[Array, "B M"] | None = None,
        token_valid: Bool[Array, "B X L"] | None = None,
    ) -> Float[Array, "B X L D"]:
        """Return decoder states at the token positions of all given chunks, in one call.

        Position t has read tokens 0..t of its chunk and the memories in its slots.

        Args:
          tokens: what the decoder is shown.
          memories: from `encode`; None for none.
          slots: which memory stands in each slot of each chunk, `EMPTY` for none; by default those
            of all earlier chunks.
          chunk: place of each chunk in its row; by default 0, 1, 2, ...
          task: PREDICT or RETAIN, for each chunk or for all.
          memory_valid: False for a memory of a chunk without tokens; it is masked out.
          token_valid: False where `tokens` is padding.
        """
        # Chunks may be of several sequences, if their places are given.
        require_places(tokens, self.config.chunk_length, self.chunks if chunk is None else 0)
        n = tokens.shape[1]
        chunk = np.arange(n) if chunk is None else chunk
        if slots is None and self.shares_prefixes:
            tasks = np.full(n, task) if isinstance(task, int) else task
            joined = alone(next_chunks(tokens, tokens))._replace(place=chunk, task=tasks)
            return self.joined_states(joined, memories, memory_valid, token_valid)
        slots = earlier_chunks(self.chunks)[:n] if slots is None else slots
        return self.slot_states(tokens, memories, slots, chunk, task, memory_valid, token_valid)

    def joined_states(
        self,
        joined: Joined,
        memories: Float[Array, "B M K E"] | None = None,
        memory_valid: Bool[Array, "B M"] | None = None,
        token_valid: Bool[Array, "B X L"] | None = None,
        kept: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B X L D"]:
        """Return `states` of all chunks of the requests, and compute each prefix once.

        Args:
          joined: the requests.
          memories: those that its entries name by number; None for none.
          memory_valid: as in `states`.
          token_valid: False where `joined.inputs` is padding.
          kept: vectors that are read of each memory of a sequence, with layout `text`; None for
            all.

        Raises:
          ConfigError: chunks are shorter than those that a decoder with weights per position has.
        """
        kind, length = self.config.decoder.kind, self.config.chunk_length
        ConfigError.require(
            kind == "transformer" or joined.inputs.shape[2] == length,
            f"tokens: chunks of {joined.inputs.shape[2]}, expected {length} for a {kind} decoder,"
            " whose weights belong to positions. Pad them",
        )
        if not self.shares_prefixes:
            rest = joined.slots, joined.place, joined.task, memory_valid, token_valid
            return self.slot_states(joined.inputs, memories, *rest)
        inputs = self._share(joined, memories, memory_valid, token_valid, kept)
        return inputs[-1].chunks(self.backbone(*inputs))

    def _share(
        self,
        joined: Joined,
        memories: jax.Array | None,
        memory_valid: jax.Array | None,
        token_valid: jax.Array | None,
        kept: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Positions, SharedPrefix]:
        """Return the arguments of the backbone; arguments as in `joined_states`."""
        config, (batch, _, length) = self.config, joined.inputs.shape
        prefixes = joined.prefixes
        if memories is None or not self.memory:
            prefixes = tuple(x._replace(entries=x.entries[:0]) for x in prefixes)
            memories = jnp.zeros((batch, 1, 1, config.decoder.width))
        else:
            memories = self._bridge(memories)
        # Fewer than K, where a store holds fewer.
        vectors = memories.shape[2]
        x = self._embed_inputs(joined.inputs, slice(length), joined.place, joined.task)
        token_valid = read_positions(config, joined.inputs, token_valid)
        entries_valid = read_positions(config, memories[..., 0, 0], memory_valid)
        entries, valid, visible = [], [], []
        for prefix in prefixes:
            filled = jnp.repeat(entries_valid[:, prefix.entries, None], vectors, axis=2)
            if kept is not None:
                filled &= is_kept(kept, vectors)[:, None]
            written = self._enter(memories[:, prefix.entries])
            written = jnp.where(filled[..., None], written, 0)
            entries.append(written.reshape(batch, -1, x.shape[-1]).astype(x.dtype))
            valid.append(filled.reshape(batch, -1))
            seen = jnp.minimum(jnp.asarray(prefix.visible), len(prefix.entries)) * vectors
            visible.append(jnp.broadcast_to(seen, (batch, seen.shape[-1])))
        reading = SharedPrefix(
            jnp.concatenate([*valid, token_valid.reshape(batch, -1)], axis=1),
            tuple(visible),
            tuple(x.shape[1] for x in valid),
            length,
            config.decoder.blind_memories,
        )
        at = jnp.maximum(jnp.cumsum(token_valid, axis=-1) - 1, 0)
        positions = self._shared_positions(joined, prefixes, reading, at)
        x = jnp.concatenate([*entries, x.reshape(batch, -1, x.shape[-1])], axis=1)
        return x, positions, reading

    def _enter(self, written: Float[Array, "B P K D"]) -> Float[Array, "B P K D"]:
        """Return the first P entries as the backbone reads them."""
        if not self.config.chunk_positions:
            return written
        return written + self.chunk_position[: written.shape[1], None].astype(written.dtype)

    def _shared_positions(
        self,
        joined: Joined,
        prefixes: tuple[Prefix, ...],
        reading: SharedPrefix,
        at: Int[Array, "B X L"],
    ) -> Positions:
        """Return rotary positions; `at` is the position of each input in its chunk."""
        valid = [group.prefix for group in reading.groups(reading.valid)]
        if self.config.layout == "variable":
            in_prefix = [jnp.maximum(jnp.cumsum(filled, axis=1) - 1, 0) for filled in valid]
            before = jnp.concatenate([seen.sum(axis=-1) for seen in reading.seen()], axis=1)
            at += before[..., None]
        else:
            in_prefix = [
                jnp.broadcast_to(jnp.arange(filled.shape[1]), filled.shape) for filled in valid
            ]
            at += self.slots * self.config.memory_vectors
        return jnp.concatenate([*in_prefix, at.reshape(len(at), -1)], axis=1)

    def decode(
        self, tokens: Int[Array, "B X L"], *args: Any, **kwargs: Any
    ) -> Float[Array, "B X L V"]:
        """Return logits of all given chunks; arguments as in `states`."""
        return self.head(self.states(tokens, *args, **kwargs))

    def score(
        self,
        tokens: Int[Array, "B X L"],
        labels: Int[Array, "B X L"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Array, "B X L"], Bool[Array, "B X L"]]:
        """Return nats of `labels`, and whether each is the most likely token.

        Both are those of `decode`; the logits are never held. Other arguments as in `states`.
        """
        return self.head.token_losses(self.states(tokens, *args, **kwargs), labels)

    def token_losses(
        self, states: Float[Array, "B X L D"], labels: Int[Array, "B X L"]
    ) -> tuple[Float[Array, "B X L"], Bool[Array, "B X L"]]:
        """Return nats of `labels`, and whether each is the most likely, from `joined_states`."""
        return self.head.token_losses(states, labels)

    # The contract of models/memory.py. A state has the entries of the slots.

    def empty(self, batch: int) -> Memories:
        """See `Memory.empty`."""
        count = jnp.zeros(batch, jnp.int32)
        if not self.memory:
            return Memories({}, count, self.KIND)
        shape = batch, self.slots, self.config.memory_vectors, self.config.encoder.width
        return self.given(jnp.zeros(shape), count)

    @nn.nowrap
    def given(self, vectors: Float[Array, "B P K E"], count: Int[Array, " B"]) -> Memories:
        """Return the state of memories before a text; those behind `count` are not read."""
        vectors = vectors.astype(jnp.dtype(self.config.dtype))
        leaves = {VECTORS: vectors, VALID: jnp.ones(vectors.shape[:2], bool)}
        return Memories(leaves, count, self.KIND)

    def fold(
        self,
        tokens: Int[Array, "B C L"],
        valid: Bool[Array, "B C L"] | None = None,
        state: Memories | None = None,
    ) -> Memories:
        """See `Memory.fold`; one call of the encoder."""
        batch, chunks, _ = tokens.shape
        count = jnp.full(batch, chunks, jnp.int32) + (0 if state is None else state.count)
        if not self.memory:
            return Memories({}, count, self.KIND)
        if not chunks:
            return self.empty(batch) if state is None else state
        has_text = jnp.ones((batch, chunks), bool) if valid is None else valid.any(axis=-1)
        new = {VECTORS: self.encode(tokens, valid), VALID: has_text}
        return self.extend(state, Memories(new, jnp.full(batch, chunks, jnp.int32), self.KIND))

    @nn.nowrap
    def extend(self, state: Memories | None, new: Memories) -> Memories:
        """Return the entries of a state and then new ones, of as many vectors."""
        if state is None:
            return new
        held = state.leaves[VECTORS].shape[2]
        new = Memories({**new.leaves, VECTORS: new.leaves[VECTORS][:, :, :held]}, new.count)
        # Sequences differ in what stands before: the first new entry of each comes right behind.
        before, first_B1 = state.leaves[VECTORS].shape[1], state.count[:, None]
        entry = jnp.arange(before + new.leaves[VECTORS].shape[1])
        source = jnp.where(entry < first_B1, entry, before + entry - first_B1)
        leaves = {
            name: _take(jnp.concatenate([state.leaves[name].astype(x.dtype), x], axis=1), source)
            for name, x in new.leaves.items()
        }
        return Memories(leaves, state.count + new.count, self.KIND)

    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """See `Memory.at`; the last `budget` entries."""
        kept = jnp.minimum(count, self.budget)
        if not prefixes.leaves:
            return Memories({}, kept, self.KIND)
        slot = jnp.arange(self.slots)
        entry = slot + (count - kept)[:, None]
        leaves = {name: _take(leaf, entry) for name, leaf in prefixes.leaves.items()}
        return Memories(leaves, kept, self.KIND)

    def hidden(self, prefixes: Memories, request: Request) -> Float[Array, "B X L D"]:
        """See `Memory.hidden`."""
        leaves = prefixes.leaves
        return self.joined_states(alone(request), leaves.get(VECTORS), leaves.get(VALID))

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        numbers = chunks * self.config.memory_vectors * self.config.encoder.width
        return {VECTORS: (numbers, number_bits(self.config))}

    def __call__(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> Float[Array, "B C L V"]:
        """Encode all chunks but the last, and decode all.

        Logits at position t are about token t + 1 of the same chunk.
        """
        require_places(tokens, self.config.chunk_length, self.chunks)
        read = self.fold(tokens[:, :-1], None if valid is None else valid[:, :-1]).leaves
        has_text = None if valid is None else read.get(VALID)
        joined = alone(next_chunks(tokens, tokens))
        return self.head(self.joined_states(joined, read.get(VECTORS), has_text, valid))


def _take(leaf: jax.Array, entry: jax.Array) -> jax.Array:
    """Entries of every sequence, [B, P, ...] by [B, S]."""
    return jnp.take_along_axis(
        leaf, entry.reshape(*entry.shape, *(1,) * (leaf.ndim - 2)), axis=1, mode="clip"
    )
