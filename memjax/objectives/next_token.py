"""Next tokens: every chunk or sequence, from what stands before it.

A chunk is shown a start token and then its tokens but the last, so that every token is a target,
the first one too. In the published form (`unscored_first_tokens`) it is shown as it stands, and
position t scores token t + 1.
"""

import dataclasses

import jax.numpy as jnp

from memjax.models import can
from memjax.models.request import Asking, Request
from memjax.objectives.objective import Objective
from memjax.objectives.requests import make_request, request_of


def request(asking: Asking) -> Request:
    """All chunks, or of a model that reads whole sequences one chunk that is the sequence."""
    module, compat = asking.module, asking.stage.compat
    if can(module, "reads_rows"):
        return request_of(asking, "next_token", asking.batch.tokens[:, None])
    if not can(module, "starts_from_state"):
        return request_of(asking, "next_token")
    plain = make_request("next_token", asking.chunks, asking.ids)
    weight = jnp.asarray(plain.weight)
    if "overwritten_write_slot" in module.config.compat or "unscored_first_tokens" in compat:
        weight = weight.at[..., 0].set(0.0)
    return dataclasses.replace(plain, inputs=plain.labels, weight=weight)


OBJECTIVES = (Objective("next_token", needs="predicts", request=request),)
