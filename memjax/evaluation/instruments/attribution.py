"""Attribution: the share of each token's prediction that depends on the memory.

The measures of Badger 2026 (attribution): occlusion by L1, cosine or loss, noise, gradient times
input, and entropy by shifting (token_entropy.py). A decoder here reads a start token, so that
position t predicts token t and needs no shift. Under the quirk `unscored_first_tokens`, position t
predicts token t + 1, and attributions are shifted to their tokens; first tokens have none.

Shapes: N text, B text of a batch, T token of a text, M vector of a text, E its width, D decoder
width, V vocabulary; R row, L token of a row.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.data import Rows
from memjax.errors import MemjaxError
from memjax.evaluation.instruments.token_entropy import require_oracle, token_entropy
from memjax.files import atomic_file
from memjax.inference.codec import MemoryCodec, Params
from memjax.inference.texts import batches, check_texts, over_batches
from memjax.objectives.terms import Scores
from memjax.sharding import leads

MEASURES = {
    "occlusion_l1": "sum over the vocabulary of the logits' change without the memory",
    "occlusion_cosine": "1 - cosine of the logits with the memory and without it",
    "occlusion_loss": "change of the loss without the memory, in nats",
    "noise": "sum over the vocabulary of the logits' change under noise on the memory",
    "gradient": "sum over the memory of |gradient of the token's nats * memory|",
    "entropy": "nats of the token beyond those before it, by shifting; for oracles",
}
"""Measures by name, with their definitions."""
NOISE = 2.0**-2
"""Upper bound of the uniform noise in [0, NOISE) on the encoder's output."""
BLOCK_TOKENS = 1024
"""Tokens whose logits are in memory at once."""
COTANGENTS = 8
"""Tokens whose gradients are computed at once."""


class AttributionError(MemjaxError):
    """A measure is unknown, or rows are not a whole number of texts."""


def attribute(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    measure: str,
    batch: int = 32,
    seed: int = 0,
) -> Float[np.ndarray, "N T"]:
    """Return an attribution of every token, float32; 0 where `scored` is False.

    Without its memory a memory model has empty slots, and an oracle's decoder masks out the
    positions of the memory (memory_injection='token'). Other decoders read zeros instead: an
    autoencoder, and an oracle with memory_injection='embedding' or 'add'.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: texts of `system.length` tokens each.
      measure: a name in MEASURES.
      batch: texts per batch.
      seed: seed of the noise, which does not depend on `batch`.

    Raises:
      AttributionError: there is no such measure.
      EntropyError: `entropy` of a model that is no oracle.
      TextsError: there are no texts, or they have another length.
    """
    check_measure(system, measure)
    check_texts(system, texts)
    return _attribute(system, params, texts, np.arange(len(texts)), measure, batch, seed)


def check_measure(system: MemoryCodec, measure: str) -> None:
    """Raise an error if there is no such measure, or this system does not have it.

    Raises:
      AttributionError: there is no such measure.
      EntropyError: `entropy` of a model that is not an oracle.
    """
    AttributionError.require_one_of("measure", measure, MEASURES)
    if measure == "entropy":
        require_oracle(system)


def scored(system: MemoryCodec, texts: Int[np.ndarray, "N T"]) -> Bool[np.ndarray, "N T"]:
    """Return which tokens the system predicts: all but padding and unpredicted first tokens.

    First tokens have no prediction where no start token is inserted before them.
    """
    real = np.asarray(texts) != system.ids.pad
    if system.shift:
        real[:, 0] = False
    return real


def normalise(
    values: Float[np.ndarray, "N T"], counted: Bool[np.ndarray, "N T"]
) -> Float[np.ndarray, "N T"]:
    """Return each text's values scaled from 0, its minimum, to 1, its maximum, float32.

    This is min-max scaling (Badger 2026, attribution) over the counted tokens; others are 0. A text
    of equal values is 0 too.
    """
    low = np.min(values, axis=1, keepdims=True, where=counted, initial=np.inf)
    high = np.max(values, axis=1, keepdims=True, where=counted, initial=-np.inf)
    told = counted & (high > low)
    # A text without counted tokens has infinite ends.
    low = np.where(told, low, 0)
    return np.where(told, (values - low) / np.where(told, high - low, 1), 0).astype(np.float32)


