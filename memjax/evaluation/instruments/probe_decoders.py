"""Decoder of a probe, its training on frozen vectors, and the test of its convergence.

Every encoder gets the same decoder, without an advantage from the form of its vectors: they are
standardised, and a linear map leads to the decoder's width even where the widths agree.

The learning rate is warmed up, stays constant until the loss on texts set aside stops falling, and
decays to zero from the best state. This schedule does not depend on the number of steps that an
encoder takes (as in Hägele et al. 2024).

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
from memjax.config.choices import DTYPES
from memjax.errors import MemjaxError
from memjax.inference.codec import MemoryCodec, Params, TextSums, make_codec, text_sums
from memjax.inference.texts import over_batches
from memjax.models import Autoencoder, Oracle
from memjax.objectives import SpecialIds
from memjax.progress import bar
from memjax.training.optimizer import make_optimizer
from memjax.training.step import TrainState

KINDS = ("one_shot", "autoregressive")
BACKBONES = ("mixer", "transformer")
SMALLEST_FALL = 1e-3
"""Nats per token that count as no decrease: near zero a loss halves without end."""
_CALL = 25
"""Steps of one jitted call, at most."""
_MATRICES = r"blocks/.*(kernel|mixing)$|unroll_projection/kernel|bridge/kernel"
_OPTIMIZER = Optimizer(
    rules=((_MATRICES, "muon"), (".*", "adamw")),
    rate_rules=((_MATRICES, 10.0), (r"embed/embedding$", 4.0), (".*", 1.0)),
)

_LIMITS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("width", "layers", "heads", "steps", "batch", "evaluate_every", "patience", "stop_texts"),
        lambda x: x >= 1,
        "1 or more",
    ),
    (("learning_rate", "mlp_ratio"), lambda x: x > 0, "more than 0"),
    (("stop_share", "tolerance"), lambda x: 0 <= x < 1, "a share, at least 0 and less than 1"),
    (("anneal", "warmup_steps"), lambda x: x >= 0, "0 or more"),
)
"""Numbers of a protocol, and their valid values."""
Take = Callable[[Int[np.ndarray, " B"]], tuple[Float[np.ndarray, "B K E"], Int[np.ndarray, "B L"]]]
"""Function that returns standardised vectors and tokens of some texts."""


class ProbeError(MemjaxError):
    """A setting of a probe is invalid; the message names it."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings of the decoder for all encoders of a comparison.

    Raises:
      ProbeError: a setting is invalid.
    """

    kind: str = "one_shot"
    """Kind of decoder: `one_shot` or `autoregressive`.

    `one_shot` predicts all tokens at once from the vectors (bridge, unroll, causal stack, head).
    `autoregressive` predicts each token from the vectors, in front, and the tokens before it.
    """
    backbone: str = "mixer"
    width: int = 256
    layers: int = 4
    heads: int = 16
    mlp_ratio: float = 2.0
    steps: int = 2000
    """Steps of training, at most, with the decay."""
    batch: int = 64
    """Texts per batch."""
    learning_rate: float = 3e-3
    """Peak rate; Muon trains the blocks' matrices with ten times this rate."""
    warmup_steps: int = 20
    evaluate_every: int = 50
    """Steps between two evaluations on the texts set aside."""
    patience: int = 5
    """Evaluations within which the loss must decrease by `tolerance`."""
    tolerance: float = 0.005
    """Relative decrease below which the decoder has converged."""
    anneal: float = 0.25
    """Steps of the decay to zero, as a share of the steps before."""
    stop_share: float = 0.1
    """Share of the training texts that is set aside to determine the stop."""
    stop_texts: int = 512
    """Validation texts, at most."""
    standardise: bool = True
    """Subtract the mean over texts from every number, and divide by its deviation, without loss."""
    dtype: str = "float32"
    """Type of matrix products."""

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("backbone", BACKBONES), ("dtype", DTYPES)):
            ProbeError.require_one_of(name, getattr(self, name), allowed)
        for names, holds, expected in _LIMITS:
            for name in names:
                if not holds(getattr(self, name)):
                    raise ProbeError(f"{name}={getattr(self, name)}, expected {expected}")
        each = 2 if self.backbone == "transformer" else 1
        if self.width % (each * self.heads):
            even = " into heads of even width" if each == 2 else ""
            raise ProbeError(
                f"heads={self.heads}, expected a divisor of width={self.width}{even}. Change one"
            )

    @property
    def call(self) -> int:
        """Return the steps of one jitted call, which divide those between two evaluations."""
        return max(
            n for n in range(1, min(_CALL, self.evaluate_every) + 1) if self.evaluate_every % n == 0
        )

    @property
    def constant_steps(self) -> int:
        """Return the most steps at the constant rate: whole evaluations, and at least one."""
        return (
            max(1, int(self.steps / (1 + self.anneal)) // self.evaluate_every) * self.evaluate_every
        )

    def annealing(self, done: int) -> int:
        """Return the steps of the decay after `done` steps, in whole calls."""
        return math.ceil(self.anneal * done / self.call) * self.call


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """Functions of one decoder, compiled once for all seeds and all vectors of a shape."""

    protocol: Protocol
    system: MemoryCodec
    start: Callable[[jax.Array], TrainState]
    """Function from a key to a state of initial parameters."""
    train: Callable[..., tuple[TrainState, jax.Array]]
    """Function from (state, vectors [S, B, K, E], tokens [S, B, L], rate factors [S]).

    It returns the state, whose input is donated, and losses [S].
    """
    score: Callable[[Params, jax.Array, jax.Array], TextSums]
    """Function from (params, vectors [B, K, E], tokens [B, L]) to sums of each text, [B] each."""


@functools.lru_cache(maxsize=8)
def make_decoder(
    protocol: Protocol, vocabulary: int, length: int, shape: tuple[int, int], ids: SpecialIds
) -> Decoder:
    """Return the decoder of texts of `length` tokens from K vectors of width E.

    Args:
      protocol: its settings.
      vocabulary: V.
      length: L.
      shape: (K, E).
      ids: padding, which is not a target, and the start token of an autoregressive decoder.
    """
    stack = Backbone(
        kind=protocol.backbone,
        width=protocol.width,
        layers=protocol.layers,
        heads=protocol.heads,
        mlp="gelu",
        mlp_ratio=protocol.mlp_ratio,
    )
    model = Model(
        chunk_length=length,
        memory_vectors=shape[0],
        dtype=protocol.dtype,
        # The encoder is never built. Its unique width makes the modules build a bridge for any
        # E.
        encoder=dataclasses.replace(stack, width=0),
        # A gate helps a decoder to read a vector in front.
        decoder=dataclasses.replace(stack, output_gate=True),
        reconstructor=stack,
    )
    module = (Autoencoder if protocol.kind == "one_shot" else Oracle)(model, vocabulary)
    system = make_codec(module, ids)

    def init(key: jax.Array) -> Any:
        vectors, tokens = jnp.zeros((1, *shape)), jnp.zeros((1, length), jnp.int32)
        given = (vectors,) if protocol.kind == "one_shot" else (tokens, vectors)
        return module.init(key, *given, method="decode")["params"]

    stage = Stage(
        family="autoencoder" if protocol.kind == "one_shot" else "oracle",
        steps=protocol.steps,
        learning_rate=protocol.learning_rate,
        warmup_steps=protocol.warmup_steps,
        lr_schedule="constant",
    )
    optimizer = make_optimizer(_OPTIMIZER, stage, jax.eval_shape(init, jax.random.key(0)))

    @jax.jit
    def start(key: jax.Array) -> TrainState:
        params = init(key)
        return TrainState(jnp.int32(0), params, {}, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def train(
        state: TrainState, vectors: jax.Array, tokens: jax.Array, factors: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        return jax.lax.scan(
            lambda s, batch: _step(system, optimizer, s, *batch), state, (vectors, tokens, factors)
        )

    @jax.jit
    def score(params: Params, vectors: jax.Array, tokens: jax.Array) -> TextSums:
        return text_sums(system.score(params, vectors, tokens))

    return Decoder(protocol, system, start, train, score)


def _step(
    system: MemoryCodec,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    vectors: Float[Array, "B K E"],
    tokens: Int[Array, "B L"],
    factor: Float[Array, ""],
) -> tuple[TrainState, jax.Array]:
    """Return the state after one update on the mean nats per token, and the loss.

    `factor` multiplies the update, which is equivalent to a factor on the rate.
    """

    def loss_fn(params: Params) -> jax.Array:
        scores = system.score(params, vectors, tokens)
        return jnp.sum(scores.nats * scores.weight) / jnp.maximum(jnp.sum(scores.weight), 1.0)

    loss, grads = jax.value_and_grad(loss_fn)(state.trainable)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    updates = jax.tree.map(lambda x: x * factor, updates)
    return TrainState(
        state.step + 1, optax.apply_updates(state.trainable, updates), state.frozen, opt_state
    ), loss


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A trained decoder."""

    params: Params
    steps: int
    """Updates of the decoder."""
    converged: bool
    """True if the loss converged before the last step."""
    curve: tuple[tuple[int, float], ...]
    """(step, nats per token) on the texts set aside, at the constant rate."""


def has_converged(losses: list[float], patience: int, tolerance: float) -> bool:
    """Return whether none of the last `patience` losses is below all earlier ones.

    A loss is below if it is lower by more than `tolerance` of the earlier minimum and SMALLEST_FALL
    nats.
    """
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
    name: str = "decoder",
) -> Fitted:
    """Train a decoder from scratch; batches are a function of (seed, step).

    Args:
      decoder: the result of `make_decoder`.
      take: a function that reads training texts.
      texts: the number of training texts.
      take_stop: a function that reads texts set aside.
      stop_texts: the number of texts set aside.
      seed: seed of parameters and of the order of texts.
      name: names the progress bar.

    Raises:
      ProbeError: the loss is not finite.
    """
    protocol = decoder.protocol
    source: Any = grain.MapDataset.range(texts)
    order = source.seed(seed).shuffle().repeat().batch(protocol.batch)
    state = decoder.start(jax.random.key(seed))

    def look(params: Params) -> float:
        nats, _, tokens = score_sums(decoder, params, take_stop, stop_texts)
        loss = float(nats.sum() / tokens.sum())
        ProbeError.require(
            math.isfinite(loss),
            f"seed={seed}: the decoder's loss is {loss}, expected a finite one. Use a lower"
            " learning_rate",
        )
        return loss

    with bar(name, protocol.steps) as shown:
        left = protocol.steps

        def go_on(state: TrainState, begin: int, factors: np.ndarray, text: str) -> TrainState:
            nonlocal left
            for first in range(0, len(factors), protocol.call):
                steps = range(begin + first, begin + first + protocol.call)
                taken = [take(np.asarray(order[step])) for step in steps]
                vectors, tokens = (np.stack(part) for part in zip(*taken, strict=True))
                state, _ = decoder.train(
                    state, vectors, tokens, np.float32(factors[first : first + protocol.call])
                )
                shown.advance(min(protocol.call, left), text)
                left -= min(protocol.call, left)
            return state

        curve = [(0, look(state.trainable))]
        best, done, converged = state, 0, False
        while done < protocol.constant_steps and not converged:
            # The next call receives the state as a donation; the best state is a copy.
            state = jax.tree.map(jnp.copy, state) if best is state else state
            state = go_on(state, done, np.ones(protocol.evaluate_every), f"{curve[-1][1]:.3f} nats")
            done += protocol.evaluate_every
            curve.append((done, look(state.trainable)))
            losses = [loss for _, loss in curve]
            if losses[-1] <= min(losses):
                best = state
            converged = has_converged(losses, protocol.patience, protocol.tolerance)
        lowest, from_step = min(loss for _, loss in curve), int(best.step)
        steps = protocol.annealing(from_step)
        params, total = best.trainable, from_step
        if steps:
            factors = np.arange(steps, 0, -1) / steps
            state = jax.tree.map(jnp.copy, best)
            state = go_on(state, from_step, factors, f"{lowest:.3f} nats, annealing")
            # Where texts are few, more training may increase the loss.
            if look(state.trainable) <= lowest:
                params, total = state.trainable, from_step + steps
        shown.advance(left, f"{lowest:.3f} nats")
    return Fitted(params, total, converged, tuple(curve))


def score_sums(decoder: Decoder, params: Params, take: Take, texts: int) -> TextSums:
    """Return the sums of each of `texts` texts, [texts] each, in float64."""
    return over_batches(
        lambda indices: decoder.score(params, *map(jnp.asarray, take(indices))),
        np.arange(texts),
        4 * decoder.protocol.batch,
        "score",
        np.float64,
    )
