"""Where recall breaks down: texts said again from their memories alone, beside the same with the true tokens shown before each.

Running freely, a model that reads tokens is shown its own words only, so that one error may bring on others. An autoencoder, and a memory
model that is asked by blanks, are shown no tokens at all: for them both are one.

Shapes: N text, B text of a batch, T token of a text, H chunk of a text, L token of a chunk, D decoder width, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.instruments.information import by_decile, check_texts, curve, flat, frequency_deciles, over_batches
from memjax.instruments.recall import regenerate
from memjax.instruments.system import Params, System
from memjax.instruments.uncertainty import Estimate, ratio
from memjax.models import MemoryModel, Oracle
from memjax.objectives.requests import make_request

LOGITS = 2**24
"""Logits held at a time."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """How well chunks are said again; a text of an autoencoder or an oracle is one chunk."""

    accuracy: Estimate
    """Share of all tokens that are right."""
    exact: Estimate
    """Share of chunks without an error."""
    before_error: Estimate
    """Tokens of a chunk before its first error; all of them if there is none."""
    survival: tuple[Estimate, ...]
    """Share of chunks without an error up to each of the L positions, that position included."""
    by_position: tuple[Estimate, ...]
    """Accuracy at each of the L positions."""
    by_frequency: tuple[Estimate, ...]
    """Accuracy of the tokens of each tenth of training text, those of the most frequent ids first (`frequency_deciles`)."""


@dataclasses.dataclass(frozen=True)
class Recall:
    """Both ways of saying a text again."""

    free: Curves
    """From the memory and the model's own words."""
    forced: Curves
    """Shown the true tokens before each, where the model is shown tokens."""


def recall_curves(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    train_texts: Int[np.ndarray, "A T"],
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
) -> Recall:
    """Says texts again from their own memories, greedily.

    Args:
      system: what is measured.
      params: its parameters.
      texts: of `system.length` tokens each.
      train_texts: as long, for the frequencies.
      batch: texts at a time.
      advance: called when a batch is done.

    Raises:
      TextsError: there are no texts of the one kind or the other, or they are of another length.
    """
    check_texts(system, texts)
    check_texts(system, train_texts)
    free, forced, weight, labels = over_batches(functools.partial(_batch, system, params), texts, batch, advance)
    deciles = frequency_deciles(train_texts, train_texts != system.ids.pad, system.vocabulary)[labels]
    return Recall(*(curves(correct, weight, deciles, system.held) for correct in (free, forced)))


def curves(
    correct: Float[np.ndarray, "N T"], weight: Float[np.ndarray, "N T"], deciles: Int[np.ndarray, "N T"], held: int = 1
) -> Curves:
    """What right and wrong tokens make of texts of `held` chunks each.

    Args:
      correct: 1 where a token is right.
      weight: 1 where it counts.
      deciles: of the true tokens.
      held: H.
    """
    shape = (len(correct), held, -1)
    counts = weight.reshape(shape) > 0
    wrong = counts & (correct.reshape(shape) == 0)
    right = counts & ~wrong
    alive = np.cumsum(wrong, axis=-1) == 0
    # A chunk of nothing but padding says nothing.
    chunk = np.any(counts, axis=-1)
    chunks = chunk.sum(axis=1)
    return Curves(
        accuracy=ratio(right.sum(axis=(1, 2)), counts.sum(axis=(1, 2))),
        exact=ratio((chunk & ~wrong.any(axis=-1)).sum(axis=1), chunks),
        before_error=ratio((counts & alive).sum(axis=(1, 2)), chunks),
        survival=curve((alive & chunk[..., None]).sum(axis=1), np.repeat(chunks[:, None], alive.shape[-1], axis=1)),
        by_position=curve(right.sum(axis=1), counts.sum(axis=1)),
        by_frequency=by_decile(correct, weight, deciles),
    )


