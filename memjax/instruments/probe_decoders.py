"""The decoder of a probe: what it is made of, how it is trained on vectors that do not move, and when it has learned what it can.

Every encoder gets the same decoder. What an encoder could gain by its form alone is taken away: vectors are standardised, and a linear
map leads from their width to the decoder's even where the two agree.

The rate is warmed up, stays until the loss on texts set aside has stopped falling, and goes to zero from the best state so far: a
schedule that need not know how long an encoder takes (as in Hägele et al. 2024).

Shapes: S step of a call, B text, K vector, E its width, L token.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from memjax.config import Backbone, Model, Optimizer, Stage
from memjax.config.settings import DTYPES
from memjax.instruments.errors import InstrumentError
from memjax.instruments.information import over_batches
from memjax.instruments.system import Params, System
from memjax.models import Autoencoder, Oracle
from memjax.objectives import SpecialIds
from memjax.training.optimizer import make_optimizer
from memjax.training.step import TrainState

KINDS = ("one_shot", "autoregressive")
BACKBONES = ("mixer", "transformer")
SMALLEST_FALL = 1e-3
"""Nats a token that count as none: near zero a loss halves for ever."""
_CALL = 25
"""Steps of one jitted call, at most."""
_MATRICES = r"blocks/.*(kernel|mixing)$|unroll_projection/kernel|bridge/kernel"
_OPTIMIZER = Optimizer(
    rules=((_MATRICES, "muon"), (".*", "adamw")),
    rate_rules=((_MATRICES, 10.0), (r"embed/embedding$", 4.0), (".*", 1.0)),
)

Take = Callable[[Int[np.ndarray, " B"]], tuple[Float[np.ndarray, "B K E"], Int[np.ndarray, "B L"]]]
"""Vectors, standardised, and tokens of some texts."""


class ProbeError(InstrumentError):
    """A probe is asked for that cannot be run; the message names the setting."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How all encoders of a comparison are probed.

    Raises:
      ProbeError: a setting is impossible.
    """

    kind: str = "one_shot"
    """`one_shot`: all tokens at once from the vectors alone (bridge, unroll, causal stack, head); `autoregressive`: each token from the
    vectors, which stand in front, and the tokens before it."""
    backbone: str = "mixer"
    width: int = 256
    layers: int = 4
    heads: int = 16
    mlp_ratio: float = 2.0
    steps: int = 2000
    """At most, annealing included."""
    batch: int = 64
    """Texts."""
    learning_rate: float = 3e-3
    """Peak; matrices of the blocks are given ten times as much, by Muon."""
    warmup_steps: int = 20
    evaluate_every: int = 50
    """Steps between two looks at texts set aside."""
    patience: int = 5
    """Looks within which the loss must fall ..."""
    tolerance: float = 0.005
    """... by this share of itself; if not, the decoder has converged."""
    anneal: float = 0.25
    """Steps in which the rate then goes to zero, as a share of those before."""
    stop_share: float = 0.1
    """Share of the texts to train on that is set aside to say when to stop."""
    stop_texts: int = 512
    """Texts set aside, at most."""
    standardise: bool = True
    """Take from every number its mean over texts and divide it by its deviation; nothing is lost by it."""
    dtype: str = "float32"
    """What matrix products compute in."""

    def __post_init__(self) -> None:
        _one_of(self.kind, KINDS, "kind")
        _one_of(self.backbone, BACKBONES, "backbone")
        _one_of(self.dtype, DTYPES, "dtype")
        for name in ("width", "layers", "heads", "steps", "batch", "evaluate_every", "patience", "stop_texts"):
            if getattr(self, name) < 1:
                raise ProbeError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("learning_rate", "mlp_ratio"):
            if not getattr(self, name) > 0:
                raise ProbeError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("stop_share", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise ProbeError(f"{name}={getattr(self, name)} must be a share, at least 0 and less than 1")
        if self.anneal < 0 or self.warmup_steps < 0:
            raise ProbeError(f"anneal={self.anneal} and warmup_steps={self.warmup_steps} must not be negative")
        each = 2 if self.backbone == "transformer" else 1
        if self.width % (each * self.heads):
            even = " into heads of even width" if each == 2 else ""
            raise ProbeError(f"heads={self.heads} do not divide width={self.width}{even}; use another of the two")

    @property
    def call(self) -> int:
        """Steps of one jitted call, which divide those between two looks."""
        return max(n for n in range(1, min(_CALL, self.evaluate_every) + 1) if self.evaluate_every % n == 0)

    @property
    def constant_steps(self) -> int:
        """Steps before the rate goes down, at most: whole looks, and one at least."""
        return max(1, int(self.steps / (1 + self.anneal)) // self.evaluate_every) * self.evaluate_every

    def annealing(self, done: int) -> int:
        """Steps in which the rate goes down after `done`, in whole calls."""
        return math.ceil(self.anneal * done / self.call) * self.call


def _one_of(value: str, allowed: tuple[str, ...], name: str) -> None:
    if value not in allowed:
        raise ProbeError(f"{name}={value!r} must be one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """The functions of one decoder, compiled once for all seeds and all vectors of a shape."""

    protocol: Protocol
    system: System
    start: Callable[[jax.Array], TrainState]
    """A state of fresh parameters, from a key."""
    train: Callable[..., tuple[TrainState, jax.Array]]
    """(state, vectors [S, B, K, E], tokens [S, B, L], factors [S] on the rate) to the state, which is donated, and losses [S]."""
    score: Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
    """(params, vectors [B, K, E], tokens [B, L]) to nats, correct tokens and tokens of each text, [B] each."""


@functools.lru_cache(maxsize=8)
def make_decoder(protocol: Protocol, vocabulary: int, length: int, shape: tuple[int, int], ids: SpecialIds) -> Decoder:
    """The decoder of texts of `length` tokens from K vectors of width E.

    Args:
      protocol: what it is.
      vocabulary: V.
      length: L.
      shape: (K, E).
      ids: padding, which is no target, and the token before an autoregressive decoder's first.
    """
    stack = Backbone(
        kind=protocol.backbone,
        width=protocol.width,
        layers=protocol.layers,
        heads=protocol.heads,
        mlp="gelu",
        mlp_ratio=protocol.mlp_ratio,
    )
    reader = dataclasses.replace(stack, output_gate=True)  # A gate helps a decoder to read a vector that stands in front.
    model = Model(
        chunk_length=length,
        vectors=shape[0],
        dtype=protocol.dtype,
        # The encoder is never built. A width like no other makes the modules lay a bridge whatever E is.
        encoder=dataclasses.replace(stack, width=0),
        decoder=reader,
        reconstructor=stack,
    )
    module = (Autoencoder if protocol.kind == "one_shot" else Oracle)(model, vocabulary)
    system = System(module, ids)

    def init(key: jax.Array) -> Any:
        vectors, tokens = jnp.zeros((1, *shape)), jnp.zeros((1, length), jnp.int32)
        given = (vectors,) if protocol.kind == "one_shot" else (tokens, vectors)
        return module.init(key, *given, method="decode")["params"]

    stage = Stage(
        family="autoencoder" if protocol.kind == "one_shot" else "oracle",
        steps=protocol.steps,
        learning_rate=protocol.learning_rate,
        warmup_steps=protocol.warmup_steps,
        decay="constant",
    )
    optimizer = make_optimizer(_OPTIMIZER, stage, jax.eval_shape(init, jax.random.key(0)))

    @jax.jit
    def start(key: jax.Array) -> TrainState:
        params = init(key)
        return TrainState(jnp.int32(0), params, {}, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: TrainState, vectors: jax.Array, tokens: jax.Array, factors: jax.Array) -> tuple[TrainState, jax.Array]:
        return jax.lax.scan(lambda s, batch: _step(system, optimizer, s, *batch), state, (vectors, tokens, factors))

    @jax.jit
    def score(params: Params, vectors: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scores = system.score(params, vectors, tokens)
        sums = (jnp.sum(x * scores.weight, axis=(1, 2)) for x in (scores.nats, scores.correct, jnp.ones_like(scores.weight)))
        nats, correct, count = sums
        return nats, correct, count

    return Decoder(protocol, system, start, train, score)


def _step(
    system: System,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    vectors: Float[Array, "B K E"],
    tokens: Int[Array, "B L"],
    factor: Float[Array, ""],
) -> tuple[TrainState, jax.Array]:
    """One update on the mean nats of a token; `factor` multiplies the update, which is to multiply the rate."""

    def loss_fn(params: Params) -> jax.Array:
        scores = system.score(params, vectors, tokens)
        return jnp.sum(scores.nats * scores.weight) / jnp.maximum(jnp.sum(scores.weight), 1.0)

    loss, grads = jax.value_and_grad(loss_fn)(state.trainable)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    updates = jax.tree.map(lambda x: x * factor, updates)
    return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), state.frozen, opt_state), loss


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A decoder that has been trained."""

    params: Params
    steps: int
    """Updates that led to it."""
    converged: bool
    """Whether the loss stopped falling before the steps ran out."""
    curve: tuple[tuple[int, float], ...]
    """(step, nats a token) on texts set aside, while the rate stays."""


