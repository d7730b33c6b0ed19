"""Copies of the first half of a sequence.

They are predicted from memories and the tokens so far (copy), from memories alone (blank), or
without any mark that it is a copy (plain).

Of a causal language model a copy is a sequence whose second half is its first half again. Only the
second half is scored, and all of its tokens are targets in either form.

Shapes: B sequence, N token of a sequence, H = N / 2 tokens of half a sequence.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from memjax.config import Config, ConfigError, Stage
from memjax.models import can
from memjax.models.request import Asking, Request
from memjax.objectives.objective import Objective
from memjax.objectives.requests import request_of


def rows_copied(
    asking: Asking, first_BH: jax.Array, shown_BH: jax.Array, asked_BH: jax.Array
) -> Request:
    """Sequences that end in a copy, with labels and weights of the copy alone.

    Args:
      asking: the inputs of the request.
      first_BH: first halves.
      shown_BH: the copies that are shown.
      asked_BH: the copies that are the labels.
    """
    shown, asked = (
        request_of(asking, "next_token", jnp.concatenate([first_BH, copy], axis=1)[:, None])
        for copy in (shown_BH, asked_BH)
    )
    half = first_BH.shape[1]
    start = half - ("unscored_first_tokens" in asking.stage.compat)
    copied = slice(start, start + half)
    return dataclasses.replace(
        shown,
        labels=asked.labels[..., copied],
        weight=asked.weight[..., copied],
        place=np.array([start]),
    )


def first_half(tokens: Int[Array, "B N"], name: str) -> Int[Array, "B H"]:
    """Return the first half of each row, which a copy repeats.

    Raises:
      ConfigError: rows have no two halves; `name` is the objective.
    """
    length = tokens.shape[1]
    ConfigError.require(
        length % 2 == 0,
        f"config.data.sequence_length: got {length}, expected an even number for {name}, which"
        " copies half a row",
    )
    return jnp.asarray(tokens)[:, : length // 2]


def _request(name: str, asking: Asking) -> Request:
    if not can(asking.module, "reads_rows"):
        return request_of(asking, name)
    first = first_half(asking.batch.tokens, name)
    return rows_copied(asking, first, first, first)


def check_halves(config: Config, stage: Stage, key: str) -> None:
    """Raises ConfigError where whole sequences are copied and have no two halves."""
    copies = [name for name in stage.objectives if name.endswith("copy")]
    length = config.data.sequence_length
    ConfigError.require(
        not can(stage.family, "reads_rows") or length % 2 == 0,
        f"{key}.objectives names {', '.join(copies)}, so config.data.sequence_length={length}"
        " must be even",
    )


def _check(config: Config, stage: Stage, key: str) -> None:
    check_halves(config, stage, key)
    reads_stored = config.data.memories and can(stage.family, "reads_memories")
    copies = [name for name in stage.objectives if name.endswith("copy")]
    ConfigError.require(
        not (reads_stored and stage.memory and "unscored_first_tokens" in stage.compat),
        f"config.data.memories={config.data.memories!r} has no memories of the copies that"
        f" {', '.join(copies)} encode under {key}.compat's unscored_first_tokens; leave one of"
        " them out",
    )


OBJECTIVES = tuple(
    Objective(name, needs, request=functools.partial(_request, name), check=_check)
    for name, needs in (
        ("copy", "reads_memories"),
        ("plain_copy", "copies"),
        ("blank_copy", "reads_memories"),
    )
)
