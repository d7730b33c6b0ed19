"""Rows of tokens that TensorFlow Datasets prepared (memjax/data/tfds_text.py), read as other rows are, and without TensorFlow.

N: tokens in a row.
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
from memjax.data.tokenizer import Tokenizer

PREFIX = "tfds:"
_SAMPLE = 1024
"""Rows that bytes a token are counted in: what TFDS keeps of a data set does not say them."""
_FEATURE = "tokens"
_REMEDY = "prepare the data set again"


class TfdsRows(Rows):
    """The rows of one split of a prepared data set, in random access; safe to read from many threads."""

    def __init__(self, builder: Any, split: str, metadata: dict[str, Any]):
        """Of a builder that knows the split, and its metadata; use `open_tfds_rows`, which checks them."""
        about = builder.info.splits[split]
        self._features = builder.info.features
        self.folder = Path(builder.data_dir)
        self.row_tokens = int(self._features[_FEATURE].shape[0])
        self._source = Records(about.filepaths, about.shard_lengths)
        made = {key: metadata[key] for key in ("fingerprint", "rows", "padding", "text")}
        self.info = {
            "row_tokens": self.row_tokens,
            "rows": about.num_examples,
            "tokens": about.num_examples * self.row_tokens,
            "mode": made["rows"],
            "side": made["padding"],
            "fingerprint": made["fingerprint"],
            # What was prepared of the same text in the same way is the same to the byte; the files themselves are not read for it.
            "files": {
                Path(file).name: {"rows": rows, "sha256": _sha256([builder.info.full_name, metadata, split, number, rows])}
                for number, (file, rows) in enumerate(zip(about.filepaths, about.shard_lengths, strict=True))
            },
        }

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The rows of those numbers as int32 [indices, N], in one call.

        Raises:
          RowsError: some cannot be read; the message names the file and the record.
          IndexError: there is no such row.
        """
        try:
            parse = self._features.deserialize_example_np
            return np.stack([parse(record)[_FEATURE] for record in self._source.read(indices)]).astype(np.int32)
        except ValueError as error:
            raise RowsError(f"{self.folder}: rows cannot be read ({error}); {_REMEDY}") from error

    def verify(self) -> None:
        """Reads all rows; each record has a checksum of its own.

        Raises:
          RowsError: one is damaged.
        """
        for start in range(0, len(self), 1024):
            self.read(range(start, min(start + 1024, len(self))))


def holds_rows(corpus: str) -> bool:
    """Whether a corpus, as the config has it, is a prepared data set of rows of tokens; one of text is read otherwise."""
    return corpus.startswith(PREFIX) and _open(corpus, os.environ.get("TFDS_DATA_DIR", "")) is not None


def open_tfds_rows(corpus: str, split: str, fingerprint: str = "", row_tokens: int = 0) -> TfdsRows:
    """Opens the rows of `split`.

    Args:
      corpus: `tfds:NAME/CONFIG`, with options after a question mark: `data_dir=FOLDER` (default: the environment's TFDS_DATA_DIR, else
        ~/tensorflow_datasets).
      split: `train` or `validation`.
      fingerprint: of the tokenizer that must have made them, if one must.
      row_tokens: N that they must have, if they must.

    Raises:
      RowsError: there is no such data set, it holds no rows, or they are of another tokenizer or length.
    """
    builder = _open(corpus, os.environ.get("TFDS_DATA_DIR", ""))
    if builder is None:
        raise RowsError(f"config.data.corpus={corpus!r}: no prepared data set with the feature {_FEATURE!r}; {_REMEDY}")
    where = Path(builder.data_dir)
    try:
        metadata = json.loads((where / "metadata.json").read_text())
        made_by = metadata["fingerprint"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RowsError(
            f"{where / 'metadata.json'}: does not say what made the rows ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    if fingerprint and made_by != fingerprint:
        raise RowsError(f"{where}: made by tokenizer {made_by}, while the one in use is {fingerprint}; {_REMEDY}")
    if split not in builder.info.splits:
        raise RowsError(f"{where}: has no split {split!r}, only {', '.join(builder.info.splits)}; {_REMEDY}")
    rows = TfdsRows(builder, split, metadata)
    if row_tokens and rows.row_tokens != row_tokens:
        raise RowsError(
            f"{where}: rows of {rows.row_tokens} tokens, while config.data.row_tokens is {row_tokens}; set it to that"
        )
    return rows


def open_both(data: Data, folder: Path) -> tuple[Tokenizer, TfdsRows, TfdsRows, dict[str, Any]]:
    """(tokenizer, training rows, held-out rows, what `Prepared.info` says) of the data set that `data.corpus` names.

    Args:
      data: its `tokenizer` is the vocabulary that the data set was made with.
      folder: of the run's data, which keeps a copy of the vocabulary.

    Raises:
      RowsError: `data.tokenizer` is empty, or as `open_tfds_rows`.
      TokenizerError: the vocabulary cannot be read.
    """
    if not data.tokenizer:
        raise RowsError(
            f"config.data.corpus={data.corpus!r} holds rows of tokens; set config.data.tokenizer to the vocabulary that they were made with"
        )
    tokenizer = Tokenizer.load(data.tokenizer)
    train, validation = (
        open_tfds_rows(data.corpus, split, tokenizer.fingerprint, data.row_tokens) for split in ("train", "validation")
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    sample = train.read(range(min(len(train), _SAMPLE)))
    bytes_per_token = float(tokenizer.byte_lengths[sample].sum()) / max(int((sample != tokenizer.pad_id).sum()), 1)
    info = {"corpus": data.corpus, "tokenizer": tokenizer.fingerprint, "vocabulary": tokenizer.vocabulary}
    info |= {"row_tokens": data.row_tokens, "train": train.info, "validation": validation.info}
    return tokenizer, train, validation, info | {"bytes_per_token": bytes_per_token}


@functools.lru_cache(maxsize=8)
def _open(corpus: str, folder: str) -> Any:
    """The builder of a prepared data set that has the feature; None if there is none."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    name, _, options = corpus.removeprefix(PREFIX).partition("?")
    given = [option.removeprefix("data_dir=") for option in options.split("&") if option.startswith("data_dir=")]
    folder = os.path.expanduser(next(iter(given), folder) or "~/tensorflow_datasets")
    try:
        if os.path.exists(os.path.join(name, "dataset_info.json")):
            builder = tfds.builder_from_directory(name)
        else:
            builder = read_only_builder.builder_from_files(name, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, AssertionError, OSError, ValueError):
        return None
    features: Any = builder.info.features
    rows: Any = features[_FEATURE] if isinstance(features, tfds.features.FeaturesDict) and _FEATURE in features else None
    fits = rows is not None and len(rows.shape) == 1 and bool(rows.shape[0]) and np.issubdtype(rows.np_dtype, np.integer)
    return builder if fits else None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
