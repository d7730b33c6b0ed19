"""How much a memory could hold, had it the best encoder: each text's memory is itself optimised through the decoder, which stays as it is.

What optimisation finds is a memory that the decoder reads so well; a better one may exist. So its accuracy is a lower bound of what fits,
and the encoder's share of its gain an upper bound of the encoder's share of what could be gained.

Shapes: N text, B text of a batch, T token of a text, M vector of a text, E its width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from memjax.instruments.errors import InstrumentError
from memjax.instruments.information import check_texts, over_batches
from memjax.instruments.system import Params, System
from memjax.instruments.uncertainty import Estimate, ratio

STARTS = ("encoder", "zeros", "noise")
"""Where optimisation starts: the encoder's memory of the text, zeros, or Gaussian noise as large as that memory."""
THRESHOLD = 0.99
"""Accuracy at which a length counts as kept."""


class CapacityError(InstrumentError):
    """A length, a start or a number of steps is none; the message says what there is."""


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first tokens of texts, the rest being padding."""

    length: int
    """Tokens, padding of the text itself included."""
    encoder_accuracy: Estimate
    """Share of the tokens that were the most likely one, from the encoder's memory."""
    ceiling_accuracy: Estimate
    """The same from the optimised memory."""
    encoder_nats: Estimate
    """A token."""
    ceiling_nats: Estimate
    constant_nats: Estimate
    """From a memory that is the same for all texts."""
    share: Estimate
    """Of the nats that the optimised memory gains over the constant one those that the encoder's gains, paired over texts; NaN where
    optimisation gains none."""


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Texts of several lengths, kept by the encoder and by optimisation."""

    prefixes: tuple[Prefix, ...]
    """Shortest first."""
    threshold: float
    window: int
    """T: a decoder says so many tokens. Longer texts cannot be asked, so that what keeps this many may keep more."""

    @property
    def kept_by_encoder(self) -> int:
        """The longest length asked at which, as at all shorter ones, accuracy is at least `threshold`; 0 if there is none."""
        return self._kept("encoder_accuracy")

    @property
    def kept_by_optimisation(self) -> int:
        """The same of optimised memories: the capacity ceiling, in tokens."""
        return self._kept("ceiling_accuracy")

    def words(self, kept: int) -> str:
        """A number of tokens kept, as text: `≥ 32` where it is the whole window."""
        return f"≥ {kept}" if kept >= self.window else str(kept)

    def _kept(self, accuracy: str) -> int:
        longest = 0
        for prefix in self.prefixes:
            if getattr(prefix, accuracy).value < self.threshold:
                break
            longest = prefix.length
        return longest


def default_lengths(window: int) -> tuple[int, ...]:
    """Powers of two up to the window, and the window."""
    return (*(2**k for k in range(math.ceil(math.log2(window)))), window) if window > 1 else (1,)


def capacity(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    lengths: Sequence[int] = (),
    steps: int = 300,
    rate: float = 0.1,
    start: str = "encoder",
    constant: Float[np.ndarray, "M E"] | None = None,
    threshold: float = THRESHOLD,
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> Capacity:
    """Optimises the memory of every text at every length.

    Args:
      system: whose decoder reads the memories.
      params: its parameters; they stay as they are.
      texts: of T = `system.length` tokens each.
      lengths: tokens that are kept of each text, 1 to T; by default powers of two up to T, and T.
      steps: updates by Adam, with a cosine decay to 0; the memory of fewest nats on the way is taken, the first one included.
      rate: first learning rate, in root mean squares of the encoder's memory of the text.
      start: of STARTS.
      constant: the memory that gains are over; by default zeros.
      threshold: accuracy at which a length counts as kept.
      batch: texts at a time.
      advance: called when a batch is done, at every length.
      seed: what noise is drawn from; it does not depend on `batch`.

    Raises:
      CapacityError: a length is beyond what the decoder says, or there is no such start, or no step.
      TextsError: there are no texts, or they are of another length.
    """
    check_texts(system, texts)
    lengths = sorted(set(lengths)) or default_lengths(system.length)
    if not 1 <= lengths[0] <= lengths[-1] <= system.length:
        raise CapacityError(f"lengths={tuple(lengths)}: this system's decoder says texts of 1 to {system.length} tokens")
    if start not in STARTS:
        raise CapacityError(f"start={start!r}: there are {', '.join(STARTS)}")
    if steps < 1:
        raise CapacityError(f"steps={steps}: at least one is needed to optimise")
    constant = np.zeros(system.shape, np.float32) if constant is None else np.asarray(constant, np.float32)
    if constant.shape != system.shape:
        raise CapacityError(f"constant memory of shape {constant.shape}: this system's memories are {system.shape}")
    of_batch = functools.partial(_of_batch, system, steps, start, params, jax.random.key(seed), rate, constant)
    prefixes = []
    for length in lengths:
        cut = np.where(np.arange(system.length) < length, texts, system.ids.pad)
        # Noise is a text's own, whatever the batch it is in.
        (found,) = over_batches(lambda at, cut=cut: (of_batch(cut[at], at),), np.arange(len(texts)), batch, advance)
        prefixes.append(_prefix(length, found.astype(np.float64)))
    return Capacity(tuple(prefixes), threshold, system.length)


def _prefix(length: int, found: Float[np.ndarray, "N 7"]) -> Prefix:
    encoder, encoder_right, ceiling, ceiling_right, constant, _, tokens = found.T
    gain = constant - ceiling
    share = ratio(constant - encoder, gain) if gain.sum() > 0 else Estimate(math.nan, None, None, len(found))
    return Prefix(
        length=length,
        encoder_accuracy=ratio(encoder_right, tokens),
        ceiling_accuracy=ratio(ceiling_right, tokens),
        encoder_nats=ratio(encoder, tokens),
        ceiling_nats=ratio(ceiling, tokens),
        constant_nats=ratio(constant, tokens),
        share=share,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batch(
    system: System,
    steps: int,
    start: str,
    params: Params,
    key: jax.Array,
    rate: jax.Array | float,
    constant: Float[Array, "M E"],
    tokens: Int[Array, "B T"],
    numbers: Int[Array, " B"],
) -> Float[Array, "B 7"]:
    """(nats, right) from the encoder's memory, from the optimised and from the constant one, and tokens, of each text."""
    memory = system.encode(params, tokens).astype(jnp.float32)
    best = _optimised(system, steps, start, params, key, rate, memory, tokens, numbers)
    memories = jnp.stack([memory, best, jnp.broadcast_to(constant, memory.shape)])
    nats, right, count = jax.lax.map(lambda memory: _sums(system, params, memory, tokens), memories)
    return jnp.stack([nats[0], right[0], nats[1], right[1], nats[2], right[2], count[0]], axis=1)


