"""`memjax_text`: rows of tokens as a TensorFlow Datasets data set, for preparation by a cluster.

    from memjax.data.tfds_text import MemjaxText, TextConfig

    config = TextConfig(
        name="web_1024", corpus="/data/web", tokenizer="/data/tokenizer.model", row_tokens=1024
    )
    builder = MemjaxText(config=config, data_dir="/data/tfds", file_format="array_record")
    builder.download_and_prepare()

This prepares one block after another. Given a runner or options of Apache Beam (extra `beam`), its
workers share the blocks (docs/data.md has the commands for clusters):

    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_options=PipelineOptions([...]))
    )

All machines must see the corpus and `data_dir` under the same paths. A block becomes one file per
split, in the order of the blocks, so every runner writes the same bytes. The blocks are those of
`memjax prepare`, which makes the same rows. Finished blocks stay in a hidden folder beside the data
set until all are done: after an error or a kill, the same call resumes.
`memjax.data.tfds_rows` reads the data set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder, example_serializer, file_adapters

from memjax.data.beam import run_blocks_by_beam
from memjax.data.blocks import SPLITS, Work, digest, done_or_do, read_record, split_blocks
from memjax.data.finalize import text_stats
from memjax.data.packing import SHORT_VOCABULARY, Layout
from memjax.data.rows import ShardFormat
from memjax.data.sources import open_source
from memjax.data.sources.base import Block, CorpusError, Source
from memjax.data.tokenizers import load_tokenizer
from memjax.data.tokenizers.base import Tokenizer
from memjax.files import local, locked, remove_temporary

_LOG = logging.getLogger("memjax")
NAME = "memjax_text"


@dataclasses.dataclass(unsafe_hash=True)
class Recipe:
    """All that rows depend on. Fields named as in `memjax.config.Data` mean the same."""

    corpus: str = ""
    tokenizer: str = ""
    """The file of the vocabulary, or its folder."""
    row_tokens: int = 1024
    vocabulary: int = 0
    """The size that the vocabulary must have; 0 for any."""
    validation_share: float = 0.01
    rows: str = "packed"
    padding: str = "right"
    text_field: str = "text"
    skip_damaged: bool = False
    block_bytes: int = 0
    """Bytes of text per block, about: the unit that a worker prepares. The last tokens of a block,
    fewer than a row, are dropped. 0 gives the blocks of `memjax prepare`, at most about 256.
    """


@dataclasses.dataclass
class TextConfig(Recipe, tfds.core.BuilderConfig):
    """A recipe under a name."""

    name: str = ""

    def recipe(self) -> Recipe:
        """Return the settings that the rows depend on."""
        return Recipe(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        )


class MemjaxText(dataset_builder.FileReaderBuilder):
    """Rows of tokens, with their recipe and what was skipped in `metadata.json`."""

    name = NAME
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "One shard per block and split, in order."}  # noqa: RUF012
    builder_config_cls = TextConfig
    # Nothing is downloaded, and TFDS 4.9 lacks a dependency to look for checksums
    # (importlib_resources).
    url_infos = None
    # TFDS accepts a new config only where there is a built-in one; this one builds nothing.
    BUILDER_CONFIGS = [TextConfig(name="none")]  # noqa: RUF012

    def _recipe(self) -> Recipe:
        config: Any = self.builder_config
        return config.recipe()

    def _info(self) -> tfds.core.DatasetInfo:
        recipe = self._recipe()
        if not recipe.corpus:
            return tfds.core.DatasetInfo(
                builder=self, features=_features(recipe.row_tokens, SHORT_VOCABULARY)
            )
        tokenizer = _tokenizer(recipe)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rows of tokens of one corpus, made by memjax.",
            features=_features(recipe.row_tokens, tokenizer.vocabulary),
            metadata=tfds.core.MetadataDict(
                dataclasses.asdict(recipe)
                | {
                    "fingerprint": tokenizer.fingerprint,
                    "vocabulary": tokenizer.vocabulary,
                    "eos_id": tokenizer.eos_id,
                }
            ),
        )

    def _download_and_prepare(
        self, dl_manager: Any, download_config: tfds.download.DownloadConfig | None = None
    ) -> None:
        recipe, given = self._recipe(), download_config
        CorpusError.require(
            recipe.corpus,
            f"{NAME}: this config has no corpus. Give one with corpus and tokenizer"
            " (memjax/data/tfds_text.py)",
        )
        CorpusError.require(
            self.info.file_format is file_adapters.FileFormat.ARRAY_RECORD,
            f"{NAME}: file_format={self.info.file_format.value}, expected array_record. Set it",
        )
        folder = local(self.data_dir)  # The temporary one of TFDS, which an error removes.
        made_by = digest([dataclasses.asdict(recipe), _tokenizer(recipe).fingerprint])
        with _blocks_folder(folder.with_name(f".{self.version}-{made_by[:16]}.blocks")) as blocks:
            work = work_of(recipe, blocks)
            if given and (given.beam_runner or given.beam_options is not None):
                run_blocks_by_beam(work, given.beam_runner, given.beam_options)
            else:
                for number in range(len(work.blocks)):
                    done_or_do(work, number, threads=os.cpu_count() or 1)
            records = [read_record(work, number) for number in range(len(work.blocks))]
            _check(recipe, work, records)
            for record in records:
                for name in (name for split in SPLITS for name in record[split]["files"]):
                    (blocks / name).replace(folder / name)
            shutil.rmtree(blocks)
        self.info.set_splits(tfds.core.SplitDict([self._split(s, records) for s in SPLITS]))
        found = text_stats([records])
        self.info.metadata.update(
            {key: found[key] for key in ("documents", "skipped", "damaged")},
            text=work.signature,
        )
        if found["skipped"]:
            _LOG.warning(
                "%s: skipped %d damaged documents; metadata.json names the first, %s",
                recipe.corpus,
                sum(found["skipped"].values()),
                found["damaged"][0],
            )

    def _split(self, split: str, records: list[dict[str, Any]]) -> tfds.core.SplitInfo:
        files = [file for record in records for file in record[split]["files"].values()]
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[file["rows"] for file in files],
            num_bytes=sum(file["bytes"] for file in files),
            filename_template=self._get_filename_template(split_name=split),
        )


def work_of(recipe: Recipe, folder: Path) -> Work:
    """Return the work of all blocks of a corpus, and write the vocabulary into `folder`.

    Raises:
      CorpusError: there is no such corpus.
      TokenizerError: the vocabulary is unreadable.
    """
    source, tokenizer = _open(recipe), _tokenizer(recipe)
    tokenizer.save(folder)
    return Work(
        source,
        folder,
        folder,
        Layout(recipe.row_tokens, recipe.rows, recipe.padding),
        recipe.validation_share,
        blocks_of(recipe, source),
        digest(source.mtime_signature()),
        tokenizer.fingerprint,
        sketches=False,
        form=ShardFormat(
            _shard_name,
            functools.partial(_record, recipe.row_tokens, tokenizer.vocabulary),
            empty=True,
        ),
    )


def blocks_of(recipe: Recipe, source: Source) -> tuple[Block, ...]:
    """Return a corpus in blocks, the same on every machine that sees the same files."""
    size = recipe.block_bytes
    return tuple(source.blocks(size)) if size else split_blocks(source)


def _check(recipe: Recipe, work: Work, records: list[dict[str, Any]]) -> None:
    CorpusError.require(
        digest(_open(recipe).mtime_signature()) == work.signature,
        f"{recipe.corpus}: changed during reading. Run again when it is complete",
    )
    for split in SPLITS:
        CorpusError.require(
            any(record[split]["rows"] for record in records),
            f"{recipe.corpus}: no {split} row of {recipe.row_tokens} tokens, expected one or more."
            f" Give more text, or change row_tokens or validation_share"
            f" (now {recipe.validation_share})",
        )


@contextlib.contextmanager
def _blocks_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that one build at a time has, and that stays after an error."""

    def busy() -> None:
        _LOG.warning("%s: waiting for another build", path)

    with locked(path.with_suffix(".lock"), busy):
        path.mkdir(exist_ok=True)
        remove_temporary(path)
        yield path


