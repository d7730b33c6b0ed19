"""Log-likelihoods of continuations, in few compiled shapes, for every family that predicts the next token.

Shapes: B piece, J scored token.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from memjax.evals.errors import EvalError
from memjax.evals.layout import Layout, Piece, make_layout
from memjax.inference.reader import Params, bucket
from memjax.objectives import SpecialIds
from memjax.training.progress import Reporter

BATCH = 32
"""Pieces at a time."""
MakeBar = Callable[[str, int], AbstractContextManager[Any]]


class Likelihood(NamedTuple):
    """Of one continuation."""

    log_probability: float
    """Natural logarithm, summed over its tokens in float64."""
    greedy: bool
    """Whether every token of it is the model's most likely one."""
    kept: int
    """Tokens of its context that its last token could depend on; fewer than there are where the context is longer than the model keeps."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """A trained model that says how likely texts are: its own forward pass on rows laid out as in training (memjax/evals/layout.py).

    Attributes:
      module: a memory model, a causal language model or recurrent memory.
      params: its parameters.
      ids: reserved ids of its tokenizer.
      compat: quirks it was trained under (STAGE_QUIRKS).
      batch: pieces at a time; of recurrent memory fewer, where texts are longer than its rows.

    Raises:
      GenerationError: the model does not say what comes next in a text.
    """

    module: nn.Module
    params: Params
    ids: SpecialIds
    compat: tuple[str, ...] = ()
    batch: int = BATCH

    def __post_init__(self) -> None:
        _ = self.layout

    @functools.cached_property
    def layout(self) -> Layout:
        """How texts are shown."""
        return make_layout(self.module, self.ids, self.compat)

    def score(self, pairs: Sequence[tuple[Any, Any]], bar: MakeBar | None = None) -> list[Likelihood]:
        """The likelihood of each continuation after its context, in the order of `pairs`.

        Pieces of like lengths are scored together; what is beside one in its batch changes nothing.

        Args:
          pairs: ids [tokens] of a context and of its continuation. A context may be empty, but not where the model was trained without a
            start token; an empty continuation is certain.
          bar: as `Reporter.bar`.

        Raises:
          EvalError: a context is empty where it must not be, or an id is not of the vocabulary.
        """
        checked = [self._checked(number, *pair) for number, pair in enumerate(pairs)]
        pieces = [(i, piece) for i, pair in enumerate(checked) for piece in self.layout.pieces(*pair)]
        nats, greedy = np.zeros(len(checked)), np.ones(len(checked), bool)
        waiting: list[tuple[list[int], Any]] = []

        def collect() -> int:
            owners, scored = waiting.pop()
            found_nats, correct = jax.device_get(scored)
            for row, owner in enumerate(owners):
                nats[owner] += found_nats[row].astype(np.float64).sum()
                greedy[owner] &= bool(correct[row].all())
            return len(owners)

        program = compiled(self.layout)
        with (bar or Reporter().silenced().bar)("log-likelihood", len(pieces)) as shown:
            for owners, batch in self._batches(pieces):
                scored = program(self.params, batch)
                # Fetched while the next batch is computed.
                if waiting:
                    shown.advance(collect())
                waiting.append((owners, scored))
            if waiting:
                shown.advance(collect())
        kept = (self.layout.kept(len(context), len(continuation)) for context, continuation in checked)
        return [Likelihood(-float(n), bool(g), k) for n, g, k in zip(nats, greedy, kept, strict=True)]

    def _batches(self, pieces: Sequence[tuple[int, Piece]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Whose pieces are in each batch, and its arrays. The longest come first, and those of one text stay side by side."""
        groups: dict[tuple[int, ...], list[tuple[int, Piece]]] = {}
        for owner, piece in pieces:
            groups.setdefault(self.layout.shape(piece), []).append((owner, piece))
        for shape in sorted(groups, reverse=True):
            group = groups[shape]
            size = bucket(len(group), self.layout.rows(shape[0], self.batch))
            for start in range(0, len(group), size):
                part = group[start : start + size]
                # Filled up with what is there, so that nothing more is encoded.
                filled = [piece for _, piece in part] + [part[0][1]] * (size - len(part))
                yield [owner for owner, _ in part], self.layout.arrays(filled, shape)

    def _checked(self, number: int, context: Any, continuation: Any) -> tuple[np.ndarray, np.ndarray]:
        module: Any = self.module
        pair = tuple(np.asarray(ids, np.int32).reshape(-1) for ids in (context, continuation))
        both = np.concatenate(pair)
        if both.size and not 0 <= both.min() <= both.max() < module.vocabulary:
            raise EvalError(
                f"text {number} has ids from {both.min()} to {both.max()}; the model's go from 0 to {module.vocabulary - 1}"
            )
        if self.layout.needs_context and not pair[0].size:
            raise EvalError(
                f"text {number} has no context, and this model was trained without a start token: give a token or more"
            )
        return pair[0], pair[1]


@functools.lru_cache(maxsize=8)
def compiled(layout: Layout) -> Any:
    """The same program for the same model; jit compiles it once for each shape."""
    return jax.jit(layout.score)
