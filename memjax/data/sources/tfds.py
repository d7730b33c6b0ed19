"""Data sets that TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow and without the code that made them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from memjax.data.sources.base import CorpusError, Document
from memjax.data.sources.documents import NumberedSource, text_of

PREFIX = "tfds:"
OPTIONS = ("split", "data_dir")


class TfdsSource(NumberedSource):
    """One split of a prepared data set.

    A document's id is `tfds:NAME/CONFIG/VERSION#NUMBER`, with its number in the split (of a part of a split: in that part).
    """

    def __init__(self, corpus: str, data_set: str, options: dict[str, str], text_field: str, skip_damaged: bool):
        """Opens `data_set`.

        Args:
          corpus: as the config has it.
          data_set: `NAME[/CONFIG][:VERSION]` below the data folder, or the folder of one version.
          options: `split`, also a part of one such as `train[:1000]` (default: train); `data_dir` (default: the environment's
            TFDS_DATA_DIR, else ~/tensorflow_datasets).
          text_field: the feature with the text.
          skip_damaged: as for `open_source`.

        Raises:
          CorpusError: it is not prepared, not as ArrayRecord, or has no such split or feature.
        """
        super().__init__(corpus, skip_damaged)
        self._field = text_field
        folder = os.path.expanduser(options.get("data_dir") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
        split = options.get("split", "train")
        builder = _builder(corpus, data_set, folder)
        info = builder.info
        if "array_record" not in {form.value for form in info.available_file_formats()}:
            raise CorpusError(
                f"{corpus}: is prepared in {builder.data_dir} as {info.file_format.value}, not as array_record, which alone is read here"
                f" in any order; `{_command(data_set, 'ANOTHER_FOLDER')}` prepares it so; then set TFDS_DATA_DIR=ANOTHER_FOLDER"
            )
        if text_field not in info.features:
            raise CorpusError(
                f"{corpus}: has no feature {text_field!r}, only {', '.join(sorted(info.features))}; set config.data.text_field to one of them"
            )
        if not _is_text(info.features[text_field]):
            raise CorpusError(
                f"{corpus}: feature {text_field!r} is {info.features[text_field]}, not text; set config.data.text_field to a feature with"
                " text"
            )
        try:
            self._records = builder.as_data_source(split=split, file_format="array_record")
        except ValueError as error:
            raise CorpusError(f"{corpus}: {str(error).splitlines()[0]}") from error
        self._name = info.full_name
        splits = info.splits.values()
        mean = sum(each.num_bytes for each in splits) / max(1, sum(each.num_examples for each in splits))
        self._bytes = round(mean * len(self._records))
        files = [(file, file.stat()) for each in splits for file in map(type(builder.data_path), each.filepaths)]
        self._stamp = [[corpus, self._name, split], *([str(file), state.length, state.mtime] for file, state in files)]

    def __len__(self) -> int:
        return len(self._records)

    def values(self, start: int, stop: int) -> Iterator[Any]:
        """The feature with the text: bytes."""
        for number in range(start, stop):
            try:
                yield self._records[number][self._field]
            except (RuntimeError, ValueError) as error:
                raise CorpusError(
                    f"{PREFIX}{self._name}#{number}: the file is absent, truncated or damaged ({str(error).splitlines()[0]}); prepare"
                    " the data set again"
                ) from error

    def document(self, number: int, value: Any) -> Document:
        """The document of an example."""
        where = f"{PREFIX}{self._name}#{number}"
        return Document(where, text_of(value, where, self._field))

    def text_bytes(self) -> int:
        """By the mean over all splits, other features included."""
        return self._bytes

    def stamp(self) -> list[list[Any]]:
        """Version and split, and the name, bytes and time of each file."""
        return self._stamp


def _builder(corpus: str, data_set: str, folder: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        if os.path.exists(os.path.join(data_set, "dataset_info.json")):
            return tfds.builder_from_directory(data_set)
        return read_only_builder.builder_from_files(data_set, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, AssertionError, OSError, ValueError) as error:
        raise CorpusError(
            f"{corpus}: is not prepared in {folder}; `{_command(data_set, folder)}` prepares it; where it lies in another folder, set"
            " TFDS_DATA_DIR to that"
        ) from error


def _is_text(feature: Any) -> bool:
    """Whether a feature is one string."""
    try:
        return feature.shape == () and np.dtype(feature.np_dtype).kind in "OSU"
    except TypeError:  # Features of several parts have shapes and types of several parts.
        return False


def _command(data_set: str, folder: str) -> str:
    return f"tfds build {data_set} --file_format=array_record --data_dir={folder}"
