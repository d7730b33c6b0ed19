"""Text to a store by a trained stage, and what rounding costs of it.

Shapes: B chunk or text of a batch, N chunk, L token of a chunk, K vector of a chunk, E its width, H chunk that is decoded together, G group of
these, T = H * L tokens of a group.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.identity import encoder_settings, fingerprint
from memjax.checkpoints.reading import absolute
from memjax.config import from_json
from memjax.data import Tokenizer, spread
from memjax.instruments.information import token_scores
from memjax.instruments.quantisation import Rounded, quantisation
from memjax.instruments.system import System, special_ids, stage_tokenizer
from memjax.instruments.texts import batches
from memjax.instruments.uncertainty import Estimate
from memjax.models import Encoder, MemoryModel, build
from memjax.store.header import NAME_LIMIT, Origin
from memjax.store.rounding import KINDS
from memjax.store.sources import Chunks
from memjax.store.store import MemoryStore

ASK = "blank_copy"
"""How a memory model is asked for a text: it is shown nothing but memories."""


@dataclasses.dataclass(frozen=True, eq=False)
class Compressor:
    """A trained encoder, and the decoder that was trained on it, if there is one."""

    name: str
    """The stage's folder."""
    origin: Origin
    tokenizer: Tokenizer
    encoder: Encoder
    params: Mapping[str, Any]
    """Of the stage's whole model."""
    system: System | None
    """None where no decoder reads the memories."""
    why: str
    """Why there is none."""
    practised: bool
    """Whether the decoder was trained to say texts again from memories alone."""


def open_compressor(checkpoint: str | os.PathLike) -> Compressor:
    """The encoder that a stage left, whatever its family.

    Args:
      checkpoint: folder of the stage, as in runs/quickstart/stages/autoencoder.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, or its model has no encoder or no tokenizer.
      TokenizerError: the tokenizer cannot be read.
    """
    folder = absolute(checkpoint)
    params, meta = load_params(folder / "checkpoints")
    config = from_json(meta["config"])
    stage, model = config.stages[meta["stage"]], config.model
    if "encoder" not in params:
        raise CheckpointError(f"{folder}: a model of family {stage.family} that has no encoder; give a stage that has one")
    tokenizer = stage_tokenizer(folder, meta)
    if tokenizer is None:
        raise CheckpointError(
            f"{folder}: imported weights do not say which tokenizer is theirs; give a stage that memjax trained"
        )
    encoder = Encoder(model, config.data.vocabulary, expand="up" in params["encoder"])
    module, system, why = build(config, stage), None, ""
    ask = ASK if isinstance(module, MemoryModel) else ""
    try:
        system = System(module, special_ids(tokenizer), ask, stage.compat)
    except ValueError as error:
        why = str(error)
    where = str(checkpoint)
    origin = origin_of(encoder, params["encoder"], stage.family, meta["stage"], int(meta["step"]), tokenizer.fingerprint)
    origin = dataclasses.replace(origin, checkpoint=where if len(where) <= NAME_LIMIT and where.isprintable() else "")
    practised = not ask or bool(stage.objectives.get(ASK))
    return Compressor(str(folder), origin, tokenizer, encoder, params, system, why, practised)


def origin_of(encoder: Encoder, params: Any, family: str, stage: str, step: int, tokenizer: str) -> Origin:
    """What says whose memories an encoder's are; takes a hash of all its parameters.

    Args:
      encoder: that writes them.
      params: of the encoder.
      family: of the stage that left it.
      stage: its name.
      step: its number of steps.
      tokenizer: fingerprint of its tokenizer.
    """
    model = encoder.config
    chunk = jax.ShapeDtypeStruct((1, model.chunk_length), jnp.int32)
    shape: Any = jax.eval_shape(functools.partial(encoder.apply, {"params": params}), chunk)
    return Origin(
        family=family,
        stage=stage,
        step=step,
        settings=encoder_settings(model),
        sha256=fingerprint(params),
        tokenizer=tokenizer,
        vocabulary=encoder.vocabulary,
        chunk_length=model.chunk_length,
        shape=(shape.shape[1], shape.shape[2]),
    )


