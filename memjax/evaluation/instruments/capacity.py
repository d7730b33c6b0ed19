"""Capacity of a memory under the best encoder: each memory is optimised through a frozen decoder.

A better memory than the optimised one may exist. Its accuracy is thus a lower bound of the
capacity, and the encoder's share of its gain is an upper bound of the encoder's share.

Shapes: N text, B text of a batch, T token of a text, M vector of a text, E its width.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from memjax.errors import MemjaxError
from memjax.inference.codec import MemoryCodec, Params, TextSums, text_sums
from memjax.inference.texts import check_texts, over_batches
from memjax.objectives.uncertainty import Estimate, ratio

STARTS = ("encoder", "zeros", "noise")
"""Initial memories: the encoder's, zeros, or Gaussian noise of the same scale as the encoder's."""
THRESHOLD = 0.99
"""Accuracy at which a length counts as kept."""


class CapacityError(MemjaxError):
    """A length, a start or a number of steps is invalid; the message lists the valid values."""


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first tokens of texts, followed by padding."""

    length: int
    """Tokens, with the padding of the text itself."""
    encoder_accuracy: Estimate
    """Share of the tokens that are the argmax, from the encoder's memory."""
    ceiling_accuracy: Estimate
    """Share of the tokens that are the argmax, from the optimised memory."""
    encoder_nats: Estimate
    """Nats per token from the encoder's memory."""
    ceiling_nats: Estimate
    constant_nats: Estimate
    """Nats per token from a memory that is the same for all texts."""
    share: Estimate
    """The encoder's gain over the constant memory as a share of the optimised memory's gain.

    It is paired over texts, and NaN where optimisation gains nothing.
    """


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Texts of several lengths, kept by the encoder and by optimisation."""

    prefixes: tuple[Prefix, ...]
    """Results by length, the shortest first."""
    threshold: float
    window: int
    """T: tokens that a decoder predicts.

    Longer texts cannot be measured: a memory that keeps T tokens may keep more.
    """
    kept_by_encoder: int
    """The longest length at which accuracy is at least `threshold`, there and below, or 0."""
    kept_by_optimisation: int
    """`kept_by_encoder` of optimised memories, which is the capacity in tokens."""


def default_lengths(window: int) -> tuple[int, ...]:
    """Return powers of two up to the window, and the window."""
    return *(2**k for k in range(math.ceil(math.log2(window)))), window


def kept(prefixes: Sequence[Prefix], accuracy: str) -> int:
    """Return the longest length at which `accuracy` reaches THRESHOLD, there and below, or 0."""
    reached = itertools.takewhile(lambda x: getattr(x, accuracy).value >= THRESHOLD, prefixes)
    return max((prefix.length for prefix in reached), default=0)


def capacity(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    lengths: Sequence[int] = (),
    steps: int = 300,
    rate: float = 0.1,
    start: str = "encoder",
    constant: Float[np.ndarray, "M E"] | None = None,
    batch: int = 32,
) -> Capacity:
    """Optimise the memory of every text at every length.

    Args:
      system: encoder and decoder; the decoder reads the memories.
      params: its parameters, which are frozen.
      texts: of T = `system.length` tokens each.
      lengths: first tokens of each text, 1 to T; by default powers of two up to T, and T.
      steps: updates by Adam, with a cosine decay to 0; the memory of fewest nats among all steps
        is the result, the first one included.
      rate: first learning rate, in root mean squares of the encoder's memory of the text.
      start: a name in STARTS.
      constant: the memory that gains refer to; by default zeros.
      batch: texts per batch; the noise does not depend on it.

    Raises:
      CapacityError: a length is greater than T, the start is unknown, or there is no step.
      TextsError: there are no texts, or they have another length.
    """
    check_texts(system, texts)
    lengths = sorted(set(lengths)) or default_lengths(system.length)
    CapacityError.require(
        1 <= lengths[0] <= lengths[-1] <= system.length,
        f"lengths={tuple(lengths)}: expected 1 to {system.length} tokens, the texts of this"
        " model's decoder",
    )
    CapacityError.require_one_of("start", start, STARTS)
    CapacityError.require(steps >= 1, f"steps={steps}: expected at least one step of optimisation")
    constant = (
        np.zeros(system.shape, np.float32) if constant is None else np.asarray(constant, np.float32)
    )
    CapacityError.require(
        constant.shape == system.shape,
        f"constant memory: shape {constant.shape}, expected {system.shape}",
    )
    of_batch = functools.partial(
        _of_batch, system, steps, start, params, jax.random.key(0), rate, constant
    )

    def prefix(length: int) -> Prefix:
        cut = np.where(np.arange(system.length) < length, texts, system.ids.pad)
        # Each text has its own noise, which does not depend on the batch.
        sums = over_batches(
            lambda numbers: of_batch(cut[numbers], numbers),
            np.arange(len(texts)),
            batch,
            f"capacity {length}",
            np.float64,
        )
        return _prefix(length, sums)

    prefixes = tuple(map(prefix, lengths))
    return Capacity(
        prefixes,
        THRESHOLD,
        system.length,
        kept_by_encoder=kept(prefixes, "encoder_accuracy"),
        kept_by_optimisation=kept(prefixes, "ceiling_accuracy"),
    )


def _prefix(length: int, sums: TextSums) -> Prefix:
    """Return the results of one length from sums of the three memories, [N, 3] each."""
    encoder, ceiling, constant = sums.nats.T
    tokens, gain = sums.tokens[:, 0], constant - ceiling
    share = (
        ratio(constant - encoder, gain)
        if gain.sum() > 0
        else Estimate(math.nan, None, None, len(gain))
    )
    return Prefix(
        length=length,
        encoder_accuracy=ratio(sums.correct[:, 0], tokens),
        ceiling_accuracy=ratio(sums.correct[:, 1], tokens),
        encoder_nats=ratio(encoder, tokens),
        ceiling_nats=ratio(ceiling, tokens),
        constant_nats=ratio(constant, tokens),
        share=share,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batch(
    system: MemoryCodec,
    steps: int,
    start: str,
    params: Params,
    key: jax.Array,
    rate: jax.Array | float,
    constant: Float[Array, "M E"],
    tokens: Int[Array, "B T"],
    numbers: Int[Array, " B"],
) -> TextSums:
    """Return sums [B, 3] per text from the encoder's, the optimised and the constant memory."""
    memory = system.encode(params, tokens).astype(jnp.float32)
    best = _optimised(system, steps, start, params, key, rate, memory, tokens, numbers)
    memories = jnp.stack([memory, best, jnp.broadcast_to(constant, memory.shape)])
    sums = jax.lax.map(lambda memory: text_sums(system.score(params, memory, tokens)), memories)
    return jax.tree.map(jnp.transpose, sums)


