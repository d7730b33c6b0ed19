"""The base of the field's other memories: a decoder, and the states that it reads.

A peer is a rule for a state and two maps: `write` of a chunk, and `read` of inputs. Everything else
of the contract (models/memory.py) follows from them here. `read` is a pass of its own, also for
systems that are published as one pass for both (`fused`): a chunk is then read once more, and every
request, generation and every instrument have one form. All reads of a step are one batch, and only
writes are in turn.

Shapes: B sequence, W written chunk, X decoded chunk, N decoded chunk of any sequence (B and X
folded), L token, P row before the tokens, D width.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Embed, Head, make_backbone
from memjax.models.encoder import EMBEDDING_INIT, fold, unfold
from memjax.models.memory import VALID, Memories, Memory, state_at
from memjax.models.memory_model import UNIT_INIT
from memjax.models.request import PREDICT, Request

TASKS = 3
"""Rows of the table of task marks: to predict, to retain, to recall."""
GENERATOR = "memory"
"""The generator of what is random in a memory; without it every peer is deterministic."""
MASKED = -1e30
"""The score of what is not read; not infinite, so that no gradient is NaN."""
Leaves = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class NoDials:
    """The dials of a peer that has none."""


class Peer(Memory):
    """A decoder that reads a state; subclasses define the state and how it is written.

    `setup` of a subclass calls `setup_decoder`.

    Attributes:
      dials: settings of this peer alone, its adapter's `dials`.
      memory: False builds the control, whose decoder reads the state before any text.
    """

    dials: Any = NoDials()
    memory: bool = True

    def setup_decoder(self, stack: bool = True) -> None:
        """Make token table, positions, marks, backbone and head.

        Args:
          stack: False leaves `backbone` out; the peer has layers of its own.
        """
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        self.embed = Embed(self.vocab_size, width, dtype, UNIT_INIT)
        self.token_position = self.param("token_position", UNIT_INIT, (config.chunk_length, width))
        self.chunk_position = self.param("chunk_position", UNIT_INIT, (self.chunks, width))
        self.task_mark = self.param("task_mark", UNIT_INIT, (TASKS, width))
        if stack:
            self.backbone = make_backbone(config, config.decoder, config.chunk_length)
        self.head = Head(
            width, self.vocab_size, self.embed if config.decoder.tie_embeddings else None
        )

    def setup_lm_decoder(self, stack: bool = True) -> None:
        """Make the parts of a causal language model, and marks that its own inputs never had.

        The marks begin at 0, so that the model begins as it was trained, and stand on the first
        input of a chunk alone.

        Args:
          stack: False leaves `backbone` out; the peer makes one with the same parameters.
        """
        config = self.config
        width, zeros = config.decoder.width, nn.initializers.zeros
        dtype = jnp.dtype(config.dtype)
        self.embed = Embed(self.vocab_size, width, dtype, EMBEDDING_INIT)
        self.chunk_position = self.param("chunk_position", zeros, (self.chunks, width))
        self.task_mark = self.param("task_mark", zeros, (TASKS, width))
        if stack:
            self.backbone = make_backbone(config, config.decoder, config.chunk_length)
        tied = self.embed if config.decoder.tie_embeddings else None
        self.head = Head(width, self.vocab_size, tied)

    # What a subclass gives.

    @abc.abstractmethod
    def start(self, batch: int) -> Leaves:
        """Return the leaves of the state before any text, [B, ...] each."""

    @abc.abstractmethod
    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """Return the decoder's states at the inputs, which read one state each.

        Args:
          leaves: the state of each decoded chunk.
          x: `tokens` embedded, with positions and marks.
          tokens: the inputs.
          valid: False at padding.
        """

    @abc.abstractmethod
    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""

    # Parts of reads and writes.

    def embed_tokens(
        self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L D"]:
        """Return tokens with their positions, which count real tokens."""
        x = self.embed(tokens)
        if not hasattr(self, "token_position"):
            return x
        at = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        return x + self.token_position.astype(x.dtype)[at]

    def embed_inputs(
        self,
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
        place: Int[Array, " N"],
        task: Int[Array, " N"],
    ) -> Float[Array, "N L D"]:
        """Return inputs with their positions, and marks of the place and the task.

        Places behind those of a training sequence are marked as its last one.
        """
        x, place = self.embed_tokens(tokens, valid), jnp.minimum(place, self.chunks - 1)
        mark = self.chunk_position.astype(x.dtype)[place] + self.task_mark.astype(x.dtype)[task]
        if hasattr(self, "token_position"):
            return x + mark[:, None]
        first = jnp.arange(tokens.shape[1]) == jnp.argmax(valid, axis=1)[:, None]
        return x + jnp.where(first[..., None], mark[:, None], 0)

    def read_rows(
        self,
        rows: Float[Array, "N P D"],
        filled: Bool[Array, "N P"] | None,
        x: Float[Array, "N L D"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """Run the backbone over rows and then inputs, and return the states at the inputs.

        Positions count the rows and inputs that are there. `filled` of None is all rows.
        """
        if filled is None:
            filled = jnp.ones(rows.shape[:2], bool)
        sequence = jnp.concatenate([rows.astype(x.dtype), x], axis=1)
        seen = jnp.concatenate([filled, valid], axis=1)
        return self.backbone(sequence, valid=seen)[:, rows.shape[1] :]

    # The contract of models/memory.py.

    def empty(self, batch: int) -> Memories:
        """See `Memory.empty`."""
        return Memories(dict(self.start(batch)), jnp.zeros(batch, jnp.int32), self.KIND)

    def written(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"], order: np.ndarray
    ) -> Memories:
        """Write chunks in an order in which one may come twice, and return all states."""
        return self.fold(tokens[:, order], valid[:, order])

    def hidden(
        self, prefixes: Memories, request: Request, shown: Bool[Array, "B X L"] | None = None
    ) -> Float[Array, "B X L D"]:
        """See `Memory.hidden`; all decoded chunks in one call.

        Args:
          prefixes: the states of the request's entries, from `written`.
          request: the chunks to decode.
          shown: False where an input is padding; None where there is none.
        """
        batch, asked, _ = request.inputs.shape
        visible, place, task = (
            jnp.broadcast_to(jnp.asarray(x), (batch, asked)).astype(jnp.int32)
            for x in (request.visible, request.place, request.task)
        )
        leaves = self.seen(prefixes, visible if self.memory else jnp.zeros_like(visible))
        shown = jnp.ones(request.inputs.shape, bool) if shown is None else shown
        tokens, valid = fold(request.inputs), fold(shown)
        x = self.embed_inputs(tokens, valid, place.ravel(), task.ravel())
        return unfold(self.read(leaves, x, tokens, valid), batch)

    def seen(self, prefixes: Memories, visible: Int[Array, "B X"]) -> Leaves:
        """Return the state that each decoded chunk reads, [N, ...] per leaf."""
        return {name: fold(take(leaf, visible)) for name, leaf in prefixes.leaves.items()}

    def prefill(
        self, state: Memories, tokens: Int[Array, "B L"], length: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], None]:
        """See `Memory.prefill`; a peer reads the whole chunk again for every token."""
        valid = jnp.arange(tokens.shape[1]) < length[:, None]
        task = jnp.full(len(tokens), PREDICT)
        leaves = state.leaves if self.memory else self.empty(len(tokens)).leaves
        x = self.embed_inputs(tokens, valid, state.count, task)
        return state_at(self.read(leaves, x, tokens, valid), length - 1), None

    def __call__(self, tokens: Int[Array, "B C L"]) -> Float[Array, "B C L V"]:
        """Write all chunks and decode each from those before it: every parameter is used."""
        chunks = tokens.shape[1]
        number = np.arange(chunks)
        request = Request(
            tokens,
            tokens,
            jnp.ones(tokens.shape),
            written=number,
            visible=number,
            written_at=number,
            place=number,
            task=np.full(chunks, PREDICT),
        )
        prefixes = self.written(tokens, jnp.ones(tokens.shape, bool), number)
        return self.head(self.hidden(prefixes, request))


class ChainPeer(Peer):
    """A peer whose writes depend on the state, which they replace: `KIND` is `chain` or `fused`."""

    @abc.abstractmethod
    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """Return the leaves of the state after one more chunk; some of its tokens are real."""

    def write(
        self,
        state: Memories,
        tokens: Int[Array, "B L"],
        valid: Bool[Array, "B L"] | None = None,
    ) -> Memories:
        """See `Memory.write`; a chunk of padding alone leaves every leaf as it was."""
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        leaves = self.update_real(state.leaves, tokens, valid)
        return Memories(leaves, state.count + 1, self.KIND)

    def update_real(self, leaves: Leaves, tokens: jax.Array, valid: jax.Array) -> dict[str, Any]:
        """Return the leaves after a chunk; a chunk of padding alone leaves them as they were."""
        after, some = self.update(leaves, tokens, valid), valid.any(axis=-1)
        return {
            name: jnp.where(some.reshape(-1, *(1,) * (old.ndim - 1)), after[name], old)
            for name, old in leaves.items()
        }

    def fold(
        self,
        tokens: Int[Array, "B W L"],
        valid: Bool[Array, "B W L"] | None = None,
        state: Memories | None = None,
    ) -> Memories:
        """See `Memory.fold`; one chunk after another.

        With `config.bptt_chunks` = n > 0 the state before chunk n, 2n, 3n, ... is cut off from its
        past, for the write of that chunk and for all that read it. With `config.remat` a chunk is
        computed again in the backward pass.
        """
        state = self.empty(len(tokens)) if state is None else state
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        every, chunk = self.config.bptt_chunks, jnp.arange(tokens.shape[1])
        cut = (chunk + 1) % every == 0 if every else jnp.zeros(chunk.shape, bool)

        def write_chunk(
            module: "ChainPeer", leaves: Leaves, tokens: jax.Array, valid: jax.Array, cut: jax.Array
        ) -> tuple[dict[str, Any], dict[str, Any]]:
            after = module.update_real(leaves, tokens, valid)
            after = {name: _cut(leaf, cut) for name, leaf in after.items()}
            return after, after

        again = self.config.remat != "none"
        body = nn.remat(write_chunk, prevent_cse=False) if again else write_chunk
        scan = nn.scan(
            body,
            variable_broadcast="params",
            split_rngs={"params": False, GENERATOR: True},
            in_axes=(1, 1, 0),
            out_axes=1,
            check_constancy_invariants=self.is_initializing(),
        )
        _, after = scan(self, dict(state.leaves), tokens, valid, cut)
        leaves = {
            name: jnp.concatenate([first[:, None], after[name]], axis=1)
            for name, first in state.leaves.items()
        }
        return Memories(leaves, state.count + tokens.shape[1], self.KIND)

    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """See `Memory.at`."""
        width = next(iter(prefixes.leaves.values())).shape[1]
        at = (count - (prefixes.count - (width - 1)))[:, None]
        leaves = {name: take(leaf, at)[:, 0] for name, leaf in prefixes.leaves.items()}
        return Memories(leaves, count, self.KIND)


class BankPeer(Peer):
    """A peer whose writes do not depend on the state: entries of a list, one per chunk.

    All chunks are encoded in one call, and a decoded chunk reads the entries before it.
    """

    KIND = "bank"

    @abc.abstractmethod
    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """Return what chunks write, [N, ...] per leaf."""

    @property
    def slots(self) -> int:
        """Entries that generation keeps; the oldest leaves first."""
        return self.chunks - 1

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`; a bank has room for `slots` entries, none of which is read."""
        tokens = jnp.zeros((1, self.config.chunk_length), jnp.int32)
        entry = self.encode(tokens, jnp.ones(tokens.shape, bool))
        room = {
            name: jnp.zeros((batch, self.slots, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in entry.items()
        }
        return {**room, VALID: jnp.zeros((batch, self.slots), bool)}

    def fold(
        self,
        tokens: Int[Array, "B W L"],
        valid: Bool[Array, "B W L"] | None = None,
        state: Memories | None = None,
    ) -> Memories:
        """See `Memory.fold`; one call of the encoder."""
        batch, chunks, _ = tokens.shape
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        new = {name: unfold(x, batch) for name, x in self.encode(fold(tokens), fold(valid)).items()}
        new[VALID] = valid.any(axis=-1)
        count = jnp.full(batch, chunks, jnp.int32)
        if state is None:
            return Memories(new, count, self.KIND)
        # Sequences differ in what stands before: the first new entry of each comes right behind.
        before, first = state.leaves[VALID].shape[1], state.count[:, None]
        entry = jnp.arange(before + chunks)
        source = jnp.where(entry < first, entry, before + entry - first)
        leaves = {
            name: take(jnp.concatenate([state.leaves[name].astype(x.dtype), x], axis=1), source)
            for name, x in new.items()
        }
        return Memories(leaves, state.count + chunks, self.KIND)

    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """See `Memory.at`; the last `slots` entries."""
        kept = jnp.minimum(count, self.slots)
        entry = jnp.arange(self.slots) + (count - kept)[:, None]
        leaves = {name: take(leaf, entry) for name, leaf in prefixes.leaves.items()}
        leaves[VALID] &= jnp.arange(self.slots) < kept[:, None]
        return Memories(leaves, kept, self.KIND)

    def written(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"], order: np.ndarray
    ) -> Memories:
        """See `Peer.written`; a chunk that comes twice is encoded once."""
        own = 1 + int(order.max(initial=0))
        prefixes = self.fold(tokens[:, :own], valid[:, :own])
        leaves = {name: leaf[:, order] for name, leaf in prefixes.leaves.items()}
        return Memories(leaves, jnp.full(len(tokens), len(order), jnp.int32), self.KIND)

    def seen(self, prefixes: Memories, visible: Int[Array, "B X"]) -> Leaves:
        """See `Peer.seen`; all entries, marked as valid up to `visible`."""
        entries, asked = prefixes.leaves[VALID].shape[1], visible.shape[1]
        leaves = {name: jnp.repeat(leaf, asked, axis=0) for name, leaf in prefixes.leaves.items()}
        leaves[VALID] &= jnp.arange(entries) < visible.reshape(-1, 1)
        return leaves


def take(x: jax.Array, at: Int[Array, "B S"]) -> jax.Array:
    """Take rows of the second axis, per sequence."""
    index = at.reshape(*at.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="clip")


def last_valid(states: Float[Array, "N T D"], valid: Bool[Array, "N T"]) -> Float[Array, "N D"]:
    """Return the state at the last valid position of each sequence."""
    at = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    return state_at(states, at)


def flat_rows(
    vectors: Float[Array, "N M K D"], filled: Bool[Array, "N M"]
) -> tuple[Float[Array, "N P D"], Bool[Array, "N P"]]:
    """Return the vectors of entries as rows, P = M * K, zero where an entry is not filled."""
    batch, entries, per, width = vectors.shape
    vectors = jnp.where(filled[..., None, None], vectors, 0)
    rows = vectors.reshape(batch, entries * per, width)
    return rows, jnp.repeat(filled, per, axis=1)


def _cut(leaf: jax.Array, cut: jax.Array) -> jax.Array:
    """Stop the gradient of a leaf where `cut`; whole numbers have none."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    return jnp.where(cut, jax.lax.stop_gradient(leaf), leaf)
