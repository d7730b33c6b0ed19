"""Recall out of distribution: held-out text, another corpus, and random tokens.

An encoder that packs token by token would keep random tokens as well as text. Random tokens are
their own labels; the published experiment scored them against the text that they had replaced.
"""

from collections.abc import Mapping

import numpy as np

from memjax.evaluation.instruments.information import Held, held, token_scores
from memjax.inference.codec import MemoryCodec, Params
from memjax.inference.texts import TextsError, check_texts


def out_of_distribution(
    system: MemoryCodec,
    params: Params,
    texts: Mapping[str, np.ndarray],
    batch: int = 32,
) -> dict[str, Held]:
    """Score texts of several kinds given their own memories, each on its own tokens.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: int32 [N, T] by name: held-out text, another corpus, `texts.random`.
      batch: texts per batch.

    Raises:
      TextsError: there are no texts, of one kind or at all, or they have another length.
    """
    TextsError.require(texts, "texts: none, expected at least one kind of texts to compare")
    for name, some in texts.items():
        try:
            check_texts(system, some)
        except TextsError as error:
            raise TextsError(f"{name}: {error}") from None
    return {
        name: held(token_scores(system, params, some, batch).of_texts(), system.vocabulary)
        for name, some in texts.items()
    }