def _features(row_tokens: int, vocabulary: int) -> tfds.features.FeaturesDict:
    # Bytes, as a list of numbers would be larger and slow to read.
    dtype = np.uint16 if vocabulary <= SHORT_VOCABULARY else np.int32
    tokens = tfds.features.Tensor(
        shape=(row_tokens,), dtype=dtype, encoding=tfds.features.Encoding.BYTES
    )
    return tfds.features.FeaturesDict({"tokens": tokens})


def _shard_name(split: str, number: int, of: int) -> str:
    template = tfds.core.ShardedFileTemplate(
        data_dir="", dataset_name=NAME, split=split, filetype_suffix="array_record"
    )
    return template.relative_filepath(shard_index=number, num_shards=of)


def _record(row_tokens: int, vocabulary: int, row: np.ndarray) -> bytes:
    """Return a row [N] as the example that TFDS stores."""
    features, serializer = _serializer(row_tokens, vocabulary)
    dtype = features["tokens"].np_dtype
    return serializer.serialize_example(features.encode_example({"tokens": row.astype(dtype)}))


@functools.lru_cache(maxsize=4)
def _serializer(row_tokens: int, vocabulary: int) -> tuple[Any, Any]:
    features = _features(row_tokens, vocabulary)
    return features, example_serializer.ExampleSerializer(features.get_serialized_info())


def _open(recipe: Recipe) -> Source:
    return open_source(recipe.corpus, recipe.text_field, recipe.skip_damaged)


@functools.lru_cache(maxsize=4)
def _tokenizer(recipe: Recipe) -> Tokenizer:
    tokenizer = load_tokenizer(recipe.tokenizer)
    CorpusError.require(
        recipe.vocabulary in (0, tokenizer.vocabulary),
        f"{recipe.tokenizer}: {tokenizer.vocabulary} entries, expected"
        f" vocabulary={recipe.vocabulary}. Change vocabulary or the tokenizer",
    )
    return tokenizer
