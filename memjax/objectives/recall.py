"""Recall: any chunk of a sequence again, found by its place in the text.

The decoded chunk stands at its own place and begins with the delimiter. Its tokens are predicted
from memories and the tokens so far (`recall`), or from memories alone (`blank_recall`). In training
it reads the entries up to a random one from its own on, in evaluation all. A task mark of its own
distinguishes recall from copies, whose chunks stand at other places.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from memjax.config import Config, ConfigError, Stage
from memjax.models.request import RECALL, Asking, Request, SpecialIds
from memjax.objectives.objective import Objective
from memjax.objectives.requests import draw_chunks, shift_right, token_weight

RECALLS = ("recall", "blank_recall")
"""Objectives by which a stage recalls: with the tokens so far, or from memories alone."""


def asks_to_recall(config: Config, stage: Stage) -> bool:
    """Return whether copies of a stage's model are chunks recalled by their places in the text.

    So they are where a decoder reads by these, unless the stage trains it to copy.
    """
    copies = {"copy", "blank_copy", "plain_copy"}
    return config.model.layout == "text" and not copies & set(stage.objectives)


def recall_request(
    name: str,
    labels: Int[Array, "B X L"],
    place: Int[np.ndarray | Array, "*B X"],
    entries: int,
    ids: SpecialIds,
) -> Request:
    """Ask for chunks, each of which reads all entries.

    Args:
      name: `recall` or `blank_recall`.
      labels: the chunks.
      place: the entry of each.
      entries: memories of the text, from its first chunk on.
      ids: reserved ids.
    """
    shown = jnp.full_like(labels, ids.blank) if name == "blank_recall" else labels
    asked = labels.shape[1]
    return Request(
        shift_right(shown, ids.delimiter, ids.pad),
        labels,
        token_weight(labels, ids),
        written=np.arange(entries),
        visible=np.full(asked, entries),
        written_at=np.arange(entries),
        place=place,
        task=np.full(asked, RECALL),
    )


def _request(name: str, asking: Asking) -> Request:
    labels = asking.chunks[:, :-1]
    entries = labels.shape[1]
    request = recall_request(name, labels, np.arange(entries), entries, asking.ids)
    if asking.key is not None:
        # Uniform from the chunk's own entry to the last.
        share = jax.random.uniform(asking.key_of(name, "visible"), labels.shape[:2])
        after = jnp.arange(1, entries + 1)
        visible = after + jnp.floor(share * (entries + 1 - after)).astype(jnp.int32)
        request = dataclasses.replace(request, visible=jnp.minimum(visible, entries))
    return draw_chunks(asking, name, request)


def _check(config: Config, stage: Stage, key: str) -> None:
    ConfigError.require(
        config.model.layout == "text",
        f"config.model.layout={config.model.layout!r}, expected 'text' where {key}.objectives has"
        " recall, which finds chunks by their places in the text",
    )
    ConfigError.require(
        config.chunks > 1,
        f"config.data.sequence_length={config.data.sequence_length} is a single chunk, expected two"
        f" or more where {key}.objectives has recall",
    )


OBJECTIVES = tuple(
    Objective(name, needs="reads_memories", request=functools.partial(_request, name), check=_check)
    for name in RECALLS
)
