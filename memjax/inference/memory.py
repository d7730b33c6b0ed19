"""Strategies of families that keep memories of whole chunks.

A memory model reads the tokens of the current chunk, and memories of the chunks before it. The
decoder reads a start token and the chunk so far. A token has the same cost at any position: one
decoder position, and once per chunk one call of the encoder and one prefill of the slots. When all
slots are filled, the oldest memory is dropped and the others move up by one, so that every later
chunk is read as the last one of a sequence. Prefix memories, such as those of a store, precede the
memories of the prompt's own chunks, and are dropped first.

A recurrent memory model reads the tokens of the current chunk, and the state after earlier chunks.
A full chunk is read once more with its write slots, which gives the next state. The state does not
grow and nothing is ever evicted.

Chunks begin at the beginning of a text, in generation and in scores.

Shapes: B sequence or piece, W token of the window, M chunk before the current one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.inference.strategy import (
    DecodingStrategy,
    Params,
    Piece,
    PrefixMemories,
    Prompt,
    bucket,
)
from memjax.models import EMPTY, PREDICT
from memjax.models.memory import Memories
from memjax.models.request import next_chunks


class ChunkStrategy(DecodingStrategy):
    """The strategy of a model that keeps memories of whole chunks (`memjax.models.memory.Memory`):
    the window is a chunk.

    A full chunk is written into the memory, and the next one begins. A decoder that is no
    transformer reads memory and chunk again for every token.
    """

    @property
    def window(self) -> int:
        """Return L: a chunk."""
        return self.module.config.chunk_length

    @property
    def advanced(self) -> int:
        """Return 0: a new chunk has no tokens."""
        return 0

    def cut(self, prompt: np.ndarray) -> Prompt:
        """Return its whole chunks and the rest."""
        border = len(prompt) - len(prompt) % self.window
        return Prompt(prompt[:border].reshape(-1, self.window), prompt[border:])

    def encode_context(
        self,
        params: Params,
        chunks: jax.Array,
        count: jax.Array,
        prefix: PrefixMemories | None = None,
    ) -> Memories:
        """Write all chunks of all sequences in one call, after the prefix memories."""

        def fold(module: Any) -> Memories:
            before, total = None, count
            if prefix is not None:
                before = module.given(jnp.asarray(prefix.vectors), jnp.asarray(prefix.count))
                total = before.count + count
            return module.at(module.fold(chunks, state=before), total)

        return self.apply(params, method=fold)

    def prefill(
        self, params: Params, context: Any, tokens: jax.Array, position: jax.Array, span: int
    ) -> tuple[jax.Array, Any]:
        """Read the memory and the chunk so far in one call of the decoder."""
        inputs, length = self.inputs(tokens, span), position + self.shift
        return self.apply(params, context, inputs, length, method="prefill")

    def decode_step(
        self, params: Params, context: Any, cache: Any, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Compute one position, which reads the memory and the chunk's positions before it."""
        at = position - 1 + self.shift
        return self.apply(params, context, cache, token, at, method="decode_step")

    def advance_window(
        self, params: Params, context: Any, tokens: jax.Array, position: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Write the full chunk into the memory."""
        after = self.apply(params, context, tokens, method="write")
        return after, tokens, jnp.zeros_like(position)


@dataclasses.dataclass(frozen=True)
class MemoryStrategy(ChunkStrategy):
    """The strategy of a memory model.

    For scores, the chunks of all pieces are decoded as the chunks of one sequence, whose slot table
    has the memories of each. A chunk that several pieces of a batch read is encoded once.
    """

    start: int
    """Return the first id of a chunk."""

    @property
    def limit(self) -> int:
        """Return the length of a sequence as in training."""
        return self.module.chunks * self.window

    def cut(self, prompt: np.ndarray) -> Prompt:
        """Return its last whole chunks, as many as there are slots, and the rest."""
        chunks, rest = super().cut(prompt)
        return Prompt(chunks[max(0, len(chunks) - self.module.budget) :], rest)

    def kept(self, chunks: int) -> int:
        """Return the number of prefix memories that fit into the remaining slots."""
        return max(0, self.module.budget - chunks)

    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """Return one piece per chunk with a token of the continuation."""
        text, length = np.concatenate([context, continuation]), self.window
        chunks, found = text[: len(text) // length * length].reshape(-1, length), []
        for chunk in range(len(context) // length, -(-len(text) // length)):
            begin, end = chunk * length, min((chunk + 1) * length, len(text))
            earlier = chunks[max(0, chunk - self.module.budget) : chunk]
            found.append(Piece(text[begin:end], end - max(begin, len(context)), earlier))
        return found

    def reach(self, context: int, continuation: int) -> int:
        """Return the memories and tokens that the last chunk reads; the control without memories
        has its tokens alone.
        """
        last = max(context + continuation - 1, 0) // self.window
        lost = last - self.module.budget if self.module.memory else last
        return max(0, context - max(0, lost) * self.window)

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """Return (T, J, whether memories are read)."""
        return *super().shape(piece), int(len(piece.earlier) > 0 and self.module.memory)

    def arrays(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> dict[str, Any]:
        """Return every chunk whose memory is read once, and its slot in each piece."""
        slots = np.full((len(pieces), self.module.budget), EMPTY, np.int32)
        number: dict[tuple[int, ...], int] = {}
        for row, piece in enumerate(pieces if shape[2] else ()):
            for slot, chunk in enumerate(piece.earlier.tolist()):
                slots[row, slot] = number.setdefault(tuple(chunk), len(number))
        place = np.array([len(piece.earlier) for piece in pieces], np.int32)
        batch = super().arrays(pieces, shape) | {"slots": slots, "place": place}
        if number:
            chunks = list(number)
            chunks += chunks[:1] * (bucket(len(chunks), 2 * len(chunks)) - len(chunks))
            batch["chunks"] = np.array(chunks, np.int32)
        return batch

    def hidden(self, params: Params, batch: dict[str, Any]) -> jax.Array:
        """Compute states by one call of the encoder, for chunks that are read, and one of the
        decoder.
        """
        memories = None
        if "chunks" in batch:
            memories = self.apply(params, batch["chunks"][None], method="encode")
        arguments = (batch["inputs"][None], memories, batch["slots"], batch["place"], PREDICT)
        return self.apply(params, *arguments, method="states")[0]


class WholeTextStrategy(ChunkStrategy):
    """The strategy of a model that reads texts of any length: for scores a text is one piece."""

    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """Return one piece, the whole text."""
        text = np.concatenate([context, continuation])
        return [Piece(text, len(continuation))] if len(continuation) else []

    def shown(self, piece: Piece) -> np.ndarray:
        """Return all its tokens."""
        return piece.tokens

    def padded_length(self, piece: Piece) -> int:
        """Return whole chunks, a power of two of them."""
        chunks = -(-len(piece.tokens) // self.window)
        return bucket(chunks, 2 * chunks) * self.window

    def rows(self, length: int, most: int) -> int:
        """Return fewer pieces if texts are longer than the training sequences."""
        return max(1, min(most, most * self.module.chunks * self.window // length))


@dataclasses.dataclass(frozen=True)
class RecurrentStrategy(WholeTextStrategy):
    """The strategy of recurrent memory. Position t predicts token t."""

    def reach(self, context: int, continuation: int) -> int:
        """Return all of them; the state depends on all."""
        return context

    def hidden(self, params: Params, batch: dict[str, Any]) -> jax.Array:
        """Compute states by one call of the module."""
        inputs = batch["inputs"]
        chunks = inputs.reshape(len(inputs), -1, self.window)
        states = self.apply(params, chunks, method="token_states")
        return states.reshape(len(inputs), -1, states.shape[-1])


@dataclasses.dataclass(frozen=True)
class PeerStrategy(WholeTextStrategy):
    """The strategy of the field's other memories (memjax/models/peers): a chunk is read again for
    every token, behind a start token.
    """

    start: int

    @property
    def cached(self) -> bool:
        """Return False: what a peer reads differs too much for one cache."""
        return False

    def reach(self, context: int, continuation: int) -> int:
        """Return all of them; a state depends on all."""
        return context

    def hidden(self, params: Params, batch: dict[str, Any]) -> jax.Array:
        """Compute states of all chunks of the pieces, each from the chunks before it."""
        inputs = batch["inputs"]
        chunks = inputs.reshape(len(inputs), -1, self.window)
        first = jnp.full_like(chunks[..., :1], self.start)
        shown = jnp.concatenate([first, chunks[..., :-1]], axis=-1)
        request = next_chunks(shown, chunks)

        def run(module: Any) -> jax.Array:
            return module.hidden(module.fold(chunks[:, :-1]), request)

        states = self.apply(params, method=run)
        return states.reshape(len(inputs), -1, states.shape[-1])
