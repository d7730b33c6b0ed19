"""Rows of tokens that TensorFlow Datasets prepared (memjax/data/tfds_text.py).

They are read like other rows, without TensorFlow.

N: tokens per row.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.config import Data
from memjax.data.records import Records
from memjax.data.rows import Rows, RowsError
from memjax.data.sources.opening import parse_options
from memjax.data.sources.tfds import TfdsSource, open_builder
from memjax.data.tokenizers import load_tokenizer
from memjax.data.tokenizers.base import Tokenizer
from memjax.errors import few
from memjax.files import read_json

_SAMPLE = 1024
"""Rows that are counted, at most."""
_FEATURE = "tokens"
_REMEDY = "Prepare the data set again"
_SHAPE = dict.fromkeys(("fingerprint", "rows", "padding"), str)
"""The shape of its metadata."""


class TfdsRows(Rows):
    """The rows of one split of a prepared data set."""

    REMEDY = _REMEDY

    def __init__(self, builder: Any, split: str, metadata: dict[str, Any]):
        """Use `open_tfds_rows`, which checks the split of the builder and its metadata."""
        stored = builder.info.splits[split]
        self._features = builder.info.features
        self.folder, self.split = Path(builder.data_dir), split
        self.row_tokens = int(self._features[_FEATURE].shape[0])
        self.source = Records(stored.filepaths, stored.shard_lengths)
        self.info = {
            "row_tokens": self.row_tokens,
            "rows": stored.num_examples,
            "tokens": stored.num_examples * self.row_tokens,
            "padding": 0,
            "mode": metadata["rows"],
            "side": metadata["padding"],
            "fingerprint": metadata["fingerprint"],
            # The same text and recipe give the same bytes, so no file is read for its checksum.
            "files": {
                Path(file).name: {
                    "rows": rows,
                    "sha256": _digest([builder.info.full_name, metadata, split, number, rows]),
                }
                for number, (file, rows) in enumerate(
                    zip(stored.filepaths, stored.shard_lengths, strict=True)
                )
            },
        }

    def count(self, tokenizer: Tokenizer) -> float:
        """Set the tokens and the padding in `info`, and return the bytes per token.

        They are of all rows up to _SAMPLE, and else estimated from as many: TFDS stores no counts.
        """
        sample = self.read(range(min(len(self), _SAMPLE)))
        real, positions = int((sample != tokenizer.pad_id).sum()), len(self) * self.row_tokens
        tokens = round(positions * real / max(sample.size, 1))
        self.info |= {"tokens": tokens, "padding": positions - tokens}
        return float(tokenizer.byte_lengths[sample].sum()) / max(real, 1)

    def decoded(self, records: Sequence[bytes]) -> np.ndarray:
        """Return stored rows as int32 [records, N]."""
        parse = self._features.deserialize_example_np
        return np.stack([parse(record)[_FEATURE] for record in records]).astype(np.int32)


def holds_rows(corpus: str) -> bool:
    """Return whether a corpus of the config is a prepared data set of rows of tokens."""
    return (
        corpus.startswith(TfdsSource.PREFIX)
        and _open(corpus, os.environ.get("TFDS_DATA_DIR", "")) is not None
    )


def open_tfds_rows(corpus: str, split: str, fingerprint: str = "", row_tokens: int = 0) -> TfdsRows:
    """Open the rows of a split.

    Args:
      corpus: `tfds:NAME/CONFIG`, with options after a question mark: `data_dir=FOLDER` (default:
        TFDS_DATA_DIR of the environment, or else ~/tensorflow_datasets).
      split: `train` or `validation`.
      fingerprint: of the tokenizer that must have made the rows; empty for any.
      row_tokens: N that the rows must have; 0 for any.

    Raises:
      RowsError: there is no such data set, or its rows are of another tokenizer or length.
    """
    builder = _open(corpus, os.environ.get("TFDS_DATA_DIR", ""))
    RowsError.require(
        builder is not None,
        f"config.data.corpus={corpus!r}: no prepared data set with the feature {_FEATURE!r}."
        f" {_REMEDY}",
    )
    where = Path(builder.data_dir)
    metadata = read_json(where / "metadata.json", RowsError, _SHAPE, _REMEDY)
    made_by = metadata["fingerprint"]
    RowsError.require(
        fingerprint in ("", made_by),
        f"{where}: tokenizer {made_by}, expected the one in use, {fingerprint}. {_REMEDY}",
    )
    RowsError.require(
        split in builder.info.splits,
        f"{where}: no split {split!r}, only {few(builder.info.splits)}. {_REMEDY}",
    )
    rows = TfdsRows(builder, split, metadata)
    RowsError.require(
        row_tokens in (0, rows.row_tokens),
        f"{where}: rows of {rows.row_tokens} tokens, expected config.data.sequence_length="
        f"{row_tokens}. Set it to {rows.row_tokens}",
    )
    return rows


def open_both(data: Data, folder: Path) -> tuple[Tokenizer, TfdsRows, TfdsRows, dict[str, Any]]:
    """Open the data set that `data.corpus` names.

    Args:
      data: settings; `tokenizer` is the vocabulary that the data set was made with.
      folder: the data folder of the run, which gets a copy of the vocabulary.

    Returns:
      The tokenizer, the training rows, the held-out rows, and `info` of `Prepared`.

    Raises:
      RowsError: `data.tokenizer` is empty, rows are padded on another side than those of
        `data.packing`, or as in `open_tfds_rows`.
      TokenizerError: the vocabulary is unreadable.
    """
    RowsError.require(
        data.tokenizer,
        f"config.data.corpus={data.corpus!r}: rows of tokens without config.data.tokenizer. Set"
        " it to the vocabulary that the rows were made with",
    )
    tokenizer = load_tokenizer(data.tokenizer)
    train, validation = (
        open_tfds_rows(data.corpus, split, tokenizer.fingerprint, data.sequence_length)
        for split in ("train", "validation")
    )
    bytes_per_token, _ = (rows.count(tokenizer) for rows in (train, validation))
    train.check_side(data.packing)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    info = {
        "corpus": data.corpus,
        "tokenizer": tokenizer.fingerprint,
        "vocabulary": tokenizer.vocabulary,
        "row_tokens": data.sequence_length,
        "train": train.info,
        "validation": validation.info,
        "bytes_per_token": bytes_per_token,
    }
    return tokenizer, train, validation, info


@functools.lru_cache(maxsize=8)
def _open(corpus: str, default: str) -> Any:
    """Return the builder of a prepared data set that has the feature, or None."""
    import tensorflow_datasets as tfds

    name, options = parse_options(corpus, TfdsSource.PREFIX, TfdsSource.OPTIONS)
    builder = open_builder(name, options.get("data_dir", default))
    features: Any = builder.info.features if builder is not None else None
    rows: Any = (
        features[_FEATURE]
        if isinstance(features, tfds.features.FeaturesDict) and _FEATURE in features
        else None
    )
    fits = (
        rows is not None
        and len(rows.shape) == 1
        and bool(rows.shape[0])
        and np.issubdtype(rows.np_dtype, np.integer)
    )
    return builder if fits else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
