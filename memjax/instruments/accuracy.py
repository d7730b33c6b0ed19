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
    totals: dict[str, Any] | None = None
    for batch in batches:
        found = jax.device_get(sums_fn(params, batch, np.asarray(byte_lengths)))
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        after_batch()
    if totals is None:
        raise ValueError("no rows to measure")
    return {name: _means(name, *totals[name]) for name in names}


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
    return {
        name: (
            jnp.sum(s.nats * s.weight),
            jnp.sum(s.correct * s.weight, axis=(0, 1)),
            jnp.sum(s.weight, axis=(0, 1)),
            jnp.float32(0.0) if s.labels is None else jnp.sum(lengths_V[s.labels] * s.weight),
        )
        for name, s in scores.items()
    }


def _means(name: str, nats: np.ndarray, correct_L: np.ndarray, count_L: np.ndarray, text_bytes: np.ndarray) -> Accuracy:
    count = float(count_L.sum())
    if not count:
        raise ValueError(f"objective {name!r} has nothing to score in these rows: all of it is padding, or too short")
    return Accuracy(
        nats=float(nats) / count,
        accuracy=float(correct_L.sum()) / count,
        bits_per_byte=float(nats) / math.log(2) / float(text_bytes) if text_bytes else None,
        by_position=(correct_L / np.maximum(count_L, 1)).tolist(),
        tokens=int(count),
    )
