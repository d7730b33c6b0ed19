"""What instruments read: texts of T tokens, held-out, of another corpus, or random; and the batches they are read in.

Shapes: N token of a row, T token of a text, B text of a batch.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from memjax.data import RowsError, Tokenizer, open_rows, pack, read_corpus, spread
from memjax.instruments.errors import InstrumentError
from memjax.objectives import SpecialIds


class TextsError(InstrumentError):
    """There are no texts, or they are not for this model; the message names where they were looked for."""


def held_out(data: str | os.PathLike, length: int, limit: int, tokenizer: Tokenizer, split: str = "validation") -> np.ndarray:
    """Up to `limit` texts [*, T] of a split, spread evenly over its rows, which are cut into texts from their start on.

    Args:
      data: what `prepare` made.
      length: T.
      limit: texts, at most.
      tokenizer: the model's.
      split: `validation` or `train`.

    Raises:
      RowsError: there are no rows, or they are of another tokenizer.
      TextsError: the rows are shorter than a text.
    """
    data = Path(data)
    found = sorted((int(path.name.removeprefix("rows-")), path) for path in data.glob("rows-*") if path.is_dir())
    if not found:
        raise RowsError(f"{data}: there are no rows here; give the data folder of a workdir")
    fitting = [(row_tokens, path) for row_tokens, path in found if row_tokens >= length]
    if not fitting:
        raise TextsError(f"{data}: rows are of {found[-1][0]} tokens at most, and a text of this model has {length}")
    # As little as possible of a row is left over.
    row_tokens, path = min(fitting, key=lambda pair: (pair[0] % length, pair[0]))
    rows, pieces = open_rows(path, split, tokenizer.fingerprint), row_tokens // length
    chosen = spread(len(rows) * pieces, limit)
    if not chosen:
        raise TextsError(f"{path}: no {split} rows")
    return np.stack([rows[i // pieces][i % pieces * length :][:length].astype(np.int32) for i in chosen])


def of_corpus(corpus: str, length: int, limit: int, tokenizer: Tokenizer, text_field: str = "text") -> np.ndarray:
    """The first `limit` texts [*, T] of a corpus, in the words of `tokenizer`: documents joined and cut; no more of it is read.

    Raises:
      CorpusError: it cannot be read.
      TextsError: it is shorter than one text.
    """
    documents = (tokenizer.encode(document.text) for document in read_corpus(corpus, text_field))
    texts = list(itertools.islice(pack(documents, length, tokenizer.eos_id, tokenizer.vocabulary), limit))
    if not texts:
        raise TextsError(f"{corpus}: holds less than one text of {length} tokens")
    return np.stack(texts).astype(np.int32)


def random(count: int, length: int, vocabulary: int, ids: SpecialIds, seed: int = 0) -> np.ndarray:
    """`count` texts [count, T] of tokens drawn uniformly from those that stand for content: they are the labels too."""
    generator = np.random.default_rng(seed)
    return generator.integers(ids.first_content, ids.end_content(vocabulary), (count, length), dtype=np.int32)


def batches(texts: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`texts` [*, T] in batches of exactly `size`, or of all if there are fewer; the last is filled up with its own first text again.

    With `trimmed`, the surplus of results is cut off.
    """
    size = min(size, len(texts))
    for start in range(0, len(texts), size):
        batch = texts[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)]) if len(batch) < size else batch


def trimmed(parts: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Results of batches, [size, ...] each, as one array [count, ...]."""
    return np.concatenate([np.asarray(part) for part in parts])[:count]


def batch_count(texts: np.ndarray, size: int) -> int:
    """How many `batches` there are."""
    return math.ceil(len(texts) / min(size, len(texts)))
