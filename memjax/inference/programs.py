"""What is compiled to generate: reading prompts, choosing a token, and taking it in.

Shapes: B row, V vocabulary, W token of the window, M chunk before the window, L token of a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.inference.reader import Given, Params, Reader
from memjax.inference.sampling import Sampling, draw
from memjax.layers.attention import KeyValues
from memjax.sharding import constrain


@flax.struct.dataclass
class State:
    """Where every row stands: what its model keeps, and the scores of its next token."""

    logits: Float[Array, "B V"]
    """Float32, of the next token."""
    tokens: Int[Array, "B W"]
    """The window; what stands behind `place` means nothing."""
    place: Int[Array, " B"]
    """Tokens in the window, fewer than W."""
    row: Int[Array, " B"]
    made: Int[Array, " B"]
    """Tokens made so far, those of the prompt not counted."""
    held: Any
    """What is kept of the tokens before the window (`Reader.hold`)."""
    cache: Any
    """What the decoder keeps of the window; None where it reads it again."""


class Programs:
    """The compiled functions of one reader and mesh."""

    def __init__(self, reader: Reader, mesh: jax.sharding.Mesh | None) -> None:
        self.jitted_append = jax.jit(functools.partial(_append, reader), donate_argnums=1)
        """Its state is used up, so that a cache is written where it lies."""
        self._append = _on(mesh, self.jitted_append)
        self._prefill = _on(mesh, jax.jit(functools.partial(_prefill, reader), static_argnums=7))
        self._draw = _on(mesh, _jitted_draw)

    def prefill(self, params: Params, *prompts: Any) -> State:
        """Arguments as in `_prefill`."""
        return self._prefill(params, *prompts)

    def draw(self, state: State, key: jax.Array, sampling: Sampling) -> Int[Array, " B"]:
        """The next token of each row.

        Apart from `append`: it is there before what follows from it is, and another way of choosing compiles without the model.
        """
        return self._draw(state.logits, key, state.row, state.made, sampling)

    def append(self, params: Params, state: State, token: jax.Array) -> State:
        """The state after one more token of each row; the state before is gone."""
        return self._append(params, state, token)


_jitted_draw = jax.jit(draw, static_argnums=4)


@functools.lru_cache(maxsize=8)
def compiled(reader: Reader, mesh: jax.sharding.Mesh | None) -> Programs:
    """The same programs for the same model, so that they are compiled once."""
    return Programs(reader, mesh)


def _on(mesh: jax.sharding.Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function with the mesh in context."""
    if mesh is None:
        return function

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def _prefill(
    reader: Reader,
    params: Params,
    chunks: Int[Array, "B M L"],
    count: Int[Array, " B"],
    tokens: Int[Array, "B W"],
    place: Int[Array, " B"],
    row: Int[Array, " B"],
    given: Given | None,
    span: int,
) -> State:
    held = reader.hold(params, chunks, count, given)
    hidden, cache = reader.open(params, held, tokens, place, span)
    return _laid_out(State(reader.logits(params, hidden), tokens, place, row, jnp.zeros_like(row), held, cache))


def _append(reader: Reader, params: Params, state: State, token: Int[Array, " B"]) -> State:
    """The state after one more token of each row. Windows that it fills turn; that work is skipped where none does."""
    rows = jnp.arange(len(token))
    tokens, place = state.tokens.at[rows, state.place].set(token), state.place + 1
    full = place == reader.window
    held, cache, hidden = state.held, state.cache, None
    if reader.cached:
        hidden, cache = reader.extend(params, held, cache, token, place)

    def turned() -> tuple[Any, ...]:
        new = reader.turn(params, held, tokens, place)
        held_after, tokens_after, place_after = after = _where(full, new, (held, tokens, place), axis=0)
        if not reader.cached:
            return *after, None, None
        new_hidden, new_cache = reader.open(params, held_after, tokens_after, place_after, reader.turned)
        return *after, _where(full, new_hidden, hidden, axis=0), _where(full, new_cache, cache, axis=1)

    held, tokens, place, hidden, cache = jax.lax.cond(jnp.any(full), turned, lambda: (held, tokens, place, hidden, cache))
    if not reader.cached:
        hidden, cache = reader.open(params, held, tokens, place, reader.window - 1)
    return _laid_out(State(reader.logits(params, hidden), tokens, place, state.row, state.made + 1, held, cache))


def _where(rows: jax.Array, new: Any, old: Any, axis: int) -> Any:
    """`new` in these rows and `old` in the others; rows are an axis of every leaf."""
    return jax.tree.map(
        lambda a, b: jnp.where(rows.reshape((1,) * axis + (-1,) + (1,) * (a.ndim - axis - 1)), a.astype(b.dtype), b), new, old
    )


def _laid_out(state: State) -> State:
    """Rows, and heads of a cache, split over the mesh in context: every step leaves its state as it found it."""
    heads = ("tensor", None, None) if isinstance(state.cache, KeyValues) else (None, "tensor", None)
    cache = jax.tree.map(lambda x: constrain(x, None, "batch", *heads), state.cache)
    whole = jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), dataclasses.replace(state, cache=None))
    return dataclasses.replace(whole, cache=cache)
