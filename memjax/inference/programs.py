"""The compiled functions of generation: prefill, the choice of a token, and the decode step.

Shapes: B sequence, V vocabulary, W token of the window, M chunk before the window, L token of a
chunk.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.inference.sampling import draw
from memjax.inference.strategy import DecodingStrategy, Params, PrefixMemories
from memjax.layers.attention import KeyValues
from memjax.sharding import constrain


@flax.struct.dataclass
class DecodeState:
    """The state of a batch: context, window and logits of the next token."""

    logits: Float[Array, "B V"]
    """Float32 logits of the next token."""
    tokens: Int[Array, "B W"]
    """The window; tokens after `position` are arbitrary."""
    position: Int[Array, " B"]
    """Tokens in the window, fewer than W."""
    row: Int[Array, " B"]
    made: Int[Array, " B"]
    """Generated tokens so far, without those of the prompt."""
    context: Any
    """The context of the tokens before the window (`DecodingStrategy.encode_context`)."""
    cache: Any
    """The decoder's cache of the window; None if it is recomputed."""


class Programs(NamedTuple):
    """The compiled functions of one strategy and mesh."""

    prefill: Callable[..., DecodeState]
    """Returns the state after the prompts."""
    append: Callable[[Params, DecodeState, jax.Array], DecodeState]
    """Returns the state after one more token of each sequence. The state before is donated, so that
    a cache is updated in place."""
    grow: Callable[[DecodeState], DecodeState]
    """Returns the same state with room for more entries, where a strategy's cache grows."""
    draw: Callable[..., jax.Array]
    """Returns the next token of each sequence (`memjax.inference.sampling.draw`). It is ready
    before the next state, and another sampling method compiles without the model."""


_jitted_draw = jax.jit(draw, static_argnums=4)


@functools.lru_cache(maxsize=8)
def compiled(strategy: DecodingStrategy, mesh: jax.sharding.Mesh | None) -> Programs:
    """Return the same programs for the same model, so that they are compiled once."""
    prefill = jax.jit(functools.partial(_prefill, strategy), static_argnums=7)
    append = jax.jit(functools.partial(_append, strategy), donate_argnums=1)
    grow = jax.jit(functools.partial(_grow, strategy))
    return Programs(*(_on(mesh, f) for f in (prefill, append, grow, _jitted_draw)))


