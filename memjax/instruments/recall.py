"""Free-running recall: a chunk regenerated from memories alone, each token chosen from those the model chose before.

Shapes: B row, C chunk, X chunk decoded, L token, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from memjax.models import MemoryModel
from memjax.objectives import SpecialIds
from memjax.objectives.requests import REQUESTS, to_encode


def regenerate(
    module: MemoryModel, params: Any, tokens: Int[Array, "B N"], ids: SpecialIds, ask: str = "copy"
) -> tuple[Int[Array, "B X L"], Int[Array, "B X L"]]:
    """(what the model says, what the chunks hold) for the first half of each row, as the copy objective asks for it.

    No token of the text is shown: the decoder starts from the objective's start token and reads memories and its own greedy
    choices. `ask` is the objective: `copy`, or `plain_copy` for a model that knows no delimiter.
    """
    length = module.config.chunk_length
    chunks_BCL = tokens.reshape(tokens.shape[0], -1, length)
    return _regenerate(params, chunks_BCL, module=module, ids=ids, ask=ask)


@functools.partial(jax.jit, static_argnames=("module", "ids", "ask"))
def _regenerate(
    params: Any, chunks_BCL: jax.Array, *, module: MemoryModel, ids: SpecialIds, ask: str
) -> tuple[jax.Array, jax.Array]:
    request = REQUESTS[ask](chunks_BCL, ids)
    variables = {"params": params}
    memories, memory_valid = None, None
    if module.memory:
        shown, _ = to_encode(request, chunks_BCL)
        valid = shown != ids.pad
        memories = module.apply(variables, shown, valid, method="encode")
        memory_valid = valid.any(axis=-1)
    start = request.inputs.at[..., 1:].set(ids.blank)

    def next_tokens(position: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, said = carry
        hidden: Any = module.apply(
            variables, inputs, memories, request.slots, request.chunk, request.task, memory_valid, method="hidden"
        )
        logits: Any = module.apply(variables, hidden[:, :, position], method=lambda m, h: m.head(h))
        token = jnp.argmax(logits, axis=-1)
        # Past the last position there is no input to fill: an update there falls away.
        inputs = inputs.at[:, :, position + 1].set(token, mode="drop")
        return inputs, said.at[:, :, position].set(token)

    _, said = jax.lax.fori_loop(0, request.labels.shape[-1], next_tokens, (start, jnp.zeros_like(request.labels)))
    return said, request.labels