def compress(
    compressor: Compressor, chunks: Chunks, dtype: str, batch: int = 256, advance: Callable[[], None] = lambda: None
) -> MemoryStore:
    """The memories of chunks; a batch is fetched and rounded while the next is computed.

    Args:
      compressor: what reads them.
      chunks: in the words of its tokenizer.
      dtype: what is stored.
      batch: chunks at a time.
      advance: called when a batch is done.

    Raises:
      StoreError: there is no such dtype, or a memory is not finite.
    """
    store = MemoryStore.create(compressor.origin, dtype)
    shape = compressor.origin.shape
    for document in chunks.documents:
        store.append(document, np.empty((0, *shape), np.float32), np.empty((0, 4), np.int64))
    params, done = compressor.params["encoder"], 0
    computing: jax.Array | None = None
    for tokens in [*batches(chunks.tokens, batch), None]:
        before = computing
        computing = None if tokens is None else _encode(compressor.encoder, compressor.tokenizer.pad_id, params, tokens)
        if before is not None:
            found = np.asarray(before, np.float32)[: len(chunks) - done]
            _append(store, found, chunks.spans[done : done + len(found)])
            done += len(found)
            advance()
    return store


def _append(store: MemoryStore, memories: np.ndarray, spans: np.ndarray) -> None:
    """Memories of chunks of several documents, which `store` knows."""
    starts = np.flatnonzero(np.diff(spans[:, 0])) + 1
    for memory, span in zip(np.split(memories, starts), np.split(spans, starts), strict=True):
        store.append(int(span[0, 0]), memory, span[:, 1:])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(encoder: Encoder, pad_id: int, params: Any, tokens: jax.Array) -> Any:
    """[B, K, E] of chunks [B, L]."""
    return encoder.apply({"params": params}, tokens, tokens != pad_id)


def groups(documents: Int[np.ndarray, " N"], held: int) -> Int[np.ndarray, "G H"]:
    """Numbers of the chunks that are decoded together: `held` that follow each other and are of one document; -1 is none.

    Args:
      documents: the document of every chunk.
      held: H.
    """
    numbers = np.arange(len(documents))
    first = np.concatenate([[True], documents[1:] != documents[:-1]])[: len(documents)]
    place = numbers - np.maximum.accumulate(np.where(first, numbers, 0))
    group = np.cumsum(place % held == 0) - 1
    found = np.full((int(group[-1]) + 1 if len(group) else 0, held), -1)
    found[group, place % held] = numbers
    return found


def grouped(values: np.ndarray, picked: Int[np.ndarray, "B H"], fill: Any) -> np.ndarray:
    """Of [N, ...] one value a chunk those of some groups, [B, H, ...]; `fill` where there is no chunk."""
    there = (picked >= 0).reshape(*picked.shape, *[1] * (values.ndim - 1))
    return np.where(there, values[np.maximum(picked, 0)], np.asarray(fill, values.dtype))


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the stage's decoder makes of memories as they leave the encoder, and as they are stored."""

    nats: Estimate
    """A token, unrounded."""
    accuracy: Estimate
    rounded: Rounded | None
    """None of float32, which is not rounded."""


def rounding_loss(compressor: Compressor, chunks: Chunks, dtype: str, sample: int = 64, batch: int = 32) -> Loss | None:
    """Scores a sample of the text from unrounded and from rounded memories, paired; None where the stage has no decoder.

    Args:
      compressor: encoder and decoder.
      chunks: the text; the sample is spread evenly over it.
      dtype: what is stored.
      sample: texts, at most, each as many chunks as the decoder is given at once.
      batch: texts at a time.
    """
    system = compressor.system
    if system is None or not sample:
        return None
    numbers = groups(chunks.spans[:, 0], system.held)
    picked = numbers[spread(len(numbers), sample)]
    texts = grouped(chunks.tokens, picked, compressor.tokenizer.pad_id).reshape(len(picked), system.length)
    if dtype not in KINDS:
        scores = token_scores(system, compressor.params, texts, batch)
        return Loss(scores.mean_nats(), scores.accuracy(), None)
    found = quantisation(system, compressor.params, texts, [KINDS[dtype]], batch, places=["memory"])
    return Loss(found.nats, found.accuracy, found.rounded[0])