def _on(mesh: jax.sharding.Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function with the mesh in context."""
    if mesh is None:
        return function

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def _prefill(
    strategy: DecodingStrategy,
    params: Params,
    chunks: Int[Array, "B M L"],
    count: Int[Array, " B"],
    tokens: Int[Array, "B W"],
    position: Int[Array, " B"],
    row: Int[Array, " B"],
    prefix: PrefixMemories | None,
    span: int,
) -> DecodeState:
    context = strategy.encode_context(params, chunks, count, prefix)
    hidden, cache = strategy.prefill(params, context, tokens, position, span)
    return _laid_out(
        DecodeState(
            strategy.logits(params, hidden),
            tokens,
            position,
            row,
            jnp.zeros_like(row),
            strategy.held(context),
            cache,
        )
    )


def _grow(strategy: Any, state: DecodeState) -> DecodeState:
    context, cache = strategy.grow(state.context, state.cache)
    return _laid_out(dataclasses.replace(state, context=context, cache=cache))


def _append(
    strategy: DecodingStrategy, params: Params, state: DecodeState, token: Int[Array, " B"]
) -> DecodeState:
    """Return the state after one more token of each sequence. Windows that become full advance;
    this work is skipped if none does.
    """
    rows = jnp.arange(len(token))
    tokens, position = state.tokens.at[rows, state.position].set(token), state.position + 1
    full = position == strategy.window
    context, cache, hidden = state.context, state.cache, None
    if strategy.grows:
        read = _read(strategy, params, context, cache, token, position)
        written = _written(strategy, params, (context, *read, tokens, position))
        context, cache, hidden, tokens, position = written
        return _laid_out(
            dataclasses.replace(
                state,
                logits=strategy.logits(params, hidden),
                tokens=tokens,
                position=position,
                made=state.made + 1,
                context=context,
                cache=cache,
            )
        )

    if strategy.cached:
        hidden, cache = strategy.decode_step(params, context, cache, token, position)

    def advanced() -> tuple[Any, ...]:
        new = strategy.advance_window(params, context, tokens, position)
        context_after, tokens_after, position_after = after = _where(
            full, new, (context, tokens, position), axis=0
        )
        if not strategy.cached:
            return *after, None, None
        new_hidden, new_cache = strategy.prefill(
            params, context_after, tokens_after, position_after, strategy.advanced
        )
        return (
            *after,
            _where(full, new_hidden, hidden, axis=0),
            _where(full, new_cache, cache, axis=1),
        )

    context, tokens, position, hidden, cache = jax.lax.cond(
        jnp.any(full), advanced, lambda: (context, tokens, position, hidden, cache)
    )
    if not strategy.cached:
        hidden, cache = strategy.prefill(params, context, tokens, position, strategy.window - 1)
    return _laid_out(
        DecodeState(
            strategy.logits(params, hidden),
            tokens,
            position,
            state.row,
            state.made + 1,
            context,
            cache,
        )
    )


def _read(
    strategy: Any, params: Params, context: Any, cache: Any, token: jax.Array, position: jax.Array
) -> tuple[Any, jax.Array]:
    """Return the cache and the hidden states [B, D] after one more token; nothing is computed where
    all windows are full, which read their next one instead. A loop as in `_written`.
    """

    def step(cache: Any) -> tuple[jax.Array, Any]:
        return strategy.decode_step(params, context, cache, token, position)

    def read(carry: Any) -> tuple[Any, jax.Array, jax.Array]:
        hidden, cache = step(carry[0])
        return cache, hidden, jnp.zeros_like(carry[2])

    nothing = jnp.zeros_like(jax.eval_shape(step, cache)[0])
    begin = cache, nothing, jnp.any(position < strategy.window)
    return jax.lax.while_loop(lambda carry: carry[2], read, begin)[:2]


def _written(strategy: Any, params: Params, carry: Any) -> Any:
    """Write full windows into the cache; nothing is computed where there is none.

    A loop of one round or none, whose carry is updated in place: the two branches of a conditional
    would copy a cache that is as long as the text. A window that is written becomes zeros: if the
    loop left its tokens as they are, the compiler would encode them before the loop, in every step.
    """

    def is_full(carry: Any) -> jax.Array:
        return jnp.any(carry[-1] == strategy.window)

    def write(carry: Any) -> Any:
        context, cache, hidden, tokens, position = carry
        full = position == strategy.window
        context, cache, first = strategy.write_chunk(params, context, cache, tokens, full)
        hidden = jnp.where(full[:, None], first.astype(hidden.dtype), hidden)
        tokens = jnp.where(full[:, None], 0, tokens)
        return context, cache, hidden, tokens, jnp.where(full, 0, position)

    return jax.lax.while_loop(is_full, write, carry)


def _where(rows: jax.Array, new: Any, old: Any, axis: int) -> Any:
    """Return `new` in these sequences and `old` in others; the batch is an axis of every leaf."""
    return jax.tree.map(
        lambda a, b: jnp.where(
            rows.reshape((1,) * axis + (-1,) + (1,) * (a.ndim - axis - 1)), a.astype(b.dtype), b
        ),
        new,
        old,
    )


def _laid_out(state: DecodeState) -> DecodeState:
    """Shard the batch, and heads of a cache, over the mesh in context: every step keeps the
    sharding of its state.
    """
    heads = ("tensor", None, None) if isinstance(state.cache, KeyValues) else (None, "tensor", None)
    cache = jax.tree.map(lambda x: constrain(x, None, "batch", *heads), state.cache)
    whole = jax.tree.map(
        lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)),
        dataclasses.replace(state, cache=None),
    )
    return dataclasses.replace(whole, cache=cache)
