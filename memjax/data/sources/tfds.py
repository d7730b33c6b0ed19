"""Data sets that TensorFlow Datasets prepared as ArrayRecord.

Reading them needs neither TensorFlow nor the code that made them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from memjax.data.sources.base import Block, CorpusError, Document, Source
from memjax.data.sources.documents import ranges, text_of
from memjax.errors import few


class TfdsSource(Source):
    """One split, or a part of one, of a prepared data set.

    The id of a document is `tfds:NAME/CONFIG/VERSION#NUMBER`, with its number in that split or
    part.
    """

    PREFIX = "tfds:"
    OPTIONS = ("split", "data_dir")

    def __init__(
        self,
        corpus: str,
        data_set: str,
        options: dict[str, str],
        text_field: str,
        skip_damaged: bool,
    ):
        """Open `data_set`.

        Args:
          corpus: the corpus as the config names it.
          data_set: `NAME[/CONFIG][:VERSION]` in the data folder, or the folder of one version.
          options: `split`, or a part such as `train[:1000]` (default: train); `data_dir`
            (default: TFDS_DATA_DIR of the environment, or else ~/tensorflow_datasets).
          text_field: the feature that holds the text.
          skip_damaged: as for `open_source`.

        Raises:
          CorpusError: the data set is not prepared as ArrayRecord, or has no such split or
            feature.
        """
        super().__init__(corpus, skip_damaged)
        self._field = text_field
        split = options.get("split", "train")
        builder = open_builder(data_set, options.get("data_dir", ""))
        if builder is None:
            folder = data_folder(options.get("data_dir", ""))
            raise CorpusError(
                f"{corpus}: not prepared in {folder}. Run `{_command(data_set, folder)}`, or set"
                " TFDS_DATA_DIR to the folder that holds it"
            )
        info = builder.info
        CorpusError.require(
            "array_record" in {form.value for form in info.available_file_formats()},
            f"{corpus}: prepared in {builder.data_dir} as {info.file_format.value}, expected"
            f" array_record. Run `{_command(data_set, 'ANOTHER_FOLDER')}`, and set"
            " TFDS_DATA_DIR=ANOTHER_FOLDER",
        )
        CorpusError.require(
            text_field in info.features,
            f"{corpus}: no feature {text_field!r}, only {few(sorted(info.features))}. Set"
            " config.data.text_field to one of them",
        )
        CorpusError.require(
            _is_text(info.features[text_field]),
            f"{corpus}: feature {text_field!r} is {info.features[text_field]}, expected text."
            " Set config.data.text_field to a feature of text",
        )
        try:
            self._records = builder.as_data_source(split=split, file_format="array_record")
        except ValueError as error:
            raise CorpusError(f"{corpus}: {str(error).splitlines()[0]}") from error
        self._name = info.full_name
        splits = info.splits.values()
        mean = sum(each.num_bytes for each in splits) / max(
            1, sum(each.num_examples for each in splits)
        )
        # An estimate: the mean over all splits, other features included.
        self._bytes = round(mean * len(self._records))
        files = [
            (file, file.stat())
            for each in splits
            for file in map(type(builder.data_path), each.filepaths)
        ]
        self.signature = [
            [corpus, self._name, split],
            *([str(file), state.length, state.mtime] for file, state in files),
        ]

    def blocks(self, size: int) -> list[Block]:
        """Return equal ranges of documents, of about `size` bytes by the mean of all."""
        return [Block(0, *part) for part in ranges(len(self._records), self._bytes, size)]

    def read(self, block: Block) -> Iterator[Document]:
        """Yield the documents of a block."""
        yield from self.visible(range(block.start, block.stop), self._document)

    def _document(self, number: int) -> Document:
        where = f"{self.PREFIX}{self._name}#{number}"
        try:
            value = self._records[number][self._field]
        except (RuntimeError, ValueError) as error:
            raise CorpusError(
                f"{where}: the file is absent, truncated or damaged"
                f" ({str(error).splitlines()[0]}). Prepare the data set again"
            ) from error
        return Document(where, text_of(value, where, self._field))


def open_builder(data_set: str, folder: str) -> Any:
    """Return the read-only builder of a prepared data set, or None if there is none.

    Args:
      data_set: `NAME[/CONFIG][:VERSION]` in the data folder, or the folder of one version.
      folder: the data folder; empty is TFDS_DATA_DIR, or else ~/tensorflow_datasets.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        if os.path.exists(os.path.join(data_set, "dataset_info.json")):
            return tfds.builder_from_directory(data_set)
        return read_only_builder.builder_from_files(data_set, data_dir=data_folder(folder))
    except (tfds.core.DatasetNotFoundError, AssertionError, OSError, ValueError):
        return None


def data_folder(folder: str = "") -> str:
    """Return the folder of prepared data sets: `folder`, TFDS_DATA_DIR or the default of TFDS."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(folder or default)


def _is_text(feature: Any) -> bool:
    """Return whether a feature is one string."""
    try:
        return feature.shape == () and np.dtype(feature.np_dtype).kind in "OSU"
    except TypeError:  # A composite feature has composite shapes and types.
        return False


def _command(data_set: str, folder: str) -> str:
    return f"tfds build {data_set} --file_format=array_record --data_dir={folder}"