def _optimised(
    system: MemoryCodec,
    steps: int,
    start: str,
    params: Params,
    key: jax.Array,
    rate: jax.Array | float,
    memory: Float[Array, "B M E"],
    tokens: Int[Array, "B T"],
    numbers: Int[Array, " B"],
) -> Float[Array, "B M E"]:
    """Return the memory of fewest nats of each text.

    Texts are independent: the loss is a sum over them, and Adam updates each number by itself.
    """
    size = jnp.sqrt(jnp.mean(memory**2, axis=(1, 2), keepdims=True))
    size = jnp.where(size > 0, size, 1.0)
    noise = jax.vmap(
        lambda number: jax.random.normal(jax.random.fold_in(key, number), system.shape)
    )(numbers)
    first = {"encoder": memory / size, "zeros": jnp.zeros_like(memory), "noise": noise}[start]
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        sums = text_sums(system.score(params, z * size, tokens))
        return jnp.sum(sums.nats / jnp.maximum(sums.tokens, 1)), sums.nats

    def better(
        best: tuple[jax.Array, jax.Array], z: jax.Array, nats: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        found, fewest = best
        return jnp.where((nats < fewest)[:, None, None], z, found), jnp.minimum(nats, fewest)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        z, state, best = carry
        gradient, nats = jax.grad(loss, has_aux=True)(z)
        best = better(best, z, nats)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(z, updates), state, best), None

    nothing_yet = first, jnp.full(memory.shape[:1], jnp.inf)
    (z, _, best), _ = jax.lax.scan(step, (first, optimizer.init(first), nothing_yet), length=steps)
    found, _ = better(best, z, loss(z)[1])
    return found * size
