"""Free-running recall: a chunk regenerated from memories alone, each token chosen from those the model chose before.

Shapes: B row, C chunk, X chunk decoded, L token, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from memjax.models import MemoryModel
from memjax.objectives import SpecialIds
from memjax.objectives.requests import make_request, to_encode
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
    """(what the model says, what the chunks hold) for the first half of each row, as the copy objective asks for it.

    No token of the text is shown: the decoder starts from the objective's start token and reads memories and its own greedy
    choices. `ask` is the objective: `copy`, or `plain_copy` for a model that knows no delimiter. `compat` are the quirks the model was
    trained under (STAGE_QUIRKS): in the published form a chunk's tokens that are no target are given. `mesh` are the devices that parameters
    and tokens lie on, if several.
    """
    regenerator: Any = _regenerator
    return regenerator(module, ids, ask, compat, mesh)(params, tokens)


@functools.lru_cache(maxsize=8)
def _regenerator(
    module: MemoryModel, ids: SpecialIds, ask: str, compat: tuple[str, ...], mesh: jax.sharding.Mesh | None
) -> Callable[..., Any]:
    """The same function for the same arguments, so that it is compiled once."""
    return on_mesh(functools.partial(_regenerate, module=module, ids=ids, ask=ask, compat=compat), mesh)


def _regenerate(
    params: Any, tokens: jax.Array, *, module: MemoryModel, ids: SpecialIds, ask: str, compat: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    chunks_BCL = tokens.reshape(tokens.shape[0], -1, module.config.chunk_length)
    request = make_request(ask, chunks_BCL, ids, compat)
    variables = {"params": params}
    memories, memory_valid, slots = None, None, request.slots
    if module.memory:
        shown, slots = to_encode(request, chunks_BCL)
        valid = shown != ids.pad
        memories = module.apply(variables, shown, valid, method="encode")
        memory_valid = valid.any(axis=-1)
    held = chunks_BCL[:, : request.inputs.shape[1]]
    # Position t says token t behind a start token, token t + 1 in the published form.
    ahead = 1 if "unscored_first_tokens" in compat else 0
    length = held.shape[-1]
    fixed = (request.inputs == ids.delimiter) | (jnp.arange(length) == 0)
    start = jnp.where(fixed, request.inputs, ids.blank)

    def next_tokens(position: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, said = carry
        hidden: Any = module.apply(
            variables, inputs, memories, slots, request.chunk, request.task, memory_valid, method="hidden"
        )
        logits: Any = module.apply(variables, hidden[:, :, position], method=lambda m, h: m.head(h))
        target = request.weight[:, :, position] > 0
        token = jnp.where(target | (ahead == 0), jnp.argmax(logits, axis=-1), said[:, :, position + ahead])
        # Past the last position there is no input to fill: an update there falls away.
        shown = jnp.where(fixed[:, :, position + 1], inputs[:, :, position + 1], token)
        inputs = inputs.at[:, :, position + 1].set(shown, mode="drop")
        return inputs, said.at[:, :, position + ahead].set(token, mode="drop")

    said = held if ahead else jnp.zeros_like(held)
    _, said = jax.lax.fori_loop(0, length - ahead, next_tokens, (start, said))
    return said, held
