"""The contract of every family that remembers, and the memories that it writes.

Shapes: N chunk, K vector of a chunk, E its width, B sequence, C chunk of a sequence, L token of a
chunk, X decoded chunk, T position, D decoder width.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from memjax.config import Model
from memjax.layers import Backbone
from memjax.layers.attention import KeyValues
from memjax.models.request import Request

KINDS = ("bank", "chain", "fused")
"""A bank is append-only and written in parallel; a write of a chain reads the state; a fused memory
reads and writes in one pass."""
VECTORS = "vectors"
"""The one leaf of memories that are vectors per chunk."""
VALID = "valid"
"""The leaf of a bank's state that marks entries of chunks with text."""


@struct.dataclass
class Memories:
    """Memories of texts, as named arrays.

    Attributes:
      leaves: a bank has a row per chunk, a chain and a fused memory have a row per document.
      count: number of chunks that are remembered; of a batch [B].
      kind: `bank`, `chain` or `fused`.
    """

    leaves: Mapping[str, Any]
    count: Any
    kind: str = struct.field(pytree_node=False, default="bank")


def bank(vectors: Shaped[Any, "N K E"]) -> Memories:
    """Return the memories of N chunks that are K vectors per chunk."""
    return Memories({VECTORS: vectors}, len(vectors))


class Memory(nn.Module, abc.ABC):
    """A model that writes chunks into a memory and decodes tokens from it.

    Successive writes, `fold`, and reading one token at a time agree with the parallel form to 1e-5.
    `setup` of a family makes `backbone`, the decoder's stack.

    Attributes:
      config: the model's settings.
      chunks: C, chunks in a row.
      vocab_size: V.
    """

    KIND: ClassVar[str]
    """One of KINDS."""

    config: Model
    chunks: int
    vocab_size: int

    @abc.abstractmethod
    def empty(self, batch: int) -> Memories:
        """Return the state before the first chunk."""

    def write(
        self,
        state: Memories,
        tokens: Int[Array, "B L"],
        valid: Bool[Array, "B L"] | None = None,
    ) -> Memories:
        """Return the state after one more chunk.

        Args:
          state: from `empty`, `at` or the last write.
          tokens: the chunk.
          valid: False where a position is padding; None where there is none.
        """
        valid = None if valid is None else valid[:, None]
        return self.at(self.fold(tokens[:, None], valid, state), state.count + 1)

    @abc.abstractmethod
    def fold(
        self,
        tokens: Int[Array, "B C L"],
        valid: Bool[Array, "B C L"] | None = None,
        state: Memories | None = None,
    ) -> Memories:
        """Write all chunks, in parallel where the kind allows it.

        Args:
          tokens: the chunks.
          valid: False where a position is padding; None where there is none.
          state: what stands before them; None for nothing.

        Returns:
          The states after every chunk, in one; `at` takes one of them out.
        """

    @abc.abstractmethod
    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """Return the state after `count` chunks, those before a `fold` included."""

    @abc.abstractmethod
    def hidden(self, prefixes: Memories, request: Request) -> Float[Array, "B X L D"]:
        """Return the states that the head turns into scores of all decoded chunks.

        Args:
          prefixes: from `fold` of the sequence's chunks and then the request's extra ones.
          request: the chunks to decode; all of their positions are read, padding too.
        """

    @abc.abstractmethod
    def prefill(
        self, state: Memories, tokens: Int[Array, "B T"], length: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], KeyValues | None]:
        """Read the beginning of a chunk.

        Args:
          state: the memory before the chunk.
          tokens: inputs of the decoder.
          length: how many of them count, per sequence; those behind are not read.

        Returns:
          The state that scores the next token, and the KV cache of memory and chunk, with room for
          the whole chunk. The cache is None where the decoder is no transformer: it reads the whole
          chunk again for every token, and `tokens` are as many.
        """

    def append(
        self, state: Memories, cache: KeyValues | None, tokens: Int[Array, "B L"]
    ) -> tuple[Memories, KeyValues | None]:
        """Turn a finished chunk into a memory.

        Args:
          state: the memory before the chunk.
          cache: of memory and chunk; its chunk is dropped.
          tokens: the chunk.

        Returns:
          The memory after the chunk, and the KV cache of it alone.
        """
        state = self.write(state, tokens)
        if cache is None:
            return state, None
        nothing = jnp.zeros(tokens.shape[:1], jnp.int32)
        return state, self.prefill(state, tokens[:, :0], nothing)[1]

    @abc.abstractmethod
    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """Count what a memory of so many chunks holds: name to (numbers, bits of each).

        Nothing is run and no parameters are needed.
        """


class CachedMemory(Memory):
    """A memory whose decoder is the backbone over inputs that the state gives, with a KV cache."""

    def prefill(
        self, state: Memories, tokens: Int[Array, "B T"], length: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], KeyValues | None]:
        """See `Memory.prefill`."""
        inputs, start = self._chunk_inputs(state, tokens)
        room = start + self.config.chunk_length
        return prefill_backbone(self.backbone, inputs, start + length - 1, room)

    def decode_step(
        self,
        state: Memories,
        cache: KeyValues,
        token: Int[Array, " B"],
        position: Int[Array, " B"],
    ) -> tuple[Float[Array, "B D"], KeyValues]:
        """Read one more token.

        Args:
          state: as in `prefill`.
          cache: from `prefill` or the last step.
          token: the input.
          position: where it stands among the inputs of the chunk.

        Returns:
          The state that scores the next token, and the KV cache.
        """
        x, positions, at, valid = self._step_inputs(state, token, position)
        return self.backbone.cached_step(x, cache, positions, at, valid)

    @abc.abstractmethod
    def _chunk_inputs(
        self, state: Memories, tokens: Int[Array, "B L"]
    ) -> tuple[tuple[Float[Array, "B T D"], Int[Array, "B T"], Bool[Array, "B T"]], int]:
        """Return the arguments of the backbone for the beginning of a chunk.

        The number beside them is that of the positions before the chunk.
        """

    @abc.abstractmethod
    def _step_inputs(
        self, state: Memories, token: Int[Array, " B"], position: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], Int[Array, " B"], Int[Array, " B"], Bool[Array, "B T"]]:
        """Return a step's input, its rotary position, its index, and where the cache is read."""


def prefill_backbone(
    backbone: Backbone,
    inputs: tuple[jax.Array, jax.Array, jax.Array],
    at: Int[Array, " B"],
    room: int,
) -> tuple[Float[Array, "B D"], KeyValues | None]:
    """Run a backbone over the first positions of every sequence.

    Args:
      backbone: the backbone.
      inputs: its arguments: inputs, rotary positions, and where they are valid.
      at: the position whose state is returned, per sequence.
      room: positions that the KV cache has room for.

    Returns:
      The states, and the KV cache; None where the backbone is no transformer.
    """
    if backbone.config.kind != "transformer":
        return state_at(backbone(*inputs), at), None
    states, cache = backbone.read(*inputs)
    padding = ((0, 0), (0, 0), (0, 0), (0, room - cache.key.shape[3]), (0, 0))
    return state_at(states, at), KeyValues(*(jnp.pad(x, padding) for x in cache))


def state_at(states_BTD: jax.Array, at_B: jax.Array) -> Float[Array, "B D"]:
    """Take one state per sequence."""
    return jnp.take_along_axis(states_BTD, at_B[:, None, None], axis=1, mode="clip")[:, 0]


def number_bits(config: Model) -> int:
    """Return the bits of a number of a state as it is computed."""
    return 8 * jnp.dtype(config.dtype).itemsize
