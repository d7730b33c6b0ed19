"""How few bits a number of a memory needs: memories are rounded, read by the same decoder, and scored beside the unrounded ones.

The vectors are rounded where they leave the encoder; where a model squeezes them through a bottleneck, also the narrow vector between
the layer `down` and the layer `up` (the place the published study casts), which is all that would have to be stored.

Shapes: N text, B text of a batch, M vector of a text, E its width, b bottleneck, Q way of rounding, 0 is none; H chunk of a text, K vector of a
chunk.
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

from memjax.instruments.errors import InstrumentError
from memjax.instruments.information import check_texts, over_batches
from memjax.instruments.system import Params, System
from memjax.instruments.uncertainty import Estimate, ratio

SCALE_BITS = 32
"""Of a scale, which is stored as float32."""
FLOATS: Mapping[str, Any] = {
    "bfloat16": jnp.bfloat16,
    "float8_e4m3": jnp.float8_e4m3fn,
    "float8_e5m2": jnp.float8_e5m2,
}
"""Casts without a scale. What is too large becomes the largest finite number, so that no cast makes NaN or infinity."""
INTEGERS: Mapping[str, tuple[int, bool]] = {"int8_tensor": (8, True), "int8_vector": (8, False), "int4_vector": (4, False)}
"""(bits, whether one scale serves all vectors of a text), with a scale of the largest magnitude: symmetric, without a zero point, levels
-127 to 127 and -7 to 7."""
KINDS = (*FLOATS, *INTEGERS)
PLACES = ("memory", "bottleneck")


class QuantisationError(InstrumentError):
    """A way or a place of rounding is unknown, or the model has no such place; the message names what there is."""


def quantise(memory: Float[Array, "*any M E"], kind: str) -> Float[Array, "*any M E"]:
    """Rounded as `kind` stores numbers, and back in float32.

    Args:
      memory: vectors; the last axis is a vector, the last two are a tensor, as of one text.
      kind: one of KINDS.

    Raises:
      QuantisationError: there is no such kind.
    """
    memory = jnp.asarray(memory, jnp.float32)
    if kind in FLOATS:
        dtype = FLOATS[kind]
        largest = float(jnp.finfo(dtype).max)
        # Without a barrier XLA may leave out a cast and its inverse.
        return jax.lax.optimization_barrier(jnp.clip(memory, -largest, largest).astype(dtype)).astype(jnp.float32)
    if kind not in INTEGERS:
        raise QuantisationError(f"kind={kind!r}: there are {', '.join(KINDS)}")
    bits, whole = INTEGERS[kind]
    levels = 2 ** (bits - 1) - 1
    scale = jnp.max(jnp.abs(memory), axis=(-2, -1) if whole else -1, keepdims=True) / levels
    return jnp.round(memory / jnp.where(scale > 0, scale, 1)) * scale


def bits_a_number(kind: str, shape: tuple[int, int]) -> float:
    """Bits that a number of a memory of `shape` (vectors, width) takes, its share of the scales included.

    Raises:
      QuantisationError: there is no such kind.
    """
    if kind in FLOATS:
        return float(jnp.finfo(FLOATS[kind]).bits)
    if kind not in INTEGERS:
        raise QuantisationError(f"kind={kind!r}: there are {', '.join(KINDS)}")
    bits, whole = INTEGERS[kind]
    return bits + SCALE_BITS / (shape[0] * shape[1] if whole else shape[1])


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Texts read from rounded memories."""

    kind: str
    place: str
    """`memory`, where vectors leave the encoder, or `bottleneck`, between its layers `down` and `up`."""
    bits_a_number: float
    """Its share of the scales included."""
    bits_a_text: float
    nats: Estimate
    """A token."""
    accuracy: Estimate
    difference: Estimate
    """Nats a token above those from unrounded memories, paired over texts."""


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """Texts read from their memories, as they are and rounded."""

    nats: Estimate
    """A token, from unrounded memories."""
    accuracy: Estimate
    rounded: tuple[Rounded, ...]
    """Place by place, in the order of the kinds."""


def places_of(system: System) -> tuple[str, ...]:
    """Where memories of this system can be rounded. An oracle that reads the narrow vector itself has but one place."""
    config = system.module.config
    narrow = config.bottleneck and system.shape[1] != config.bottleneck
    return PLACES if narrow else PLACES[:1]