def write_attributions(
    path: str | os.PathLike,
    system: MemoryCodec,
    params: Params,
    rows: Rows,
    measure: str,
    batch: int = 32,
    normalised: bool = True,
    seed: int = 0,
) -> None:
    """Write an attribution of every token of `rows`.

    It is the file of `config.data.attributions`, float32 [R, L] in .npy format. Rows are cut into
    texts from their start. The file is written completely or not at all.

    Args:
      path: the file; an existing one is replaced.
      system: encoder and decoder.
      params: its parameters.
      rows: all training rows of the run with weighted losses.
      measure: a name in MEASURES.
      batch: texts per batch.
      normalised: True scales each text to [0, 1], for the objective `complement_weighted`; the
        other weightings read unscaled values.
      seed: seed of the noise.

    Raises:
      AttributionError: there is no such measure, or a row is no whole number of texts.
      EntropyError: `entropy` of a model that is no oracle.
      RowsError: a row cannot be read.
    """
    check_measure(system, measure)
    length = system.length
    if not len(rows) or rows.row_tokens % length:
        raise AttributionError(
            f"{rows.folder}: {len(rows)} rows of {rows.row_tokens} tokens, expected rows of a"
            f" multiple of {length} tokens, the model's text length"
        )
    pieces = rows.row_tokens // length
    with atomic_file(path) if leads() else contextlib.nullcontext() as temporary:
        out, shape = None, (len(rows), rows.row_tokens)
        if temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        # The last batch is padded, so that all batches have one shape.
        for at in batches(np.arange(len(rows)), max(1, batch // pieces), "attribute"):
            texts = np.stack([rows[i] for i in at]).reshape(-1, length)
            numbers = (at[:, None] * pieces + np.arange(pieces)).reshape(-1)
            values = _attribute(system, params, texts, numbers, measure, batch, seed)
            values = normalise(values, scored(system, texts)) if normalised else values
            first, size = at[0], len(at)
            if out is not None:
                out[first : first + size] = values.reshape(size, -1)[: len(rows) - first]
        if out is not None:
            out.flush()
            del out


def _attribute(
    system: MemoryCodec,
    params: Params,
    texts: np.ndarray,
    numbers: Int[np.ndarray, " N"],
    measure: str,
    batch: int,
    seed: int,
) -> Float[np.ndarray, "N T"]:
    """Return attributions of the texts of one batch; `numbers` seed the noise of each text."""
    if measure == "entropy":
        values = token_entropy(system, params, texts, batch)
    else:
        of_batch = functools.partial(_of_batch, system, measure, params, jax.random.key(seed))
        values = over_batches(
            lambda at: of_batch(texts[at], numbers[at]), np.arange(len(texts)), batch, measure
        )
    return np.where(scored(system, texts), values, 0).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_batch(
    system: MemoryCodec,
    measure: str,
    params: Params,
    key: jax.Array,
    tokens: Int[Array, "B T"],
    numbers: Int[Array, " B"],
) -> Float[Array, "B T"]:
    """Return attributions at their tokens, with arbitrary values at unscored tokens."""
    memory = system.encode(params, tokens)
    if measure == "gradient":
        values = _gradient(system, params, memory, tokens)
    else:
        hidden, scores = _read(system, params, memory, tokens)
        if measure == "noise":
            draw = functools.partial(jax.random.uniform, shape=system.shape, maxval=NOISE)
            noise = jax.vmap(lambda number: draw(jax.random.fold_in(key, number)))(numbers)
            memory = (memory + noise).astype(memory.dtype)
        other, other_scores = _read(system, params, memory, tokens, occluded=measure != "noise")
        if measure == "occlusion_loss":
            values = jnp.abs(scores.nats - other_scores.nats)[:, 0]
        else:
            values = _moved_logits(
                system, params, hidden, other, cosine=measure == "occlusion_cosine"
            )
    return jnp.pad(values[:, :-1], ((0, 0), (1, 0))) if system.shift else values


def _read(
    codec: MemoryCodec, params: Params, memory: jax.Array, tokens: jax.Array, occluded: bool = False
) -> tuple[Float[Array, "B T D"], Scores]:
    """Return the head's inputs per position and its scores; `occluded` removes the memory."""
    head_inputs: list[jax.Array] = []

    def watch(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if (context.module.path, context.method_name) == (("head",), "token_losses"):
            head_inputs.append(args[0])
        return next_fun(*args, **kwargs)

    score = codec.score_without_memory if occluded else codec.score
    with nn.intercept_methods(watch):
        scores = score(params, memory, tokens)
    (hidden,) = head_inputs
    return hidden.reshape(len(tokens), -1, hidden.shape[-1]), scores


def _moved_logits(
    system: MemoryCodec,
    params: Params,
    hidden: Float[Array, "B T D"],
    other: Float[Array, "B T D"],
    cosine: bool,
) -> Float[Array, "B T"]:
    """Return the L1 distance, or 1 - cosine, of the logits of two readings.

    Logits of BLOCK_TOKENS tokens are in memory at once.
    """

    def distance(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        z, z0 = (system.apply(params, h, method=lambda module, h: module.head(h)) for h in pair)
        if cosine:
            # Half the squared distance of unit vectors: exactly 0 where logits are equal.
            unit, unit0 = (
                x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny) for x in (z, z0)
            )
            return jnp.sum((unit - unit0) ** 2) / 2
        return jnp.sum(jnp.abs(z - z0))

    pairs = tuple(x.reshape(-1, x.shape[-1]) for x in (hidden, other))
    return jax.lax.map(distance, pairs, batch_size=BLOCK_TOKENS).reshape(hidden.shape[:2])


def _gradient(
    system: MemoryCodec, params: Params, memory: jax.Array, tokens: jax.Array
) -> Float[Array, "B T"]:
    """Return sum_j |d nats_t / d m_j * m_j|.

    It takes one forward pass and the Jacobian of the head's inputs.
    """
    memory = memory.astype(jnp.float32)

    def read(memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden, scores = _read(system, params, memory, tokens)
        return hidden, jnp.asarray(scores.labels)[:, 0]

    hidden, pull, labels = jax.vjp(read, memory, has_aux=True)

    def total(hidden: jax.Array) -> jax.Array:
        nats, _ = system.apply(
            params, hidden, labels, method=lambda m, h, y: m.head.token_losses(h, y)
        )
        return jnp.sum(nats)

    # A token's nats depend on its own position alone: one pass of the head serves all tokens.
    d_hidden = jax.grad(total)(hidden)
    place = jnp.arange(hidden.shape[1])[:, None]

    def of_token(t: jax.Array) -> jax.Array:
        (d_memory,) = pull(jnp.where(place == t, d_hidden, 0))
        return jnp.sum(jnp.abs(d_memory * memory), axis=(1, 2))

    return jax.lax.map(of_token, place[:, 0], batch_size=COTANGENTS).T
