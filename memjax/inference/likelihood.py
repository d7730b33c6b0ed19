"""Log-likelihoods of continuations, in few compiled shapes, for every family that predicts the next
token.

Shapes: B piece, J scored token.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from memjax.inference.generator import make_strategy
from memjax.inference.sampling import GenerationError
from memjax.inference.strategy import DecodingStrategy, Params, Piece, bucket
from memjax.objectives import SpecialIds
from memjax.progress import track
from memjax.sharding import gather, on_local_devices, place

BATCH = 32
"""Pieces per batch."""


class Likelihood(NamedTuple):
    """The likelihood of one continuation."""

    log_probability: float
    """Natural logarithm, summed over its tokens in float64."""
    greedy: bool
    """True if every token of it is the model's most likely one."""
    kept: int
    """Tokens of its context that its last token could depend on; fewer than all if the context is
    longer than the model keeps."""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of each token of a text, with teacher forcing."""

    tokens: Int[np.ndarray, " T"]
    """Ids."""
    pieces: tuple[str, ...]
    """The text of each token; bytes of a longer character are in hexadecimal."""
    nats: Float[np.ndarray, " T"]
    """Negative log-probability of each token."""
    is_argmax: Bool[np.ndarray, " T"]
    """True for each token that is the model's most likely one."""

    @property
    def mean_nats(self) -> float:
        """Return nats per token."""
        return float(self.nats.mean(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """Return the exponential of nats per token."""
        return math.exp(self.mean_nats)

    @property
    def accuracy(self) -> float:
        """Return the share of tokens that are the model's most likely ones."""
        return float(self.is_argmax.mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """A trained model that returns likelihoods of texts: its own forward pass on sequences as in
    training (memjax/inference/strategy.py).

    Attributes:
      module: a memory model, a causal language model or recurrent memory.
      params: its parameters.
      ids: reserved ids of its tokenizer.
      compat: quirks of its training (STAGE_QUIRKS).
      batch: pieces per batch; fewer for recurrent memory, if texts are longer than its training
        sequences.
      chunk_length: tokens per chunk, of a memory model that reads shorter ones; None for
        `config.model.chunk_length`.

    Raises:
      GenerationError: the model does not predict the next token of a text, or has no such chunks.
    """

    module: Any
    params: Params
    ids: SpecialIds
    compat: tuple[str, ...] = ()
    batch: int = BATCH
    chunk_length: int | None = None

    def __post_init__(self) -> None:
        _ = self.strategy

    @functools.cached_property
    def strategy(self) -> DecodingStrategy:
        """Return the strategy of the model."""
        return make_strategy(self.module, self.ids, self.compat, self.chunk_length)

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> list[Likelihood]:
        """Return the likelihood of each continuation after its context, in the order of `pairs`.

        Pieces of similar lengths share a batch; the result does not depend on the batch.

        Args:
          pairs: ids [tokens] of a context and of its continuation. A context may be empty if the
            model was trained with a start token; an empty continuation is certain.

        Raises:
          GenerationError: a context must not be empty, or an id is outside the vocabulary.
        """
        checked = [self._checked(number, *pair) for number, pair in enumerate(pairs)]
        pieces = [
            (i, piece) for i, pair in enumerate(checked) for piece in self.strategy.pieces(*pair)
        ]
        nats, greedy = np.zeros(len(checked)), np.ones(len(checked), bool)
        for owner, found, is_argmax in track(self._scored(pieces), "log-likelihood", len(pieces)):
            nats[owner] += found.astype(np.float64).sum()
            greedy[owner] &= bool(is_argmax.all())
        return [
            Likelihood(-float(nats[i]), bool(greedy[i]), self.strategy.reach(*map(len, pair)))
            for i, pair in enumerate(checked)
        ]

    def score_tokens(
        self, context: Any, continuation: Any
    ) -> tuple[Float[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
        """Score each token of a continuation.

        Args:
          context: ids [tokens] before it, as in `score`.
          continuation: ids [T].

        Returns:
          Nats per token, and whether the token is the most likely one.

        Raises:
          GenerationError: as `score`.
        """
        pieces = self.strategy.pieces(*self._checked(0, context, continuation))
        ends = np.cumsum([0] + [piece.scored for piece in pieces])
        nats, is_argmax = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], bool)
        for number, found, correct in self._scored(list(enumerate(pieces))):
            own, count = slice(ends[number], ends[number + 1]), pieces[number].scored
            nats[own], is_argmax[own] = found[:count], correct[:count]
        return nats, is_argmax

    def _scored(
        self, pieces: Sequence[tuple[int, Piece]]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (owner, nats [J], whether each token is the most likely one [J]) of every piece,
        similar lengths together. Processes divide the batches.
        """
        found = self._scored_here(pieces)
        if place()[1] == 1:
            yield from found
        else:
            yield from itertools.chain.from_iterable(gather(list(found)))

    def _scored_here(
        self, pieces: Sequence[tuple[int, Piece]]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the pieces of `_scored` in the batches of this process. A batch is fetched while
        the next one is computed.
        """
        program, waiting = compiled(self.strategy), None
        number, processes = place()
        batches = itertools.islice(self._batches(pieces), number, None, processes)
        for owners, batch in itertools.chain(batches, [((), None)]):
            before = waiting
            with on_local_devices():
                waiting = (owners, program(self.params, batch)) if owners else None
            if before is not None:
                yield from zip(before[0], *jax.device_get(before[1]), strict=False)

    def _batches(
        self, pieces: Sequence[tuple[int, Piece]]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield the owners of the pieces of each batch, and its arrays. The longest come first, and
        those of one text stay together.
        """

        def shape_of(owned: tuple[int, Piece]) -> tuple[int, ...]:
            return self.strategy.shape(owned[1])

        ordered = sorted(pieces, key=shape_of, reverse=True)
        for shape, same in itertools.groupby(ordered, shape_of):
            group = list(same)
            size = bucket(len(group), self.strategy.rows(shape[0], self.batch))
            for start in range(0, len(group), size):
                part = group[start : start + size]
                # Filled up with present pieces, so that no further chunk is encoded.
                filled = [piece for _, piece in part] + [part[0][1]] * (size - len(part))
                yield [owner for owner, _ in part], self.strategy.arrays(filled, shape)

    def _checked(
        self, number: int, context: Any, continuation: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        pair = tuple(np.asarray(ids, np.int32).reshape(-1) for ids in (context, continuation))
        both = np.concatenate(pair)
        if both.size and not 0 <= both.min() <= both.max() < self.module.vocab_size:
            raise GenerationError(
                f"text {number} has ids from {both.min()} to {both.max()}; the model's go from 0"
                f" to {self.module.vocab_size - 1}"
            )
        if self.strategy.needs_token and not pair[0].size:
            raise GenerationError(
                f"text {number} has no context, and this model was trained without a start token:"
                " give a token or more"
            )
        return pair[0], pair[1]


@functools.lru_cache(maxsize=8)
def compiled(strategy: DecodingStrategy) -> Any:
    """Return the same program for the same model; jit compiles it once per shape."""
    return jax.jit(strategy.score)
