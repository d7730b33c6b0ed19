"""Recall curves: texts reconstructed from their memories, freely and with teacher forcing.

In free running, a model reads its own tokens, so that one error may cause others. An autoencoder,
and a memory model with blank prompts, read no tokens at all: for them both curves are equal.

Shapes: N text, B text of a batch, T token of a text, H chunk of a text, L token of a chunk, D
decoder width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.evaluation.instruments.information import (
    by_decile,
    curve,
    flat,
    frequency_deciles,
)
from memjax.inference.codec import MemoryCodec, Params
from memjax.inference.texts import check_texts, over_batches
from memjax.objectives.uncertainty import Estimate, ratio


@dataclasses.dataclass(frozen=True)
class Curves:
    """Accuracy of reconstructed chunks; a text of an autoencoder or an oracle is one chunk."""

    accuracy: Estimate
    """Share of all tokens that are correct."""
    exact: Estimate
    """Share of chunks without an error."""
    before_error: Estimate
    """Tokens of a chunk before its first error; all of them if there is none."""
    survival: tuple[Estimate, ...]
    """Share of chunks without an error up to and including each of the L positions."""
    by_position: tuple[Estimate, ...]
    """Accuracy at each of the L positions."""
    by_frequency: tuple[Estimate, ...]
    """Accuracy of the tokens of each decile of training text, the most frequent ids first.

    See `frequency_deciles`.
    """


def recall_curves(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    train_texts: Int[np.ndarray, "A T"],
    batch: int = 32,
) -> dict[str, Curves]:
    """Reconstruct texts from their own memories by greedy decoding.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: texts of `system.length` tokens each.
      train_texts: training texts of the same length, for the frequencies.
      batch: texts per batch.

    Returns:
      The curves `free`, from the memory and the model's own tokens, and `forced`, from the memory
      and the true tokens before each, where the model reads tokens.

    Raises:
      TextsError: there are no texts of one kind, or they have another length.
    """
    check_texts(system, texts)
    check_texts(system, train_texts)
    free, forced, weight, labels = over_batches(
        functools.partial(_batch, system, params), texts, batch, "recall"
    )
    deciles = frequency_deciles(train_texts, train_texts != system.ids.pad, system.vocabulary)[
        labels
    ]
    return {
        name: curves(correct, weight, deciles, system.held)
        for name, correct in (("free", free), ("forced", forced))
    }


def curves(
    correct: Float[np.ndarray, "N T"],
    weight: Float[np.ndarray, "N T"],
    deciles: Int[np.ndarray, "N T"],
    held: int = 1,
) -> Curves:
    """Return the curves of texts of `held` chunks each.

    Args:
      correct: 1 where a token is correct.
      weight: 1 where it is counted.
      deciles: deciles of the true tokens.
      held: H.
    """
    right, counts, chunk, exact = in_chunks(correct, weight, held)
    alive = np.cumsum(counts & ~right, axis=-1) == 0
    chunks = chunk.sum(axis=1)
    return Curves(
        accuracy=ratio(right.sum(axis=(1, 2)), counts.sum(axis=(1, 2))),
        exact=ratio(exact.sum(axis=1), chunks),
        before_error=ratio((counts & alive).sum(axis=(1, 2)), chunks),
        survival=curve(
            (alive & chunk[..., None]).sum(axis=1),
            np.repeat(chunks[:, None], alive.shape[-1], axis=1),
        ),
        by_position=curve(right.sum(axis=1), counts.sum(axis=1)),
        by_frequency=by_decile(correct, weight, deciles),
    )


def in_chunks(correct: np.ndarray, weight: np.ndarray, held: int) -> tuple[Any, Any, Any, Any]:
    """Return what counts of texts of H chunks each: every number of recall is of these.

    Args:
      correct: [N, T], 1 where a token is correct.
      weight: [N, T], 1 where it is counted.
      held: H.

    Returns:
      Tokens that are correct and counted, and tokens that are counted, bool [N, H, L]; chunks that
      are counted (those of padding alone are not), and of these the ones without an error, bool [N,
      H].
    """
    shape = (len(correct), held, -1)
    counts = weight.reshape(shape) > 0
    right, chunk = counts & (correct.reshape(shape) != 0), counts.any(axis=-1)
    return right, counts, chunk, chunk & (right == counts).all(axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _batch(system: MemoryCodec, params: Params, tokens: Int[Array, "B T"]) -> tuple[jax.Array, ...]:
    """Return correct tokens of free running and teacher forcing, weight, labels, [B, T] each."""
    memory = system.encode(params, tokens)
    _, forced, weight, labels = flat(system.score(params, memory, tokens))
    said = system.reconstruct(params, memory, tokens)
    if system.shift:  # A position predicts the token after it.
        chunks = said.reshape(tokens.shape[0], system.held, -1)
        said = jnp.roll(chunks, -1, axis=-1).reshape(tokens.shape)
    return (said == labels).astype(jnp.float32), forced.astype(jnp.float32), weight, labels