def quantisation(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    kinds: Sequence[str] = KINDS,
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
    places: Sequence[str] | None = None,
) -> Quantisation:
    """Scores texts given rounded memories; each is encoded once for all kinds.

    Args:
      system: what is measured.
      params: its parameters.
      texts: of `system.length` tokens each.
      kinds: of KINDS.
      batch: texts at a time.
      advance: called when a batch is done.
      places: where to round; by default wherever this system can be.

    Raises:
      QuantisationError: a kind or a place is unknown, or the model has no bottleneck.
      TextsError: there are no texts, or they are of another length.
    """
    places = places_of(system) if places is None else tuple(places)
    _require_places(system, places)
    if not kinds:
        raise QuantisationError(f"there is no kind to round by; name some of {', '.join(KINDS)}")
    bottleneck = (system.shape[0], system.module.config.bottleneck)
    shapes = {"memory": system.shape, "bottleneck": bottleneck}
    ways = [(place, kind, bits_a_number(kind, shapes[place])) for place in places for kind in kinds]
    rounding = [(place, kind) for place, kind, _ in ways]
    nats, correct, count = rounded_sums(system, params, texts, rounding, batch, advance)
    rounded = [
        Rounded(
            kind=kind,
            place=place,
            bits_a_number=bits,
            bits_a_text=bits * shapes[place][0] * shapes[place][1],
            nats=ratio(nats[:, way], count),
            accuracy=ratio(correct[:, way], count),
            difference=ratio(nats[:, way] - nats[:, 0], count),
        )
        for way, (place, kind, bits) in enumerate(ways, start=1)
    ]
    return Quantisation(ratio(nats[:, 0], count), ratio(correct[:, 0], count), tuple(rounded))


def rounded_sums(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    rounding: Sequence[tuple[str, str]],
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats [N, Q], correct tokens [N, Q], tokens [N]) of each text: first from its unrounded memory, then for every (place, kind).

    Arguments and errors are those of `quantisation`.
    """
    check_texts(system, texts)
    _require_places(system, [place for place, _ in rounding])
    function = functools.partial(_batch_sums, system, tuple(rounding), params)
    nats, correct, count = over_batches(function, texts, batch, advance)
    return nats.astype(np.float64), correct.astype(np.float64), count.astype(np.float64)


def _require_places(system: System, places: Sequence[str]) -> None:
    for place in places:
        if place not in places_of(system):
            raise QuantisationError(
                f"place={place!r}: memories of this system can be rounded at {', '.join(places_of(system))}"
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_sums(
    system: System, rounding: tuple[tuple[str, str], ...], params: Params, tokens: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(nats [B, Q], correct tokens [B, Q], tokens [B]) of each text; the decoder is compiled once for all Q."""
    memories = jnp.stack(rounded_memories(system, params, tokens, rounding))

    def read(memory: jax.Array) -> tuple[jax.Array, ...]:
        scores = system.score(params, memory, tokens)
        return tuple(jnp.sum(x * scores.weight, axis=(1, 2)) for x in (scores.nats, scores.correct, jnp.ones_like(scores.nats)))

    nats, correct, count = jax.lax.map(read, memories)
    return nats.T, correct.T, count[0]


def rounded_memories(
    system: System, params: Params, tokens: Int[Array, "B T"], rounding: Sequence[tuple[str, str]]
) -> list[Float[Array, "B M E"]]:
    """The memories as they are, and then for every (place, kind); the encoder runs once."""
    narrow: list[jax.Array] = []

    def keep(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = next_fun(*args, **kwargs)
        if context.module.path == ("encoder", "down") and context.method_name == "__call__":
            narrow.append(y)
        return y

    with nn.intercept_methods(keep):
        memory = system.encode(params, tokens)

    def widened(x: jax.Array) -> jax.Array:
        y: Any = system.module.apply({"params": params}, x, method=lambda module, x: module.encoder.up(x))
        return y.reshape(memory.shape)

    found = [memory]
    for place, kind in rounding:
        if place == "memory":
            found.append(quantise(memory, kind).astype(memory.dtype))
            continue
        (squeezed,) = narrow
        # A text's H chunks stand in separate rows here; together they are the tensor that one scale serves.
        as_text = squeezed.reshape(tokens.shape[0], -1, squeezed.shape[-1])
        again = widened(quantise(as_text, kind).reshape(squeezed.shape))
        # Under `residual_noise` the memory itself is added to what comes back.
        residual = "residual_noise" in system.module.config.compat
        found.append(memory + (again - widened(squeezed)) if residual else again)
    return found
