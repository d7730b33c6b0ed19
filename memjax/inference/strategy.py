"""The strategy of a model family, for generation and for scores.

A sequence is a window of recent tokens plus a context of all tokens before. In generation a new
token enters the window. When the window is full, it advances: its oldest tokens move into the
context.

For scores a text is split into pieces, one per window, and each token of a continuation is scored
in exactly one of them. Pieces are filled up after all scored tokens, and no decoder here reads
ahead: nothing is masked. At most one block of logits exists at a time (memjax/layers/head.py), and
only for scored positions.

Shapes: B sequence or piece, W token of the window, M chunk before the window, L token of a chunk, D
width, G prefix memory, K vector of it, E its width, T input of a piece, J scored token.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.data import Tokenizer

SHORTEST = 8
"""Smaller pieces are filled up to this length: another program would save too little."""
Params = Any


class Prompt(NamedTuple):
    """One prompt, split into chunks and window."""

    chunks: np.ndarray
    """Int[M, L]: kept whole chunks before the window, the oldest first."""
    window: np.ndarray
    """Int[tokens]: fewer than W."""


class PrefixMemories(NamedTuple):
    """Memories before the text of each sequence, in place of earlier chunks."""

    vectors: Float[Array | np.ndarray, "B G K E"]
    """The oldest first; those after `count` are not read."""
    count: Int[Array | np.ndarray, " B"]


class Piece(NamedTuple):
    """The input of one pass of a model, and its scored tokens."""

    tokens: np.ndarray
    """Int[tokens]: the tokens that the model reads, with the scored ones at the end."""
    scored: int
    """J or fewer."""
    earlier: np.ndarray = np.zeros((0, 1), np.int32)
    """Int[chunks, L]: whole chunks before `tokens`, read as memories, the oldest first."""


@dataclasses.dataclass(frozen=True)
class DecodingStrategy(abc.ABC):
    """The strategy of one model. Methods with parameters of the model are pure and are traced.

    `position` is the number of tokens in a window, `context` represents the tokens before it, and
    `cache` is the KV cache, or another state, of the window.
    """

    module: Any
    start: int | None
    """The first id of a window; None if it begins with its first token."""

    @property
    def shift(self) -> int:
        """Return the number of inputs before the first token."""
        return int(self.start is not None)

    @property
    @abc.abstractmethod
    def window(self) -> int:
        """Return W: the tokens at which the window advances."""

    @property
    def length(self) -> int:
        """Return the number of inputs of a whole window; the last token may be none of them."""
        return self.window - self.needs_token

    @property
    def limit(self) -> int | None:
        """Return the number of tokens before part of a text is dropped; None if never."""
        return None

    @property
    def grows(self) -> bool:
        """Return whether a full window is written into the cache, which grows (`write_chunk`,
        `grow`, `room`); others read the context and the new window again.
        """
        return False

    def held(self, context: Any) -> Any:
        """Return what generation keeps of a context."""
        return context

    @property
    @abc.abstractmethod
    def advanced(self) -> int:
        """Return the number of tokens in a window that has just advanced."""

    @property
    def needs_token(self) -> bool:
        """Return whether the first token of a text has no score, and an empty prompt cannot be
        continued: no token or state precedes its first token.
        """
        return False

    def prompt(self, tokenizer: Tokenizer, text: str = "") -> Int[np.ndarray, " tokens"]:
        """Return the ids of a text without context, and never none where `needs_token`: then an
        empty text is the begin of a document if the settings beside a vocabulary name one, or else
        the end of another document.
        """
        first = tokenizer.eos_id if tokenizer.begins is None else tokenizer.bos_id
        ids = tokenizer.encode(text)
        return ids if len(ids) else np.array([first] * self.needs_token, np.int32)

    def kept(self, chunks: int) -> int:
        """Return how many prefix memories fit before that many whole chunks of a prompt; the oldest
        are left out.
        """
        return 0

    @property
    def cached(self) -> bool:
        """Return whether `decode_step` exists. Without it every token reads the window again from
        its start.
        """
        return self.module.config.decoder.kind == "transformer"

    # Generation

    @abc.abstractmethod
    def cut(self, prompt: np.ndarray) -> Prompt:
        """Split a prompt at the places where its windows would have advanced, token by token."""

    @abc.abstractmethod
    def encode_context(
        self,
        params: Params,
        chunks: Int[Array, "B M L"],
        count: Int[Array, " B"],
        prefix: PrefixMemories | None = None,
    ) -> Any:
        """Return the context before the window; all in one call. Leaves begin with the axis B.

        Args:
          params: of the module.
          chunks: of which sequence b has `count[b]`.
          count: of each sequence.
          prefix: memories before them, for a memory model; together with the chunks they fit into
            the context.
        """

    @abc.abstractmethod
    def prefill(
        self,
        params: Params,
        context: Any,
        tokens: Int[Array, "B W"],
        position: Int[Array, " B"],
        span: int,
    ) -> tuple[Float[Array, "B D"], Any]:
        """Return the state that predicts the next token, and the cache of the window, whose leaves
        have B as their second axis.

        Args:
          params: of the module.
          context: from `encode_context` or `advance_window`.
          tokens: the windows.
          position: tokens in each; later ones are not read.
          span: the greatest position of a sequence whose results are used.
        """

    @abc.abstractmethod
    def decode_step(
        self,
        params: Params,
        context: Any,
        cache: Any,
        token: Int[Array, " B"],
        position: Int[Array, " B"],
    ) -> tuple[Float[Array, "B D"], Any]:
        """Extend `prefill` by one token, from the cache of the window before it; only if `cached`.

        For a full window the result is arbitrary.

        Args:
          params: of the module.
          context: as in `prefill`.
          cache: of the window without the token.
          token: the new one.
          position: tokens in each window, the new one included.
        """

    @abc.abstractmethod
    def advance_window(
        self, params: Params, context: Any, tokens: Int[Array, "B W"], position: Int[Array, " B"]
    ) -> tuple[Any, Int[Array, "B W"], Int[Array, " B"]]:
        """Return (context, tokens, position) after the window of every sequence advanced; for a
        window that is not full the result is arbitrary.
        """

    def inputs(self, tokens: Int[Array, "B W"], span: int) -> Int[Array, "B T"]:
        """Return the inputs of the decoder for the tokens of a window, up to `span`."""
        shown = min(span + self.shift, self.length) if self.cached else self.length
        if self.start is None:
            return tokens[:, :shown]
        start_B1 = jnp.full_like(tokens[:, :1], self.start)
        return jnp.concatenate([start_B1, tokens[:, : shown - 1]], axis=1)

    def logits(self, params: Params, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Return float32 logits of the next token."""
        logits = self.apply(params, hidden, method=lambda module, h: module.head(h))
        return logits.astype(jnp.float32)

    def apply(self, params: Params, *args: Any, method: Any) -> Any:
        """Call a method of the module, or a function of it."""
        return self.module.apply({"params": params}, *args, method=method)

    # Scores

    @abc.abstractmethod
    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """Return pieces in which every token of the continuation is scored once."""

    @abc.abstractmethod
    def reach(self, context: int, continuation: int) -> int:
        """Return how many of that many context tokens the last token of the continuation can depend
        on.
        """

    @abc.abstractmethod
    def hidden(self, params: Params, batch: dict[str, Any]) -> Float[Array, "B T D"]:
        """Return states at all positions of all pieces of a batch from `arrays`."""

    def shown(self, piece: Piece) -> Int[np.ndarray, " T"]:
        """Return the inputs of a piece; the last one is followed by its last token."""
        before = piece.tokens[:-1]
        return before if self.start is None else np.insert(before, 0, self.start)

    def padded_length(self, piece: Piece) -> int:
        """Return the number of inputs that a piece is filled up to: a power of two, or the maximum.
        That of a mixer is always the maximum.
        """
        if self.module.config.decoder.kind != "transformer":
            return self.length
        return bucket(max(len(piece.tokens) - self.needs_token, SHORTEST), self.length)

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """Return the shape of a piece; pieces of one shape can share a batch: (T, J, ...)."""
        length = self.padded_length(piece)
        return length, bucket(max(piece.scored, SHORTEST), length)

    def rows(self, length: int, most: int) -> int:
        """Return the batch size; pieces of the length of a training sequence may be `most`."""
        return most

    def arrays(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> dict[str, Any]:
        """Return a batch of pieces of one shape: inputs, labels of scored tokens, the positions
        `at` which these are predicted, and how many of them are `scored`.
        """
        inputs = np.zeros((len(pieces), shape[0]), np.int32)
        at, labels = np.zeros((2, len(pieces), shape[1]), np.int32)
        scored = np.array([piece.scored for piece in pieces], np.int32)
        for row, piece in enumerate(pieces):
            shown, count = self.shown(piece), piece.scored
            inputs[row, : len(shown)] = shown
            at[row, :count] = len(shown) - count + np.arange(count)
            labels[row, :count] = piece.tokens[len(piece.tokens) - count :]
        return {"inputs": inputs, "at": at, "labels": labels, "scored": scored}

    def score(
        self, params: Params, batch: dict[str, Any]
    ) -> tuple[Float[Array, "B J"], Bool[Array, "B J"]]:
        """Return the nats of each scored token, 0 after the last, and whether it is the most likely
        one, True after the last. Compiled once per `shape` and number of pieces.
        """
        labels_BJ = batch["labels"]
        hidden_BTD = self.hidden(params, batch)
        picked_BJD = jnp.take_along_axis(hidden_BTD, batch["at"][..., None], axis=1, mode="clip")
        nats, correct = self.apply(
            params,
            picked_BJD,
            labels_BJ,
            method=lambda module, h, x: module.head.token_losses(h, x),
        )
        real_BJ = jnp.arange(labels_BJ.shape[1]) < batch["scored"][:, None]
        return jnp.where(real_BJ, nats, 0.0), correct | ~real_BJ


def bucket(n: int, most: int) -> int:
    """Return `n` rounded up to a power of two, but at most `most`, so that few lengths compile."""
    return min(most, 1 << (n - 1).bit_length()) if n > 0 else 0
