"""What a model knows of held-out rows: nats, bits per byte and accuracy, token-weighted, whole and by position in the chunk.

Shapes: B row, N token of a row, X chunk decoded, L token of a chunk, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from memjax import objectives
from memjax.config import Stage
from memjax.instruments.uncertainty import Estimate, ratio
from memjax.objectives import SpecialIds
from memjax.sharding import on_mesh

_DEFAULT = Stage()


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One objective over a set of rows."""

    nats: float
    """Mean -log probability of a token, in nats."""
    accuracy: float
    """Share of the tokens that were the most likely one, teacher-forced."""
    bits_per_byte: float | None
    """Bits for all scored tokens over the bytes of text they stand for; None for an objective that scores no tokens."""
    by_position: list[float]
    """Accuracy at each of the L positions of a chunk, of the N of a row in a model that reads whole rows, or of the N / 2 it copies."""
    tokens: int
    """Tokens scored."""
    row_nats: np.ndarray
    """[rows], nats of a row's scored tokens together, for comparing models row by row."""
    row_correct: np.ndarray
    row_tokens: np.ndarray

    @property
    def nats_estimate(self) -> Estimate:
        """`nats` with its interval over rows."""
        return ratio(self.row_nats, self.row_tokens)

    @property
    def accuracy_estimate(self) -> Estimate:
        """`accuracy` with its interval over rows."""
        return ratio(self.row_correct, self.row_tokens)


def measure(
    module: nn.Module,
    params: Any,
    batches: Iterable[np.ndarray | jax.Array],
    names: Sequence[str],
    ids: SpecialIds,
    byte_lengths: np.ndarray,
    after_batch: Callable[[], None] = lambda: None,
    stage: Stage = _DEFAULT,
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Accuracy]:
    """Scores rows under every named objective; sums are kept in float64 on the host, so that no token weighs more than another.

    Args:
      module: a model of `memjax.models`.
      params: its parameters.
      batches: int [B, N]; rows of nothing but padding count nothing.
      names: objectives.
      ids: reserved ids.
      byte_lengths: [V], UTF-8 bytes each id stands for.
      after_batch: called when a batch is done.
      stage: where an objective's own settings come from.
      mesh: the devices that parameters and batches lie on, if several.

    Raises:
      ValueError: there are no batches, nothing in them to score, or the module has no such objective.
    """
    sums_fn = on_mesh(functools.partial(_batch_sums, module=module, names=tuple(names), ids=ids, stage=stage), mesh)
    parts: list[dict[str, Any]] = []
    for batch in batches:
        found = jax.device_get(sums_fn(params, batch, np.asarray(byte_lengths)))
        parts.append(jax.tree.map(lambda x: np.asarray(x, np.float64), found))
        after_batch()
    if not parts:
        raise ValueError("no rows to measure")
    return {name: _means(name, [part[name] for part in parts]) for name in names}


def _batch_sums(
    params: Any,
    tokens_BN: jax.Array,
    lengths_V: jax.Array,
    *,
    module: nn.Module,
    names: tuple[str, ...],
    ids: SpecialIds,
    stage: Stage,
) -> dict[str, tuple[jax.Array, ...]]:
    scores = objectives.score(module, {"params": params}, tokens_BN, names, ids, stage)
    return {name: _sums(s, lengths_V) for name, s in scores.items()}


def _sums(s: objectives.Scores, lengths_V: jax.Array) -> tuple[jax.Array, ...]:
    """Nats, correct tokens and tokens of each row, correct tokens and tokens at each position, and bytes."""
    correct = s.correct * s.weight
    text_bytes = jnp.float32(0.0) if s.labels is None else jnp.sum(lengths_V[s.labels] * s.weight)
    by_row = (jnp.sum(x, axis=(1, 2)) for x in (s.nats * s.weight, correct, s.weight))
    by_position = (jnp.sum(x, axis=(0, 1)) for x in (correct, s.weight))
    return (*by_row, *by_position, text_bytes)


def _means(name: str, parts: Sequence[tuple[np.ndarray, ...]]) -> Accuracy:
    columns = list(zip(*parts, strict=True))
    row_nats, row_correct, row_tokens = (np.concatenate(column) for column in columns[:3])
    correct_L, count_L, text_bytes = (np.sum(column, axis=0) for column in columns[3:])
    count, nats = float(count_L.sum()), float(row_nats.sum())
    if not count:
        raise ValueError(f"objective {name!r} has nothing to score in these rows: all of it is padding, or too short")
    real = row_tokens > 0
    return Accuracy(
        nats=nats / count,
        accuracy=float(correct_L.sum()) / count,
        bits_per_byte=nats / math.log(2) / float(text_bytes) if text_bytes else None,
        by_position=(correct_L / np.maximum(count_L, 1)).tolist(),
        tokens=int(count),
        row_nats=row_nats[real],
        row_correct=row_correct[real],
        row_tokens=row_tokens[real],
    )
