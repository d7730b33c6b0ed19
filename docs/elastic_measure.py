"""Measure what models give back of held-out text from k vectors of chunks of l tokens.

The same text for every k and l, by the models alone: no file of memories is written.

Shapes: N token of the text, R row, C chunk of the row, L token of the model's longest chunk, K
vector, E its width.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.data import prepare
from memjax.inference import TrainedModel, load
from memjax.models.request import alone, next_chunks
from memjax.objectives.recall import recall_request
from memjax.objectives.requests import shift_right

TOKENS = 16_384
"""Held-out text, about."""
AMONG = 64
"""Memories among which a chunk is recalled."""
CALL = 2_048
"""Tokens of one call, about."""


def held_out(model: TrainedModel, tokens: int = TOKENS) -> Int[np.ndarray, "R N"]:
    """Return held-out rows of a model's run that have no padding, one after another."""
    data = prepare(model.config.data, model.data, lambda _: None)
    rows = map(data.validation.__getitem__, range(len(data.validation)))
    full = [row for row in rows if (row != model.ids.pad).all()]
    return np.stack(full[: tokens // len(full[0])])


def cut(text: Int[np.ndarray, "..."], chunks: int, length: int, longest: int) -> np.ndarray:
    """Return a text in rows of so many chunks [R, C, L], each padded on the right."""
    rows = text.reshape(-1)[: text.size // (chunks * length) * chunks * length]
    rows = rows.reshape(-1, chunks, length)
    return np.pad(rows, ((0, 0), (0, 0), (0, longest - length)))


def measure(workdir: Path, vectors: int, length: int, tokens: int = TOKENS) -> dict[str, float]:
    """Return the numbers of a point: an autoencoder and a decoder at k vectors of l tokens.

    Returns:
      `reconstructed` and `reconstructed_exact`, shares of tokens and of whole chunks that the
      autoencoder gives back; `recalled` and `recalled_exact`, those that the decoder gives back
      blank, among 64 memories; `nats` per next token in rows as long as those of training.

    Args:
      workdir: of `memjax train`, with stages `autoencoder` and `combined`.
      vectors: k.
      length: l.
      tokens: tokens of the text.
    """
    found = autoencoder_numbers(load(workdir, "autoencoder"), vectors, length, tokens)
    return found | decoder_numbers(load(workdir, "combined"), vectors, length, tokens)


def autoencoder_numbers(
    model: TrainedModel, vectors: int, length: int, tokens: int = TOKENS
) -> dict[str, float]:
    """Return `reconstructed` and `reconstructed_exact` (`measure`)."""
    longest = model.module.config.chunk_length
    chunks = cut(held_out(model, tokens), CALL // length, length, longest)
    right = [_reconstruct(model.module, model.params, part, vectors) for part in chunks]
    return _shares("reconstructed", np.concatenate(right)[:, :length])


def decoder_numbers(
    model: TrainedModel, vectors: int, length: int, tokens: int = TOKENS
) -> dict[str, float]:
    """Return `recalled`, `recalled_exact` and `nats` (`measure`)."""
    rows, longest = held_out(model, tokens), model.module.config.chunk_length
    call = functools.partial(_decode, model.module, model.ids, model.params)
    windows = cut(rows, AMONG, length, longest)
    right = [call(part[None], vectors, recall=True)[1] for part in windows]
    texts = cut(rows, rows.shape[1] // length, length, longest)
    nats = [call(part[None], vectors, recall=False)[0] for part in texts]
    found = _shares("recalled", np.concatenate(right)[:, :, :length].reshape(-1, length))
    return found | {"nats": float(np.concatenate(nats)[:, :, :length].mean())}


def _shares(name: str, right: np.ndarray) -> dict[str, float]:
    return {name: float(right.mean()), f"{name}_exact": float(right.all(axis=-1).mean())}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _reconstruct(module: Any, params: Any, chunks: Int[Array, "C L"], vectors: int) -> Any:
    def run(module: Any) -> Float[Array, "C L V"]:
        memory = module.encode(chunks, chunks != 0)
        return module.decode(memory[:, :vectors])

    logits = module.apply({"params": params}, method=run)
    return logits.argmax(-1) == chunks


@functools.partial(jax.jit, static_argnums=(0, 1, 4), static_argnames="recall")
def _decode(
    module: Any, ids: Any, params: Any, chunks: Int[Array, "R C L"], vectors: int, *, recall: bool
) -> Any:
    """Return nats and whether tokens are the most likely ones, of all chunks of a text."""
    count = chunks.shape[1]
    request = (
        recall_request("blank_recall", chunks, np.arange(count), count, ids)
        if recall
        else next_chunks(shift_right(chunks, ids.bos, ids.pad), chunks)
    )
    joined = alone(request)

    def run(module: Any) -> Any:
        memories = module.encode(chunks, chunks != ids.pad)[:, :, :vectors]
        shown = joined.inputs != ids.pad
        states = module.joined_states(joined, memories, None, shown)
        return module.token_losses(states, joined.labels)

    return module.apply({"params": params}, method=run)