@functools.partial(jax.jit, static_argnums=0)
def _batch(system: System, params: Params, tokens: Int[Array, "B T"]) -> tuple[jax.Array, ...]:
    """(right when running freely, right when shown the true tokens, weight, labels), all [B, T]."""
    memory = system.encode(params, tokens)
    _, forced, weight, labels = flat(system.score(params, memory, tokens))
    said = say(system, params, memory, tokens)
    if _ahead(system):  # A position is about the token after it.
        chunks = said.reshape(tokens.shape[0], system.held, -1)
        said = jnp.roll(chunks, -1, axis=-1).reshape(tokens.shape)
    return (said == labels).astype(jnp.float32), forced.astype(jnp.float32), weight, labels


def say(system: System, params: Params, memory: Float[Array, "B M E"], tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Texts said again from their memories: every token is the most likely one given those said before.

    Of `tokens` only what is no target is read: padding, and under `unscored_first_tokens` the first of each chunk. A memory model that is
    asked to copy with its own words in view encodes `tokens` itself; it is not given `memory`.
    """
    if isinstance(system.module, Oracle):
        return _say_one_by_one(system, params, memory, tokens)
    if isinstance(system.module, MemoryModel) and system.ask != "blank_copy":
        length = system.module.chunks * system.module.config.chunk_length
        rows = jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])), constant_values=system.ids.pad)
        said, _ = regenerate(system.module, params, rows, system.ids, system.ask, system.compat)
        return said.reshape(tokens.shape)
    return _say_at_once(system, params, memory, tokens)


def _say_at_once(system: System, params: Params, memory: jax.Array, tokens: jax.Array) -> jax.Array:
    """Of a model that is shown no tokens; a few texts at a time, so that not all logits are held."""
    fitting = max(1, LOGITS // (system.length * system.vocabulary))
    texts = max(n for n in range(1, min(fitting, len(tokens)) + 1) if len(tokens) % n == 0)
    parts = [x.reshape(-1, texts, *x.shape[1:]) for x in (memory, tokens)]
    said = jax.lax.map(lambda part: jnp.argmax(system.logits(params, *part), axis=-1), tuple(parts))
    return said.reshape(tokens.shape)


def _say_one_by_one(system: System, params: Params, memory: jax.Array, tokens: jax.Array) -> jax.Array:
    """Of an oracle, which is shown its own words; as `regenerate` does for a memory model."""
    module, ids, ahead, length = system.module, system.ids, _ahead(system), tokens.shape[1]
    variables = {"params": params}
    request = make_request("next_token", tokens[:, None], ids, system.compat)
    given, target = request.inputs[:, 0], request.weight[:, 0] > 0
    valid, real = given != ids.pad, tokens != ids.pad
    # Input t + 1 is token t + ahead where that is text, and else the start token or padding.
    own = jnp.pad(real[:, ahead : length - 1 + ahead], ((0, 0), (1, 0)), constant_values=False)

    def next_tokens(position: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, said = carry
        hidden: Any = module.apply(variables, inputs, memory, valid, method="hidden")
        logits: Any = module.apply(variables, hidden[:, position], method=lambda m, h: m.head(h))
        token = jnp.where(target[:, position], jnp.argmax(logits, axis=-1), said[:, position + ahead])
        # Past the last position there is no input to fill: an update there falls away.
        shown = jnp.where(own[:, position + 1], token, inputs[:, position + 1])
        inputs = inputs.at[:, position + 1].set(shown, mode="drop")
        return inputs, said.at[:, position + ahead].set(token)

    # What is a target is never read: it is written before.
    start = jnp.where(own, ids.blank, given), jnp.where(_targets(target, ahead), ids.blank, tokens)
    return jax.lax.fori_loop(0, length - ahead, next_tokens, start)[1]


def _targets(target: jax.Array, ahead: int) -> jax.Array:
    """Which tokens are targets, from which positions are."""
    return jnp.pad(target[:, : target.shape[1] - ahead], ((0, 0), (ahead, 0)), constant_values=False)


def _ahead(system: System) -> int:
    """Position t is about token t behind a start token, about token t + 1 in the published form. An autoencoder has no shift."""
    return int(isinstance(system.module, (Oracle, MemoryModel)) and "unscored_first_tokens" in system.compat)
