"""`memjax_text`: rows of tokens as a TensorFlow Datasets data set, for preparation by a cluster.

    from memjax.data.tfds_text import MemjaxText, TextConfig

    config = TextConfig(
        name="web_1024", corpus="/data/web", tokenizer="/data/tokenizer.model", row_tokens=1024
    )
    builder = MemjaxText(config=config, data_dir="/data/tfds", file_format="array_record")
    builder.download_and_prepare()

The command line of TensorFlow Datasets does the same, and needs TensorFlow:

    tfds build memjax_text --imports=memjax.data.tfds_text --data_dir=/data/tfds
      --file_format=array_record --config='{"name": "web_1024", "corpus": "/data/web",
      "tokenizer": "/data/tokenizer.model", "row_tokens": 1024}'

Where Apache Beam is installed, its runner distributes the blocks of the corpus
(`--beam_pipeline_options=runner=...`, or a `tfds.download.DownloadConfig(beam_runner=...,
beam_options=...)` for `download_and_prepare`). All workers must see the corpus and the tokenizer
under the same paths. A row depends on its block alone, and its place in the data set on the name of
the row, so every runner writes the same files. `memjax.data.tfds_rows` reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from memjax.data.blocks import BATCH_CHARACTERS, BLOCK_BYTES, SPLITS, digest, texts
from memjax.data.packing import SHORT_VOCABULARY, Layout, RowMaker, in_batches
from memjax.data.sources import open_source
from memjax.data.sources.base import Block, CorpusError, Source
from memjax.data.splits import is_validation
from memjax.data.tokenizers import load_tokenizer
from memjax.data.tokenizers.base import Tokenizer

Row = tuple[str, dict[str, np.ndarray]]
"""The name of a row, which fixes its place in the data set, and its features."""


@dataclasses.dataclass(unsafe_hash=True)
class Recipe:
    """All that rows depend on; picklable. Fields named as in `memjax.config.Data` mean the same."""

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
    block_bytes: int = BLOCK_BYTES
    """Bytes of text per block, about: the unit that a worker prepares. The last tokens of a block,
    fewer than a row, are dropped.
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


class MemjaxText(tfds.core.GeneratorBasedBuilder):
    """Rows of tokens, with their recipe in `metadata.json`."""

    name = "memjax_text"
    VERSION = tfds.core.Version("1.0.0")
    builder_config_cls = TextConfig
    # Nothing is downloaded, and TFDS 4.9 lacks a dependency to look for checksums
    # (importlib_resources).
    url_infos = None
    # TFDS accepts a new config only where there is a built-in one; this one builds nothing.
    BUILDER_CONFIGS = [TextConfig(name="none")]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        recipe = self.builder_config.recipe()
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
                    "text": digest(_source(recipe).mtime_signature()),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        recipe = self.builder_config.recipe()
        CorpusError.require(
            recipe.corpus,
            "memjax_text: this config has no corpus. Give one with corpus and tokenizer"
            " (memjax/data/tfds_text.py)",
        )
        return {split: self._generate_examples(recipe, split) for split in SPLITS}

    def _generate_examples(self, recipe: Recipe, split: str) -> Any:
        blocks = blocks_of(recipe)
        # Workers get the source as it was opened here.
        rows = functools.partial(rows_of_block, recipe, _source(recipe), split)
        try:
            beam: Any = importlib.import_module("apache_beam")
        except ImportError:
            return itertools.chain.from_iterable(map(rows, blocks))
        return beam.Create(blocks) | beam.Reshuffle() | beam.FlatMap(rows)


def blocks_of(recipe: Recipe) -> list[tuple[int, Block]]:
    """Return the corpus in numbered blocks, the same on every machine that sees the same files.

    Raises:
      CorpusError: there is no such corpus.
    """
    return list(enumerate(_source(recipe).blocks(recipe.block_bytes)))


def rows_of_block(
    recipe: Recipe, source: Source, split: str, block: tuple[int, Block]
) -> Iterator[Row]:
    """Yield the rows of one split from a numbered block: a function of the arguments alone.

    Raises:
      CorpusError: a document is damaged.
      TokenizerError: the vocabulary is unreadable.
    """
    tokenizer = _tokenizer(recipe)
    layout = Layout(recipe.row_tokens, recipe.rows, recipe.padding)
    maker = RowMaker(layout, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocabulary)
    dtype = _dtype(tokenizer.vocabulary)
    held_out = split == "validation"
    own = (
        text
        for text in texts(source, [block[1]])
        if is_validation(text, recipe.validation_share) == held_out
    )
    for batch in in_batches(own, BATCH_CHARACTERS):
        first = maker.rows
        for row, tokens in enumerate(maker.add(tokenizer.encode_batch(batch)), start=first):
            yield f"{block[0]:06d}-{row:09d}", {"tokens": tokens.astype(dtype)}


def _features(row_tokens: int, vocabulary: int) -> tfds.features.FeaturesDict:
    # Bytes, as a list of numbers would be larger and slow to read.
    tokens = tfds.features.Tensor(
        shape=(row_tokens,), dtype=_dtype(vocabulary), encoding=tfds.features.Encoding.BYTES
    )
    return tfds.features.FeaturesDict({"tokens": tokens})


def _dtype(vocabulary: int) -> Any:
    return np.uint16 if vocabulary <= SHORT_VOCABULARY else np.int32


# A worker opens each once, not for every block.


@functools.lru_cache(maxsize=4)
def _source(recipe: Recipe) -> Source:
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
