"""How a text is shown to a model so that its last tokens are scored: as the rows that the model was trained on.

Every family has a layout. It cuts a context and its continuation into pieces that are scored at once, each token of the continuation in
exactly one of them, and it is the traced function that scores a batch of pieces. What a piece is filled up with stands behind all that is
scored, and no decoder here reads ahead: nothing is masked. The logits of no more than a block of positions exist
at a time (memjax/layers/head.py), and only positions that are scored have any.

- A causal language model reads the tokens of one row: the last ones, where there are more.
- Recurrent memory reads all chunks in turn, however many there are.
- A memory model reads the tokens of a chunk and the memories of the chunks before it. Chunks begin where the text begins. Of a text of
  more chunks than a row has, the oldest leave, as they do in memjax.inference. A chunk that several pieces of a batch read is encoded once.

Shapes: B piece, N token of a row, L token of a chunk, C chunk of a text, M chunk that some piece of the batch reads the memory of, S slot,
K vector, D width, J scored token.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.evals.errors import EvalError
from memjax.inference.causal import CausalReader
from memjax.inference.generator import make_reader
from memjax.inference.memory import MemoryReader
from memjax.inference.reader import Params, bucket
from memjax.models import EMPTY, PREDICT, CausalLM, MemoryModel, RecurrentMemory
from memjax.objectives import SpecialIds

SHORTEST = 8
"""Lengths below it are filled up to it: they would save nothing worth a program."""
Arrays = dict[str, Any]
M = TypeVar("M", bound=nn.Module)


class Piece(NamedTuple):
    """What one pass of a model scores."""

    tokens: np.ndarray
    """Int[tokens]: those that are read as tokens, and at their end those that are scored."""
    scored: int
    """J or fewer."""
    earlier: np.ndarray
    """Int[chunks, L]: whole chunks before `tokens` that are read as memories, the oldest first."""


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC, Generic[M]):
    """How one model is shown texts. `score` is pure and is traced; it compiles once for each `shape` and number of pieces."""

    module: M
    ids: SpecialIds
    start: int | None
    """Id that a row or chunk begins with; None where it begins with its first token."""

    @property
    def model(self) -> Model:
        """The module's settings."""
        config: Any = self.module
        return config.config

    @property
    def needs_context(self) -> bool:
        """Whether the first token of a text cannot be scored: nothing is read before it."""
        return False

    @abc.abstractmethod
    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """Pieces in which every token of the continuation is scored once."""

    @abc.abstractmethod
    def kept(self, context: int, continuation: int) -> int:
        """Of that many tokens of context, the last ones that the last token of the continuation can depend on."""

    @abc.abstractmethod
    def length(self, piece: Piece) -> int:
        """Length that a piece is filled up to: a power of two, or the most that there is."""

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """Pieces of one shape can be of one batch: (length, J, ...)."""
        return self.length(piece), bucket(max(piece.scored, SHORTEST), self.length(piece))

    def rows(self, length: int, most: int) -> int:
        """Pieces of a batch, of which those of a training row's length may be `most`."""
        return most

    @abc.abstractmethod
    def arrays(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> Arrays:
        """A batch of pieces of one shape."""

    @abc.abstractmethod
    def hidden(self, params: Params, batch: Arrays) -> Float[Array, "B T D"]:
        """States at all positions of all pieces."""

    def score(self, params: Params, batch: Arrays) -> tuple[Float[Array, "B J"], Bool[Array, "B J"]]:
        """Nats of each scored token, 0 behind the last, and whether it is the most likely one, True there."""
        hidden = self.hidden(params, batch)
        at_BJ, labels_BJ = batch["at"], batch["labels"]
        picked_BJD = jnp.take_along_axis(hidden, at_BJ[..., None], axis=1, mode="clip")
        nats, correct = self.apply(params, picked_BJD, labels_BJ, method=lambda module, h, x: module.head.score(h, x))
        real_BJ = jnp.arange(labels_BJ.shape[1]) < batch["scored"][:, None]
        return jnp.where(real_BJ, nats, 0.0), correct | ~real_BJ

    def apply(self, params: Params, *args: Any, method: Any, **kwargs: Any) -> Any:
        """A method of the module, or a function of it."""
        return self.module.apply({"params": params}, *args, method=method, **kwargs)

    def _scored(self, pieces: Sequence[Piece], first: Sequence[int], most: int) -> Arrays:
        """Labels of the scored tokens and where they are said; `first` is where each piece's first token is said."""
        at, labels = np.zeros((2, len(pieces), most), np.int32)
        for row, (piece, begin) in enumerate(zip(pieces, first, strict=True)):
            place = len(piece.tokens) - piece.scored
            at[row, : piece.scored] = begin + place + np.arange(piece.scored)
            labels[row, : piece.scored] = piece.tokens[place:]
        return {"at": at, "labels": labels, "scored": np.array([piece.scored for piece in pieces], np.int32)}


@dataclasses.dataclass(frozen=True)
class CausalLayout(Layout[CausalLM]):
    """A row: its start token if it has one, and the last tokens of the text."""

    @property
    def needs_context(self) -> bool:
        """Without a start token position t says token t + 1."""
        return self.start is None

    @property
    def window(self) -> int:
        """Tokens of which a row says the last: one more than it is shown where it has no start token."""
        return self.module.length + (self.start is None)

    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """Disjoint windows of N scored tokens, each behind as many tokens as fit into its row."""
        text, found = np.concatenate([context, continuation]), []
        for begin in range(len(context), len(text), self.module.length):
            end = min(begin + self.module.length, len(text))
            found.append(Piece(text[max(0, end - self.window) : end], end - begin, _NO_CHUNKS))
        return found

    def kept(self, context: int, continuation: int) -> int:
        """What fits into the row of the last window."""
        return max(0, min(context, self.window - continuation))

    def length(self, piece: Piece) -> int:
        """A mixer's row is always whole."""
        whole = self.module.length
        shown = len(piece.tokens) - (self.start is None)
        return bucket(max(shown, SHORTEST), whole) if self.model.decoder.kind == "transformer" else whole

    def arrays(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> Arrays:
        """Rows filled up behind, where nothing that is scored reads them."""
        inputs = np.full((len(pieces), shape[0]), self.ids.pad, np.int32)
        for row, piece in enumerate(pieces):
            begun = piece.tokens if self.start is None else np.concatenate([[self.start], piece.tokens])
            inputs[row, : len(begun) - 1] = begun[:-1]
        first = [-1 if self.start is None else 0] * len(pieces)
        return {"inputs": inputs} | self._scored(pieces, first, shape[1])

    def hidden(self, params: Params, batch: Arrays) -> jax.Array:
        """One call of the module."""
        return self.apply(params, batch["inputs"], method="hidden")


@dataclasses.dataclass(frozen=True)
class RecurrentLayout(Layout[RecurrentMemory]):
    """All chunks of a text in turn; position t says token t."""

    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """One, of the whole text."""
        return [Piece(np.concatenate([context, continuation]), len(continuation), _NO_CHUNKS)] if len(continuation) else []

    def kept(self, context: int, continuation: int) -> int:
        """All, in the state."""
        return context

    def length(self, piece: Piece) -> int:
        """Whole chunks, a power of two of them."""
        chunks = -(-len(piece.tokens) // self.model.chunk_length)
        return bucket(chunks, 2 * chunks) * self.model.chunk_length

    def rows(self, length: int, most: int) -> int:
        """Fewer where texts are longer than the rows of training."""
        return max(1, min(most, most * self.module.chunks * self.model.chunk_length // length))

    def arrays(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> Arrays:
        """Chunks filled up behind, and chunks behind those."""
        tokens = np.full((len(pieces), shape[0]), self.ids.pad, np.int32)
        for row, piece in enumerate(pieces):
            tokens[row, : len(piece.tokens)] = piece.tokens
        chunks = tokens.reshape(len(pieces), -1, self.model.chunk_length)
        return {"tokens": chunks} | self._scored(pieces, [0] * len(pieces), shape[1])

    def hidden(self, params: Params, batch: Arrays) -> jax.Array:
        """One call of the module."""
        states = self.apply(params, batch["tokens"], method="hidden")
        return states.reshape(states.shape[0], -1, states.shape[-1])


@dataclasses.dataclass(frozen=True)
class MemoryLayout(Layout[MemoryModel]):
    """A chunk: its start token, its tokens, and the memories of the chunks before it.

    The chunks of all pieces are decoded as the chunks of one row whose slot table names the memories of each.
    """

    start: int
    """Id that a chunk begins with."""

    @property
    def budget(self) -> int:
        """Memories that the last chunk of a row reads."""
        return self.module.chunks - 1

    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """One for each chunk that holds a token of the continuation."""
        text, length = np.concatenate([context, continuation]), self.model.chunk_length
        chunks, found = text[: len(text) // length * length].reshape(-1, length), []
        for chunk in range(len(context) // length, -(-len(text) // length)):
            begin, end = chunk * length, min((chunk + 1) * length, len(text))
            earlier = chunks[max(0, chunk - self.budget) : chunk]
            found.append(Piece(text[begin:end], end - max(begin, len(context)), earlier))
        return found

    def kept(self, context: int, continuation: int) -> int:
        """The memories and tokens that the last chunk reads; the control without memories has its tokens alone."""
        length = self.model.chunk_length
        last = max(context + continuation - 1, 0) // length
        lost = last - self.budget if self.module.memory else last
        return max(0, context - max(0, lost) * length)

    def length(self, piece: Piece) -> int:
        """A mixer's chunk is always whole."""
        whole = self.model.chunk_length
        return bucket(max(len(piece.tokens), SHORTEST), whole) if self.model.decoder.kind == "transformer" else whole

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """(length, J, whether memories are read)."""
        return *super().shape(piece), int(len(piece.earlier) > 0 and self.module.memory)

    def arrays(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> Arrays:
        """Every chunk whose memory is read once, and in which slot of which piece it stands."""
        length, reads = shape[0], bool(shape[2])
        inputs = np.full((len(pieces), length), self.ids.pad, np.int32)
        slots = np.full((len(pieces), self.budget), EMPTY, np.int32)
        number: dict[bytes, int] = {}
        chunks: list[np.ndarray] = []
        for row, piece in enumerate(pieces):
            inputs[row, 0] = self.start
            inputs[row, 1 : len(piece.tokens)] = piece.tokens[:-1]
            for slot, chunk in enumerate(piece.earlier if reads else ()):
                at = number.setdefault(chunk.tobytes(), len(chunks))
                if at == len(chunks):
                    chunks.append(chunk)
                slots[row, slot] = at
        place = np.array([len(piece.earlier) for piece in pieces], np.int32)
        batch = {"inputs": inputs, "slots": slots, "place": place} | self._scored(pieces, [0] * len(pieces), shape[1])
        if chunks:
            filled_up = [chunks[0]] * (bucket(len(chunks), 2 * len(chunks)) - len(chunks))
            batch["chunks"] = np.stack(chunks + filled_up)
        return batch

    def hidden(self, params: Params, batch: Arrays) -> jax.Array:
        """One call of the encoder, for chunks that are read, and one of the decoder."""
        memories = None
        if "chunks" in batch:
            memories = self.apply(params, batch["chunks"][None], method="encode")
        arguments = (batch["inputs"][None], memories, batch["slots"], batch["place"], PREDICT)
        return self.apply(params, *arguments, method="hidden")[0]


def make_layout(module: nn.Module, ids: SpecialIds, compat: Sequence[str] = ()) -> Layout:
    """How `module`, trained under the quirks `compat`, is shown texts.

    Raises:
      GenerationError: it does not say what comes next in a text, or not everywhere.
    """
    reader = make_reader(module, ids, compat)
    if isinstance(reader, CausalReader):
        return CausalLayout(reader.module, ids, reader.start)
    if isinstance(reader, MemoryReader):
        return MemoryLayout(reader.module, ids, reader.start)
    if isinstance(module, RecurrentMemory):
        return RecurrentLayout(module, ids, None)
    raise EvalError(f"{type(module).__name__} has no layout of texts to score")


_NO_CHUNKS: Int[np.ndarray, "0 1"] = np.zeros((0, 1), np.int32)
