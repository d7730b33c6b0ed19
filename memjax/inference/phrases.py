"""Search for a phrase in the text that a model gives back of memories.

Shapes: N chunk of a store, L token.
"""

from collections import defaultdict

import numpy as np
from jaxtyping import Int

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import StoreError
from memjax.data import Tokenizer

GRAM, SLACK = 4, 8
"""Characters of an n-gram, and by how many the distance of two may differ from the phrase's."""


def rank(
    tokenizer: Tokenizer, store: MemoryStore, tokens: Int[np.ndarray, "N L"], phrase: str, top: int
) -> list[tuple[int, float]]:
    """Return the chunks in which a phrase is most likely to begin, with its overlap there.

    An overlap is the share of the phrase's n-grams of characters that are found as far from its
    beginning as in the phrase, give or take a few characters. Case does not count.

    Args:
      tokenizer: of the tokens.
      store: the chunks, in order; a phrase does not span two documents.
      tokens: of each chunk.
      phrase: the phrase.
      top: chunks, at most; those without overlap are left out.

    Raises:
      StoreError: the phrase is empty.
    """
    phrase = _plain(phrase.strip())
    StoreError.require(phrase, "phrase: no text, expected some. Pass words of the text.")
    size = min(GRAM, len(phrase))
    places = defaultdict(list)
    for place in range(len(phrase) - size + 1):
        places[phrase[place : place + size]].append(place)
    score, documents = np.zeros(len(store)), store.spans[:, 0]
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    for start, rows in zip(starts, np.split(tokens, starts)[1:], strict=True):
        pieces = [_plain(tokenizer.decode(row, start=False)) for row in rows]
        text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
        # Each n-gram counts for where the phrase would begin; a few may be before the document.
        begins = np.zeros(max(len(text) + len(phrase), 2 * SLACK + 1))
        for at in range(len(text) - size + 1):
            for place in places.get(text[at : at + size], ()):
                begins[at - place + len(phrase)] += 1
        near = np.convolve(begins, np.ones(2 * SLACK + 1), "same") * (begins > 0)
        overlap = np.minimum(near[len(phrase) :][: len(text)] / (len(phrase) - size + 1), 1)
        chunk = np.searchsorted(ends, np.arange(len(text)), side="right")
        np.maximum.at(score, start + chunk, overlap)
    best = np.argsort(-score, kind="stable")[: max(0, top)]
    return [(int(chunk), float(score[chunk])) for chunk in best if score[chunk] > 0]


def _plain(text: str) -> str:
    return "".join(" " if c.isspace() else c for c in text.casefold())
