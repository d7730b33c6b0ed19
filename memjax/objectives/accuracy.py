"""Token-weighted metrics on held-out rows: nats, bits per byte and accuracy, also by position.

Shapes: B row, N token of a row, X chunk decoded, L token of a chunk, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from memjax import objectives
from memjax.config import Stage
from memjax.errors import MemjaxError
from memjax.objectives import SpecialIds
from memjax.sharding import on_mesh

_DEFAULT = Stage()


class NoTargetError(MemjaxError):
    """No row has a token to score."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Metrics of one objective over a set of rows."""

    nats: float
    """Mean -log probability per token, in nats."""
    accuracy: float
    """Share of tokens that were the argmax, with teacher forcing."""
    exact: float
    """Share of chunks with text whose tokens all were."""
    bits_per_byte: float | None
    """Total bits of the scored tokens over the bytes of their text; None for an objective that
    scores no tokens."""
    by_position: list[float]
    """Accuracy at each of the L positions of a chunk, of the N of a row in a model of whole rows,
    or of the N / 2 that it copies."""
    tokens: int
    """Number of scored tokens."""
    row_nats: np.ndarray
    """[rows], total nats of a row's scored tokens, for comparing models row by row."""
    row_correct: np.ndarray
    row_tokens: np.ndarray


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
    """Measure a model once; arguments as in `measurement` and in the function that it returns."""
    return measurement(module, names, ids, byte_lengths, stage, mesh)(params, batches, after_batch)


def measurement(
    module: nn.Module,
    names: Sequence[str],
    ids: SpecialIds,
    byte_lengths: np.ndarray,
    stage: Stage = _DEFAULT,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., dict[str, Accuracy]]:
    """Return a function of parameters and batches that is compiled once for all its calls.

    It measures the named objectives on rows; those without a target there are left out. Sums are
    accumulated in float64 on the host, so that all tokens have equal weight.

    Args:
      module: a model of `memjax.models`.
      names: objectives.
      ids: reserved ids.
      byte_lengths: [V], UTF-8 bytes of each id.
      stage: source of the objectives' settings.
      mesh: devices of parameters and batches, if several.

    Returns:
      The function. Its arguments are the model's parameters, batches of int [B, N], whose rows of
      padding only are ignored, and a function that is called after each batch. It raises
      NoTargetError where no objective has a token to score, and MemjaxError where there are no
      batches or the module has no such objective.
    """

    def batch_sums(params: Any, tokens_BN: jax.Array, lengths_V: jax.Array) -> Any:
        scores = objectives.score(module, {"params": params}, tokens_BN, names, ids, stage)
        return {name: _sums(s, lengths_V) for name, s in scores.items()}

    sums_fn = on_mesh(batch_sums, mesh)

    def measured(
        params: Any,
        batches: Iterable[np.ndarray | jax.Array],
        after_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, Accuracy]:
        parts: list[dict[str, Any]] = []
        for batch in batches:
            sums = jax.device_get(sums_fn(params, batch, np.asarray(byte_lengths)))
            parts.append(jax.tree.map(lambda x: np.asarray(x, np.float64), sums))
            after_batch()
        MemjaxError.require(parts, "got no rows to measure, expected at least one batch")
        found = {name: _means([part[name] for part in parts]) for name in names}
        NoTargetError.require(
            any(found.values()),
            f"objective {', '.join(map(repr, names))}: got no token to score, expected rows with"
            " text. All rows are padding or too short",
        )
        return {name: numbers for name, numbers in found.items() if numbers}

    return measured


def _sums(s: objectives.Scores, lengths_V: jax.Array) -> tuple[jax.Array, ...]:
    """Return nats, correct and count per row, correct and count per position, exact chunks and
    chunks, and bytes.
    """
    correct = s.is_argmax * s.weight
    text_bytes = jnp.float32(0.0) if s.labels is None else jnp.sum(lengths_V[s.labels] * s.weight)
    by_row = (jnp.sum(x, axis=(1, 2)) for x in (s.nats * s.weight, correct, s.weight))
    by_position = (jnp.sum(x, axis=(0, 1)) for x in (correct, s.weight))
    chunk = jnp.any(s.weight > 0, axis=2)
    exact = chunk & jnp.all((s.weight == 0) | (s.is_argmax > 0), axis=2)
    return (*by_row, *by_position, jnp.sum(exact), jnp.sum(chunk), text_bytes)


def _means(parts: Sequence[tuple[np.ndarray, ...]]) -> Accuracy | None:
    """Return the numbers of an objective, None without a target."""
    columns = list(zip(*parts, strict=True))
    row_nats, row_correct, row_tokens = (np.concatenate(column) for column in columns[:3])
    correct_L, count_L, exact, chunks, text_bytes = (np.sum(x, axis=0) for x in columns[3:])
    count, nats = float(count_L.sum()), float(row_nats.sum())
    if not count:
        return None
    real = row_tokens > 0
    return Accuracy(
        nats=nats / count,
        accuracy=float(correct_L.sum()) / count,
        exact=float(exact / chunks),
        bits_per_byte=nats / math.log(2) / float(text_bytes) if text_bytes else None,
        by_position=(correct_L / np.maximum(count_L, 1)).tolist(),
        tokens=int(count),
        row_nats=row_nats[real],
        row_correct=row_correct[real],
        row_tokens=row_tokens[real],
    )
