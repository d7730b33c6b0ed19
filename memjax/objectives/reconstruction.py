"""Reconstruction: every token of a chunk from the chunk's memory, of text or of random ids.

Shapes: B sequence, N token of a sequence.
"""

import jax
import jax.numpy as jnp

from memjax.models.request import Asking, Request
from memjax.objectives.objective import Objective
from memjax.objectives.requests import token_weight


def _request(asking: Asking, tokens_BN: jax.Array) -> Request:
    chunks = asking.cut(tokens_BN)
    return Request(chunks, chunks, token_weight(chunks, asking.ids))


def _random(asking: Asking) -> Request:
    """Ask for uniform ids of content in place of text; padding stays.

    They are the labels too: a trivial code has as low a loss on them as on text.
    """
    tokens_BN, ids = asking.batch.tokens, asking.ids
    content = ids.first_content, ids.end_content(asking.module.vocab_size)
    drawn = jax.random.randint(asking.draw_key, tokens_BN.shape, *content, tokens_BN.dtype)
    return _request(asking, jnp.where(tokens_BN == ids.pad, tokens_BN, drawn))


OBJECTIVES = (
    Objective(
        "reconstruction",
        needs="reconstructs",
        request=lambda asking: _request(asking, asking.batch.tokens),
    ),
    Objective("random_reconstruction", needs="reconstructs", request=_random),
)
