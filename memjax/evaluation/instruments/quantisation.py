"""Scores of texts from memories rounded to few bits, beside those from unrounded memories.

The encoder's output vectors are rounded. In a model with a bottleneck, the narrow vector between
the layers `down` and `up` is rounded too: it is sufficient to store, and the published study casts
it.

Shapes: N text, B text of a batch, M vector of a text, E its width, b bottleneck, Q kind of
rounding, 0 is none; H chunk of a text, K vector of a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.checkpoints import int4
from memjax.checkpoints.rounding import rounded, widened
from memjax.errors import MemjaxError
from memjax.inference.codec import MemoryCodec, Params, TextSums, text_sums
from memjax.inference.texts import check_texts, over_batches
from memjax.objectives.uncertainty import Estimate, ratio

SCALE_BITS = 32
"""Bits of a scale, which is stored as float32."""
FLOATS: Mapping[str, Any] = {
    "bfloat16": jnp.bfloat16,
    "float8_e4m3": jnp.float8_e4m3fn,
    "float8_e5m2": jnp.float8_e5m2,
}
"""Casts without a scale.

Too large numbers become the largest finite number, so that no cast makes NaN or infinity.
"""
INTEGERS: Mapping[str, tuple[int, bool]] = {
    "int8_tensor": (8, True),
    "int8_vector": (8, False),
    "int4_vector": (4, False),
}
"""Integers with a scale: (bits, True for one scale per text, False for one per vector).

The scale is that of the largest magnitude: symmetric, without a zero point, levels -127 to 127
and -7 to 7.
"""
KINDS = (*FLOATS, *INTEGERS)
STORED_INT4 = "int4_stored"
"""The rounding of `memjax.checkpoints.int4`, which is none of the study's."""
STORED: Mapping[str, str] = {
    "bfloat16": "bfloat16",
    "float8_e4m3": "float8_e4m3",
    "int8_vector": "int8",
    STORED_INT4: "int4",
}
"""Dtypes of stores, by the kinds that round as they do."""
PLACES = ("memory", "bottleneck")


class QuantisationError(MemjaxError):
    """A kind or a place of rounding is unknown, or the model has no such place."""


def quantise(memory: Float[Array, "*any M E"], kind: str) -> Float[Array, "*any M E"]:
    """Return numbers rounded as `kind` stores them, in float32.

    Args:
      memory: vectors; the last axis is a vector, and the last two are the tensor of one text.
      kind: one of KINDS, or STORED_INT4.

    Raises:
      QuantisationError: the kind is unknown.
    """
    QuantisationError.require_one_of("kind", kind, (*KINDS, STORED_INT4))
    memory = jnp.asarray(memory, jnp.float32)
    # Without a barrier XLA may remove a cast and its inverse.
    if kind in STORED:
        stored, scales = jax.lax.optimization_barrier(rounded(memory, STORED[kind], jnp))
        return widened(stored, scales, memory.shape[-1], jnp)
    if kind in FLOATS:
        largest = float(jnp.finfo(FLOATS[kind]).max)
        cast = jnp.clip(memory, -largest, largest).astype(FLOATS[kind])
        return jax.lax.optimization_barrier(cast).astype(jnp.float32)
    bits, whole = INTEGERS[kind]
    levels = 2 ** (bits - 1) - 1
    scale = jnp.max(jnp.abs(memory), axis=(-2, -1) if whole else -1, keepdims=True) / levels
    return jnp.round(memory / jnp.where(scale > 0, scale, 1)) * scale


def bits_a_number(kind: str, shape: tuple[int, int]) -> float:
    """Return the bits per number of a memory of `shape` (vectors, width), with its scales.

    Raises:
      QuantisationError: the kind is unknown.
    """
    QuantisationError.require_one_of("kind", kind, (*KINDS, STORED_INT4))
    if kind == STORED_INT4:
        return 4 * (shape[1] + shape[1] % 2) / shape[1] + 8 * int4.SCALE.itemsize / shape[1]
    if kind in FLOATS:
        return float(jnp.finfo(FLOATS[kind]).bits)
    bits, whole = INTEGERS[kind]
    return bits + SCALE_BITS / (shape[0] * shape[1] if whole else shape[1])


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Scores of texts from rounded memories."""

    kind: str
    place: str
    """Place of rounding: `memory`, the encoder's output, or `bottleneck`, after `down`."""
    bits_a_number: float
    """Bits per number, with its share of the scales."""
    bits_a_text: float
    nats: Estimate
    """Nats per token."""
    accuracy: Estimate
    difference: Estimate
    """Nats per token above those from unrounded memories, paired over texts."""


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """Scores of texts from their unrounded and rounded memories."""

    nats: Estimate
    """Nats per token from unrounded memories."""
    accuracy: Estimate
    rounded: tuple[Rounded, ...]
    """Scores by place, in the order of the kinds."""


