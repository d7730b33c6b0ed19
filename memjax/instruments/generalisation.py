"""Whether a memory is a code of tokens or of this text: the same model on text it was trained for, on other text, and on random tokens.

A code that packed token by token would hold random tokens as well as any. Random tokens are their own labels: the published experiment
scored them against the text they had replaced.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from memjax.instruments.information import check_texts, information_of, token_scores
from memjax.instruments.system import Params, System
from memjax.instruments.texts import TextsError
from memjax.instruments.uncertainty import Estimate


@dataclasses.dataclass(frozen=True)
class Held:
    """What memories hold of texts of one kind; each text is scored on its own tokens."""

    nats: Estimate
    """A token."""
    accuracy: Estimate
    information: Estimate
    """I_e; below 0 is worse than random logits."""


def generalisation(
    system: System,
    params: Params,
    texts: Mapping[str, np.ndarray],
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Held]:
    """Scores texts of several kinds given their own memories.

    Args:
      system: what is measured.
      params: its parameters.
      texts: by name, int32 [N, T] each: held-out text, that of another corpus, `texts.random`.
      batch: texts at a time.
      advance: called when a batch is done.

    Raises:
      TextsError: there are none, of one kind or at all, or they are of another length.
    """
    if not texts:
        raise TextsError("there are no texts to compare; give some of at least one kind")
    for name, some in texts.items():
        try:
            check_texts(system, some)
        except TextsError as error:
            raise TextsError(f"{name}: {error}") from None
    found = {}
    for name, some in texts.items():
        scores = token_scores(system, params, some, batch, advance)
        nats = scores.mean_nats()
        found[name] = Held(nats, scores.accuracy(), information_of(nats, system.vocabulary))
    return found
