"""Free-running recall: a chunk is reconstructed from memories alone by greedy decoding.

Shapes: B sequence, C chunk, X decoded chunk, L token, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.config import Stage
from memjax.models import MemoryModel
from memjax.models.request import join
from memjax.objectives import Request, SpecialIds, build_requests
from memjax.sharding import on_mesh


def regenerate(
    module: MemoryModel,
    params: Any,
    tokens: Int[Array, "B N"],
    ids: SpecialIds,
    ask: str = "copy",
    compat: tuple[str, ...] = (),
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Int[Array, "B X L"], Int[Array, "B X L"]]:
    """Return (generated tokens, tokens of the chunks) for the first half of each sequence, or by
    `recall` for all chunks but the last.

    No token of the text is an input: the decoder starts from the objective's start token and reads
    memories and its own greedy choices. `ask` is the objective: `copy`, `recall`, or `plain_copy`
    for a model without a delimiter. `compat` are the quirks of the model's training (STAGE_QUIRKS):
    in the published form the tokens of a chunk that are no targets are given. `mesh` holds the
    devices of parameters and tokens, if several.
    """
    regenerator: Any = _regenerator
    return regenerator(module, ids, ask, compat, mesh)(params, tokens)


@functools.lru_cache(maxsize=8)
def _regenerator(
    module: Any,
    ids: SpecialIds,
    ask: str,
    compat: tuple[str, ...],
    mesh: jax.sharding.Mesh | None,
) -> Callable[..., Any]:
    """Return the same function for the same arguments, so that it is compiled once."""

    def run(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        apply = functools.partial(module.apply, {"params": params})
        chunks_BCL = tokens.reshape(tokens.shape[0], -1, module.config.chunk_length)
        (request,) = build_requests(module, tokens, (ask,), ids, Stage(compat=compat)).values()
        asked, encoded = join([request], chunks_BCL)
        memories, memory_valid = None, None
        if module.memory:
            valid = encoded.tokens != ids.pad
            memories, memory_valid = apply(encoded.tokens, valid, method="encode"), valid.any(-1)
        rest = memories, memory_valid, request.inputs != ids.pad

        def logits(inputs: jax.Array, position: jax.Array) -> jax.Array:
            hidden = apply(asked._replace(inputs=inputs), *rest, method="joined_states")
            return apply(hidden[:, :, position], method=lambda module, h: module.head(h))

        held = chunks_BCL[:, : request.inputs.shape[1]]
        return greedy(logits, request, held, ids, int("unscored_first_tokens" in compat)), held

    return on_mesh(run, mesh)


def greedy(
    logits: Callable[[jax.Array, jax.Array], Float[Array, "*B V"]],
    request: Request,
    tokens: Int[Array, "*B L"],
    ids: SpecialIds,
    ahead: int,
) -> Int[Array, "*B L"]:
    """Return texts whose targets are the most likely tokens after those before them.

    A model whose forced choices are all correct returns the texts.

    Args:
      logits: of one position, from the inputs of the decoder and the position.
      request: of these texts. Its start tokens, delimiters and padding are shown as they are; its
        other inputs are the tokens that the model has found.
      tokens: the texts; those that are no target are kept, such as padding.
      ids: reserved ids.
      ahead: the distance from a position to the token that it predicts: 0 with a start token, else
        1.
    """
    target, length = jnp.asarray(request.weight) > 0, tokens.shape[-1]
    # Input t + 1 is token t + ahead where that is text.
    shown_after = (tokens != ids.pad)[..., ahead : length - 1 + ahead]
    before = ((0, 0),) * (tokens.ndim - 1)
    own = jnp.pad(shown_after, (*before, (1, 0))) & (request.inputs != ids.delimiter)
    targets = jnp.pad(target[..., : length - ahead], (*before, (ahead, 0)))
    # A target is never read: it is overwritten before.
    inputs, tokens = (
        jnp.where(read, ids.blank, x) for read, x in ((own, request.inputs), (targets, tokens))
    )

    def next_tokens(
        position: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        inputs, found = carry
        likeliest = jnp.argmax(logits(inputs, position), axis=-1)
        token = jnp.where(target[..., position], likeliest, found[..., position + ahead])
        # There is no input after the last position: an update there is dropped.
        shown = jnp.where(own[..., position + 1], token, inputs[..., position + 1])
        inputs = inputs.at[..., position + 1].set(shown, mode="drop")
        return inputs, found.at[..., position + ahead].set(token)

    return jax.lax.fori_loop(0, length - ahead, next_tokens, (inputs, tokens))[1]