def places_of(system: MemoryCodec) -> tuple[str, ...]:
    """Return the places where memories of this system can be rounded.

    An oracle that reads the narrow vector itself has one place only.
    """
    config = system.module.config
    narrow = config.bottleneck and system.shape[1] != config.bottleneck
    return PLACES if narrow else PLACES[:1]


def quantisation(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    kinds: Sequence[str] = KINDS,
    batch: int = 32,
    places: Sequence[str] | None = None,
) -> Quantisation:
    """Score texts given rounded memories; each text is encoded once for all kinds.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: texts of `system.length` tokens each.
      kinds: names in KINDS.
      batch: texts per batch.
      places: places of rounding; by default all of this system.

    Raises:
      QuantisationError: a kind or a place is unknown, or the model has no bottleneck.
      TextsError: there are no texts, or they have another length.
    """
    QuantisationError.require(kinds, f"kinds: none, expected some of {', '.join(KINDS)}")
    rounding = [(place, kind) for place in places or places_of(system) for kind in kinds]
    nats, correct, tokens = rounded_sums(system, params, texts, rounding, batch)
    vectors, width = system.shape
    widths = {"memory": width, "bottleneck": system.module.config.bottleneck}

    def scored(way: int, place: str, kind: str) -> Rounded:
        bits = bits_a_number(kind, (vectors, widths[place]))
        return Rounded(
            kind=kind,
            place=place,
            bits_a_number=bits,
            bits_a_text=bits * vectors * widths[place],
            nats=ratio(nats[:, way], tokens),
            accuracy=ratio(correct[:, way], tokens),
            difference=ratio(nats[:, way] - nats[:, 0], tokens),
        )

    ways = tuple(scored(way, *one) for way, one in enumerate(rounding, start=1))
    return Quantisation(ratio(nats[:, 0], tokens), ratio(correct[:, 0], tokens), ways)


def rounded_sums(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    rounding: Sequence[tuple[str, str]],
    batch: int = 32,
) -> TextSums:
    """Return (nats [N, Q], correct tokens [N, Q], tokens [N]) of each text, in float64.

    The first is from its unrounded memory, the others from every (place, kind). Arguments and
    errors are those of `quantisation`.
    """
    check_texts(system, texts)
    for place, _ in rounding:
        QuantisationError.require(
            place in places_of(system),
            f"place: {place!r}, expected one of {', '.join(places_of(system))} in this system",
        )
    of_batch = functools.partial(_batch_sums, system, tuple(rounding), params)
    return over_batches(of_batch, texts, batch, "quantisation", np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_sums(
    system: MemoryCodec, rounding: tuple[tuple[str, str], ...], params: Params, tokens: jax.Array
) -> TextSums:
    """Return (nats [B, Q], correct tokens [B, Q], tokens [B]) of each text.

    The decoder is compiled once for all Q.
    """
    memories = jnp.stack(rounded_memories(system, params, tokens, rounding))
    nats, correct, count = jax.lax.map(
        lambda memory: text_sums(system.score(params, memory, tokens)), memories
    )
    return TextSums(nats.T, correct.T, count[0])


def rounded_memories(
    system: MemoryCodec,
    params: Params,
    tokens: Int[Array, "B T"],
    rounding: Sequence[tuple[str, str]],
) -> list[Float[Array, "B M E"]]:
    """Return the unrounded memories, and those of every (place, kind); the encoder runs once."""
    narrow: list[jax.Array] = []

    def keep(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = next_fun(*args, **kwargs)
        if context.module.path == ("encoder", "down") and context.method_name == "__call__":
            narrow.append(y)
        return y

    with nn.intercept_methods(keep):
        memory = system.encode(params, tokens)

    def expanded(x: jax.Array) -> jax.Array:
        y = system.apply(params, x, method=lambda module, x: module.encoder.up(x))
        return y.reshape(memory.shape)

    def of_place(place: str, kind: str) -> jax.Array:
        if place == "memory":
            return quantise(memory, kind).astype(memory.dtype)
        (squeezed,) = narrow
        # A text's H chunks are separate rows here; together they are the tensor of one scale.
        as_text = squeezed.reshape(tokens.shape[0], -1, squeezed.shape[-1])
        again = expanded(quantise(as_text, kind).reshape(squeezed.shape))
        # Under `residual_noise` the memory itself is added to the output of `up`.
        residual = "residual_noise" in system.module.config.compat
        return memory + (again - expanded(squeezed)) if residual else again

    return [memory, *(of_place(*one) for one in rounding)]
