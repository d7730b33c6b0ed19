"""One block of a corpus becomes one file of rows a split: the work that processes share.

Nothing here imports JAX, and what a block becomes depends on the block, the tokenizer and the settings alone: not on who does it, nor on
what was done before. Of block 7 of 12, in the folder that is being built:

    train-00007-of-00012.arrayrecord        its rows, as are those of `validation`
    train-00007.sketches.npy                of its documents (memjax/data/sketches.py)
    block-00007-of-00012.json               what is in them, with checksums; written last

Each is written under another name and moved into place whole, so a block is done if its `.json` is there and the checksums are right.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.data.corpora import is_validation
from memjax.data.layouts import Layout
from memjax.data.rows import Shard, shard_name
from memjax.data.sketches import sketch
from memjax.data.sources.base import Block, CorpusError, Source
from memjax.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
TEXT = ("documents", "characters", "bytes", "fingerprint")
"""What a census says of a text."""
BLOCK_BYTES = 16_000_000
"""Text in a block, about: seconds of work, so that processes end at about the same time."""
MOST_BLOCKS = 256
"""Blocks of a corpus, about: each becomes a file a split, which stays open while it is read."""
_BATCH_CHARACTERS = 1_000_000
"""Text encoded at once."""


class Stopped(Exception):
    """The work was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is the same for all blocks of a corpus; picklable."""

    source: Source
    folder: Path
    """Where the rows are being built."""
    tokenizer: Path
    """The folder in which the vocabulary lies."""
    layout: Layout
    validation_share: float
    blocks: tuple[Block, ...]
    stamp: str
    """Digest of the source's stamp: while it is the same, so is the text."""
    fingerprint: str
    """Of the vocabulary."""
    sketches: bool = True


def cut(source: Source) -> tuple[Block, ...]:
    """All of a source in blocks of about BLOCK_BYTES, or more where there would be many more than MOST_BLOCKS.

    A function of the files alone.
    """
    on_disk = sum(entry[1] for entry in source.stamp() if len(entry) > 1 and isinstance(entry[1], int))
    return tuple(source.blocks(max(BLOCK_BYTES, on_disk // MOST_BLOCKS)))


def texts(source: Source, blocks: Iterable[Block]) -> Iterator[str]:
    """The documents of blocks that hold any visible character, in order."""
    return (
        document.text for block in blocks for document in source.read(block) if document.text and not document.text.isspace()
    )


class Census:
    """Passes texts on, counting and fingerprinting them."""

    def __init__(self, texts: Iterable[str]):
        self.documents = self.characters = self.bytes = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            raw = text.encode()
            self._hash.update(len(raw).to_bytes(8, "big") + raw)
            self.documents += 1
            self.characters += len(text)
            self.bytes += len(raw)
            yield text

    def finish(self) -> Census:
        """Takes all that is left."""
        for _ in self:
            pass
        return self

    @property
    def fingerprint(self) -> str:
        """32 hex digits of the texts passed on so far and of where each ends."""
        return self._hash.hexdigest()


def combine(fingerprints: Sequence[str]) -> str:
    """The fingerprint of a whole from those of its blocks, in order; of one alone it is that."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.blake2b("".join(fingerprints).encode(), digest_size=16).hexdigest()


def digest(stamp: Any) -> str:
    """32 hex digits of JSON-like values."""
    return hashlib.blake2b(json.dumps(stamp).encode(), digest_size=16).hexdigest()


def done(work: Work, number: int) -> dict[str, Any] | None:
    """What is known of a block that an earlier process did: None if it did not, or if the text or a file has changed since."""
    try:
        about = work.folder / _about(work, number)
        record = json.loads(about.read_text())
        if record["tokenizer"] != work.fingerprint:
            return None
        if record["stamp"] != work.stamp:
            census = Census(texts(work.source, [work.blocks[number]])).finish()
            if census.fingerprint != record["fingerprint"]:
                return None
            record["stamp"] = work.stamp
            _write(about, json.dumps(record).encode())
        checksums = dict(record["sketches"]) if work.sketches else {}
        for split in SPLITS:
            checksums |= {name: file["sha256"] for name, file in record[split]["files"].items()}
        right = all(_sha256(work.folder / name) == sha256 for name, sha256 in checksums.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if right else None


def do(work: Work, number: int, threads: int = 1, stopped: Callable[[], bool] = bool) -> dict[str, Any]:
    """Reads, splits, encodes and writes a block, and returns what is known of it.

    That is `documents`, `characters`, `bytes` and `fingerprint` of its text, what was `skipped` (reason to number of documents), for each split
    what `Shard.finish` says, the checksums of `sketches`, and the `stamp` and `tokenizer` that it is of.

    Raises:
      CorpusError: a document is damaged.
      OSError: the disk refuses.
      Stopped: `stopped()` said so.
    """
    tokenizer = _tokenizer(work.tokenizer, work.fingerprint)
    shards = {
        split: Shard(work.folder / shard_name(split, number, len(work.blocks)), work.layout, tokenizer) for split in SPLITS
    }
    sketches: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    census = Census(texts(work.source, [work.blocks[number]]))
    skipped(work.source)
    try:
        for batch in in_batches(census):
            if stopped():
                raise Stopped
            arrays = tokenizer.encode_batch(batch, threads)
            held_out = [is_validation(text, work.validation_share) for text in batch]
            for split in SPLITS:
                own = [array for array, out in zip(arrays, held_out, strict=True) if out == (split == "validation")]
                shards[split].add(own)
                if work.sketches:
                    sketches[split].append(sketch(own))
        record: dict[str, Any] = {split: shard.finish() for split, shard in shards.items()}
        if work.sketches:
            record["sketches"] = {}
            for split, parts in sketches.items():
                file = sketches_file(work.folder, split, number)
                stored = io.BytesIO()
                np.save(stored, np.concatenate([sketch([]), *parts]))
                _write(file, stored.getvalue())
                record["sketches"][file.name] = _sha256(file)
        counts = {key: getattr(census, key) for key in TEXT}
        record |= counts | {"skipped": skipped(work.source), "tokenizer": work.fingerprint, "stamp": work.stamp}
        _write(work.folder / _about(work, number), json.dumps(record).encode())
        return record
    finally:
        for shard in shards.values():
            shard.abandon()


def done_or_do(work: Work, number: int, threads: int = 1, stopped: Callable[[], bool] = bool) -> tuple[dict[str, Any], bool]:
    """What is known of a block, and whether it was there already; see `do`."""
    if stopped():
        raise Stopped
    record = done(work, number)
    return (record, True) if record else (do(work, number, threads, stopped), False)


def sketches_file(folder: Path, split: str, number: int) -> Path:
    """Where the sketches of a block's documents lie."""
    return folder / f"{split}-{number:05d}.sketches.npy"


def clear(folder: Path, files: Iterable[str]) -> None:
    """Takes away what was of use only while rows were being built: all but these files."""
    kept = set(files)
    for file in folder.iterdir():
        if file.name not in kept and file.is_file():
            file.unlink()


def _about(work: Work, number: int) -> str:
    return f"block-{number:05d}-of-{len(work.blocks):05d}.json"


def skipped(source: Source) -> dict[str, int]:
    """Damaged documents that this copy of a source has left out since it was last asked: reason to number."""
    take: Any = getattr(source, "take_skipped", dict)
    return take()


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts by as many as a tokenizer is given at once."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != fingerprint:
        raise CorpusError(f"{folder / tokenizer.file_name}: changed while it was in use; run again")
    return tokenizer


def _write(file: Path, contents: bytes) -> None:
    """The whole file or, if the disk refuses, none."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(contents)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