def _sums(system: System, params: Params, memory: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(nats, right tokens, tokens) of each text."""
    scores = system.score(params, memory, tokens)
    nats, right, count = (
        jnp.sum(x * scores.weight, axis=(1, 2)) for x in (scores.nats, scores.correct, jnp.ones_like(scores.nats))
    )
    return nats, right, count


def _optimised(
    system: System,
    steps: int,
    start: str,
    params: Params,
    key: jax.Array,
    rate: jax.Array | float,
    memory: Float[Array, "B M E"],
    tokens: Int[Array, "B T"],
    numbers: Int[Array, " B"],
) -> Float[Array, "B M E"]:
    """The memory of fewest nats of each text. Texts do not meet: a loss is a sum over them, and Adam goes number by number."""
    size = jnp.sqrt(jnp.mean(memory**2, axis=(1, 2), keepdims=True))
    size = jnp.where(size > 0, size, 1.0)
    if start == "encoder":
        first = memory / size
    elif start == "zeros":
        first = jnp.zeros_like(memory)
    else:
        first = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), system.shape))(numbers)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        nats, _, count = _sums(system, params, z * size, tokens)
        return jnp.sum(nats / jnp.maximum(count, 1)), nats

    def better(best: tuple[jax.Array, jax.Array], z: jax.Array, nats: jax.Array) -> tuple[jax.Array, jax.Array]:
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