def has_converged(losses: list[float], patience: int, tolerance: float) -> bool:
    """Whether the last `patience` losses are none lower than all before by more than `tolerance` of it, or by SMALLEST_FALL nats."""
    if len(losses) <= patience:
        return False
    before, lately = min(losses[:-patience]), min(losses[-patience:])
    return before - lately <= max(tolerance * before, SMALLEST_FALL)


def fit(
    decoder: Decoder,
    take: Take,
    texts: int,
    take_stop: Take,
    stop_texts: int,
    seed: int,
    advance: Callable[[int, str], None] = lambda steps, text: None,
) -> Fitted:
    """Trains a decoder from scratch; batches are a function of (seed, step).

    Args:
      decoder: from `make_decoder`.
      take: reads texts to train on.
      texts: how many there are.
      take_stop: reads texts set aside.
      stop_texts: how many there are.
      seed: of parameters and of the order of texts.
      advance: called with steps and what is known; in all with `protocol.steps`.

    Raises:
      ProbeError: the loss is not finite.
    """
    protocol = decoder.protocol
    source: Any = grain.MapDataset.range(texts)
    order = source.seed(seed).shuffle().repeat().batch(protocol.batch)
    state = decoder.start(jax.random.key(seed))
    advanced = 0

    def go_on(state: TrainState, begin: int, factors: np.ndarray, text: str) -> TrainState:
        nonlocal advanced
        for first in range(0, len(factors), protocol.call):
            steps = range(begin + first, begin + first + protocol.call)
            taken = [take(np.asarray(order[step])) for step in steps]
            vectors, tokens = (np.stack(part) for part in zip(*taken, strict=True))
            state, _ = decoder.train(state, vectors, tokens, np.float32(factors[first : first + protocol.call]))
            moved = min(protocol.call, protocol.steps - advanced)
            advanced += moved
            advance(moved, text)
        return state

    def look(params: Params) -> float:
        nats, _, count = score_sums(decoder, params, take_stop, stop_texts)
        loss = float(nats.sum() / count.sum())
        if not math.isfinite(loss):
            raise ProbeError(f"the decoder's loss is {loss} (seed {seed}); use a lower learning_rate")
        return loss

    curve = [(0, look(state.trainable))]
    best, done, converged = state, 0, False
    while done < protocol.constant_steps and not converged:
        # The state is donated to the next step; the best one is kept apart.
        state = jax.tree.map(jnp.copy, state) if best is state else state
        state = go_on(state, done, np.ones(protocol.evaluate_every), f"{curve[-1][1]:.3f} nats")
        done += protocol.evaluate_every
        curve.append((done, look(state.trainable)))
        if curve[-1][1] <= min(loss for _, loss in curve):
            best = state
        converged = has_converged([loss for _, loss in curve], protocol.patience, protocol.tolerance)
    lowest, from_step = min(loss for _, loss in curve), int(best.step)
    steps = protocol.annealing(from_step)
    params, total = best.trainable, from_step
    if steps:
        state = go_on(jax.tree.map(jnp.copy, best), from_step, np.arange(steps, 0, -1) / steps, f"{lowest:.3f} nats, annealing")
        # Where texts are few, more training may do harm.
        if look(state.trainable) <= lowest:
            params, total = state.trainable, from_step + steps
    advance(protocol.steps - advanced, f"{lowest:.3f} nats")
    return Fitted(params, total, converged, tuple(curve))


def score_sums(decoder: Decoder, params: Params, take: Take, texts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats, correct tokens and tokens of each of `texts` texts, [texts] each, in float64."""
    found = over_batches(
        lambda indices: decoder.score(params, *map(jnp.asarray, take(indices))),
        np.arange(texts),
        4 * decoder.protocol.batch,
        lambda: None,
    )
    nats, correct, count = (x.astype(np.float64) for x in found)
    return nats, correct, count
