"""How much of each token comes from the memory: the text is read with its memory and without, or the memory's gradient is asked.

The measures of Badger 2026 (attribution): occlusion by L1, cosine or loss, noise, gradient times input, and entropy by shifting
(token_entropy.py). A decoder here is shown a start token, so that position t says token t: attributions stand at their tokens, without
a shift. Under the quirk `unscored_first_tokens`, where position t says token t + 1, they are moved there; first tokens are not said.

Shapes: N text, B text of a batch, T token of a text, M vector of a text, E its width, D decoder width, V vocabulary; R row, L token of
a row.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.data import Rows
from memjax.instruments.errors import InstrumentError
from memjax.instruments.information import check_texts, over_batches
from memjax.instruments.system import Params, System
from memjax.instruments.texts import batches
from memjax.instruments.token_entropy import require_oracle, token_entropy
from memjax.models import Autoencoder, MemoryModel, Oracle
from memjax.objectives.terms import Scores

MEASURES = {
    "occlusion_l1": "sum over the vocabulary of how far the logits move when the memory is taken away",
    "occlusion_cosine": "1 - cosine of the logits with the memory and without it",
    "occlusion_loss": "nats by which the loss moves when the memory is taken away",
    "noise": "sum over the vocabulary of how far the logits move when noise is added to the memory",
    "gradient": "sum over the memory of |gradient of the token's nats * memory|",
    "entropy": "nats of the token beyond those before it, by shifting; of oracles",
}
"""Name of a measure and what it is."""
NOISE = 2.0**-2
"""Noise is uniform in [0, NOISE), where vectors leave the encoder."""
BLOCK_TOKENS = 1024
"""Tokens whose logits are held at a time."""
COTANGENTS = 8
"""Tokens whose gradients are taken at a time."""


class AttributionError(InstrumentError):
    """A measure is unknown, or rows are no whole number of texts; the message says what there is."""


def attribute(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    measure: str,
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> Float[np.ndarray, "N T"]:
    """An attribution of every token, float32; 0 where `scored` is False.

    Without its memory a memory model has empty slots, and an oracle's decoder masks out the positions that held it (combine='token').
    Other decoders always read something: an autoencoder, and an oracle that combines by `embedding` or `add`, read zeros.

    Args:
      system: what is measured.
      params: its parameters.
      texts: of `system.length` tokens each.
      measure: of MEASURES.
      batch: texts at a time.
      advance: called when a batch is done.
      seed: what noise is drawn from; it does not depend on `batch`.

    Raises:
      AttributionError: there is no such measure.
      EntropyError: `entropy` of a model that is no oracle.
      TextsError: there are no texts, or they are of another length.
    """
    check_measure(system, measure)
    check_texts(system, texts)
    return _attribute(system, params, texts, np.arange(len(texts)), measure, batch, advance, seed)


def check_measure(system: System, measure: str) -> None:
    """Raises AttributionError if there is no such measure, EntropyError if this system does not give it."""
    if measure not in MEASURES:
        raise AttributionError(f"measure={measure!r}: there are {', '.join(MEASURES)}")
    if measure == "entropy":
        require_oracle(system)


def scored(system: System, texts: Int[np.ndarray, "N T"]) -> Bool[np.ndarray, "N T"]:
    """Which tokens the system says, and so have an attribution: all but padding and, where none is inserted before them, first tokens."""
    real = np.asarray(texts) != system.ids.pad
    if _moved(system):
        real[:, 0] = False
    return real


def normalise(values: Float[np.ndarray, "N T"], counted: Bool[np.ndarray, "N T"]) -> Float[np.ndarray, "N T"]:
    """Each text's values from 0, its least, to 1, its largest, float32 (min-max; Badger 2026, attribution).

    Only what is counted has a say and a value; the rest is 0. So is a text whose values are all the same.
    """
    counted = np.asarray(counted, bool)
    low = np.min(values, axis=1, keepdims=True, where=counted, initial=np.inf)
    high = np.max(values, axis=1, keepdims=True, where=counted, initial=-np.inf)
    told = counted & (high > low)
    # Where nothing is told the ends may be infinite.
    low = np.where(told, low, 0)
    return np.where(told, (values - low) / np.where(told, high - low, 1), 0).astype(np.float32)


def write_attributions(
    path: str | os.PathLike,
    system: System,
    params: Params,
    rows: Rows,
    measure: str,
    batch: int = 32,
    normalised: bool = True,
    advance: Callable[[int], None] = lambda rows: None,
    seed: int = 0,
) -> None:
    """Writes an attribution of every token of `rows`, float32 [R, L] in a .npy file, as `config.data.attributions` names it.

    Rows are cut into texts from their start on. The file appears when it is whole.

    Args:
      path: of the file; one that is there is replaced.
      system: what measures.
      params: its parameters.
      rows: all training rows of the run that is to be weighed.
      measure: of MEASURES.
      batch: texts at a time.
      normalised: whether each text is scaled to [0, 1], which the objective `complement_weighted` is for; the other weightings are for
        values as they are.
      advance: called with the number of rows that are done since the last call.
      seed: what noise is drawn from.

    Raises:
      AttributionError: there is no such measure, or a row is no whole number of texts.
      EntropyError: `entropy` of a model that is no oracle.
      RowsError: a row cannot be read.
    """
    check_measure(system, measure)
    length = system.length
    if not len(rows) or rows.row_tokens % length:
        raise AttributionError(
            f"{rows.folder}: {len(rows)} rows of {rows.row_tokens} tokens are no whole number of texts, which are of {length} tokens in"
            f" this model; give rows of a multiple of {length}"
        )
    pieces, path = rows.row_tokens // length, Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    done = 0
    try:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(rows), rows.row_tokens))
        # The last batch is filled up, so that all are of one shape.
        for at in batches(np.arange(len(rows)), max(1, batch // pieces)):
            texts = np.stack([rows[i] for i in at]).reshape(-1, length)
            numbers = (at[:, None] * pieces + np.arange(pieces)).reshape(-1)
            values = _attribute(system, params, texts, numbers, measure, batch, lambda: None, seed)
            values = normalise(values, scored(system, texts)) if normalised else values
            kept = min(len(at), len(rows) - done)
            out[done : done + kept] = values.reshape(len(at), -1)[:kept]
            done += kept
            advance(kept)
        out.flush()
        del out
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _attribute(
    system: System,
    params: Params,
    texts: np.ndarray,
    numbers: Int[np.ndarray, " N"],
    measure: str,
    batch: int,
    advance: Callable[[], None],
    seed: int,
) -> Float[np.ndarray, "N T"]:
    """`numbers` tell texts apart in drawing noise."""
    if measure == "entropy":
        values = token_entropy(system, params, texts, batch, advance)
    else:
        of_batch = functools.partial(_of_batch, system, measure, params, jax.random.key(seed))
        places = np.arange(len(texts))
        (values,) = over_batches(lambda at: (of_batch(texts[at], numbers[at]),), places, batch, advance)
    return np.where(scored(system, texts), values, 0).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_batch(
    system: System, measure: str, params: Params, key: jax.Array, tokens: Int[Array, "B T"], numbers: Int[Array, " B"]
) -> Float[Array, "B T"]:
    """Attributions at the tokens they are of, whatever at those that are not scored."""
    memory = system.encode(params, tokens)
    if measure == "gradient":
        values = _gradient(system, params, memory, tokens)
    else:
        hidden, scores = _read(system, params, memory, tokens)
        if measure == "noise":
            draw = functools.partial(jax.random.uniform, shape=system.shape, maxval=NOISE)
            noise = jax.vmap(lambda number: draw(jax.random.fold_in(key, number)))(numbers)
            other, other_scores = _read(system, params, (memory + noise).astype(memory.dtype), tokens)
        else:
            other, other_scores = _read(system, params, memory, tokens, occluded=True)
        if measure == "occlusion_loss":
            values = jnp.abs(scores.nats - other_scores.nats)[:, 0]
        else:
            values = _moved_logits(system, params, hidden, other, cosine=measure == "occlusion_cosine")
    return jnp.pad(values[:, :-1], ((0, 0), (1, 0))) if _moved(system) else values


def _moved(system: System) -> bool:
    """Whether position t says token t + 1."""
    return "unscored_first_tokens" in system.compat and not isinstance(system.module, Autoencoder)


def _read(
    system: System, params: Params, memory: jax.Array, tokens: jax.Array, occluded: bool = False
) -> tuple[Float[Array, "B T D"], Scores]:
    """What the head is given, position by position, and what it makes of it; `occluded` takes the memory away."""
    head_inputs: list[jax.Array] = []
    module = system.module

    def watch(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        called = context.module.path, context.method_name
        if called == (("head",), "score"):
            head_inputs.append(args[0])
        elif occluded and isinstance(module, MemoryModel) and called == ((), "hidden"):
            tokens, _, *rest = args
            args = tokens, None, *rest
        elif occluded and isinstance(module, Oracle) and called == (("backbone",), "__call__"):
            x, positions, valid = args
            args = x, positions, valid.at[:, : module.memory_positions].set(False)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(watch):
        scores = system.score(params, jnp.zeros_like(memory) if occluded else memory, tokens)
    (hidden,) = head_inputs
    return hidden, scores


def _moved_logits(
    system: System, params: Params, hidden: Float[Array, "B T D"], other: Float[Array, "B T D"], cosine: bool
) -> Float[Array, "B T"]:
    """L1 distance, or 1 - cosine, of two readings' logits; those of BLOCK_TOKENS tokens are held at a time."""

    def distance(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits: Any = [system.module.apply({"params": params}, h, method=lambda module, h: module.head(h)) for h in pair]
        z, z0 = logits
        if cosine:
            # Half the squared distance of unit vectors, which is 0 and not rounding where nothing moved.
            unit, unit0 = (x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny) for x in (z, z0))
            return jnp.sum((unit - unit0) ** 2) / 2
        return jnp.sum(jnp.abs(z - z0))

    pairs = tuple(x.reshape(-1, x.shape[-1]) for x in (hidden, other))
    return jax.lax.map(distance, pairs, batch_size=BLOCK_TOKENS).reshape(hidden.shape[:2])


def _gradient(system: System, params: Params, memory: jax.Array, tokens: jax.Array) -> Float[Array, "B T"]:
    """sum_j |d nats_t / d m_j * m_j|, from one forward pass and the Jacobian of what the head is given."""
    memory = memory.astype(jnp.float32)

    def read(memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden, scores = _read(system, params, memory, tokens)
        return hidden, jnp.asarray(scores.labels)[:, 0]

    hidden, pull, labels = jax.vjp(read, memory, has_aux=True)

    def total(hidden: jax.Array) -> jax.Array:
        scored: Any = system.module.apply({"params": params}, hidden, labels, method=lambda m, h, y: m.head.score(h, y))
        return jnp.sum(scored[0])

    # A token's nats read its own position alone: one pass through the head serves all tokens of all texts.
    d_hidden = jax.grad(total)(hidden)
    place = jnp.arange(hidden.shape[1])[:, None]

    def of_token(t: jax.Array) -> jax.Array:
        (d_memory,) = pull(jnp.where(place == t, d_hidden, 0))
        return jnp.sum(jnp.abs(d_memory * memory), axis=(1, 2))

    return jax.lax.map(of_token, place[:, 0], batch_size=COTANGENTS).T
