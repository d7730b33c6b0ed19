"""One block of a corpus becomes one file of rows per split: the work that processes share.

Nothing here imports JAX. The result depends on the block, the tokenizer and the settings alone, not
on the process or on earlier blocks. Block 7 of 12 writes, into the folder that is being built:

    train-00007-of-00012.arrayrecord        its rows, and those of `validation`
    train-00007.sketches.npy                sketches of its documents (memjax/data/sketches.py)
    block-00007-of-00012.json               its record with checksums, written last

Each file is moved into place whole, so a block is done if its `.json` exists and the checksums are
right.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.data.packing import Layout, in_batches
from memjax.data.rows import ROWS, Shard, ShardFormat
from memjax.data.sketches import sketch
from memjax.data.sources.base import Block, CorpusError, Source
from memjax.data.splits import is_validation
from memjax.data.tokenizers import load_tokenizer
from memjax.data.tokenizers.base import Tokenizer
from memjax.files import atomic_file, check_seal, read_json, sealed, sha256, write_json

SPLITS = ("train", "validation")
TEXT = ("documents", "characters", "bytes", "fingerprint")
"""The statistics of a text."""
BLOCK_BYTES = 16_000_000
"""Bytes of text per block, about: seconds of work, so that processes end at about the same time."""
MOST_BLOCKS = 256
"""Blocks per corpus, about: each becomes one file per split, which stays open while it is read."""
BATCH_CHARACTERS = 1_000_000
"""Characters of text that are encoded at once."""


class Stopped(Exception):
    """The work was stopped."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The common settings of all blocks of a corpus; picklable."""

    source: Source
    folder: Path
    """The folder in which the rows are being built."""
    tokenizer: Path
    """The folder of the vocabulary."""
    layout: Layout
    validation_share: float
    blocks: tuple[Block, ...]
    signature: str
    """Digest of the source's `mtime_signature`: it changes when the text changes."""
    fingerprint: str
    """Fingerprint of the vocabulary."""
    sketches: bool = True
    form: ShardFormat = ROWS


def split_blocks(source: Source, size: int = 0) -> tuple[Block, ...]:
    """Return all of a source in blocks of about `size` bytes of text, by default BLOCK_BYTES.

    Blocks are larger where there would be many more than MOST_BLOCKS. They depend on the files
    alone.
    """
    on_disk = sum(
        entry[1]
        for entry in source.mtime_signature()
        if len(entry) > 1 and isinstance(entry[1], int)
    )
    return tuple(source.blocks(max(size or BLOCK_BYTES, on_disk // MOST_BLOCKS)))


def texts(source: Source, blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the documents of blocks that hold any visible character, in order."""
    return (document.text for block in blocks for document in source.read(block))


class TextStats:
    """Passes texts through, and counts and fingerprints them."""

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

    def finish(self) -> TextStats:
        """Read the remaining texts."""
        for _ in self:
            pass
        return self

    @property
    def fingerprint(self) -> str:
        """32 hex digits of the texts passed so far and of their ends."""
        return self._hash.hexdigest()


def combine(fingerprints: Sequence[str]) -> str:
    """Return the fingerprint of a whole from those of its blocks in order; one stays itself."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.blake2b("".join(fingerprints).encode(), digest_size=16).hexdigest()


def digest(value: Any) -> str:
    """Return 32 hex digits of a value that JSON can represent."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def done(work: Work, number: int) -> dict[str, Any] | None:
    """Return the record of a block that an earlier process finished.

    It is None if there is none, or if the text or a file has changed since.
    """
    try:
        record = read_record(work, number)
        if record["tokenizer"] != work.fingerprint:
            return None
        if record["signature"] != work.signature:
            stats = TextStats(texts(work.source, [work.blocks[number]])).finish()
            if stats.fingerprint != record["fingerprint"]:
                return None
            record["signature"] = work.signature
            _write_record(work, number, record)
        checksums = dict(record["sketches"]) if work.sketches else {}
        for split in SPLITS:
            checksums |= {name: file["sha256"] for name, file in record[split]["files"].items()}
        right = all(sha256(work.folder / name) == sum_ for name, sum_ in checksums.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if right else None


def do(
    work: Work, number: int, threads: int = 1, stopped: Callable[[], bool] = bool
) -> dict[str, Any]:
    """Read, split, encode and write a block, and return its record.

    Returns:
      `documents`, `characters`, `bytes` and `fingerprint` of the text, `skipped` (from a reason to
      a number of documents), `damaged` (the errors of the first of them), what `Shard.finish`
      returns per split, checksums of `sketches`, and the `signature` and `tokenizer` of the work.

    Raises:
      CorpusError: a document is damaged.
      OSError: the disk refuses.
      Stopped: `stopped()` returned true.
    """
    tokenizer = _tokenizer(work.tokenizer, work.fingerprint)
    shards = {
        split: Shard(
            work.folder / work.form.name(split, number, len(work.blocks)),
            work.layout,
            tokenizer,
            work.form,
        )
        for split in SPLITS
    }
    sketches: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    stats = TextStats(texts(work.source, [work.blocks[number]]))
    work.source.take_skipped()
    try:
        for batch in in_batches(stats, BATCH_CHARACTERS):
            if stopped():
                raise Stopped
            arrays = tokenizer.encode_batch(batch, threads)
            held_out = [is_validation(text, work.validation_share) for text in batch]
            for split in SPLITS:
                own = [
                    array
                    for array, out in zip(arrays, held_out, strict=True)
                    if out == (split == "validation")
                ]
                shards[split].add(own)
                if work.sketches:
                    sketches[split].append(sketch(own))
        record: dict[str, Any] = {split: shard.finish() for split, shard in shards.items()}
        if work.sketches:
            record["sketches"] = {}
            for split, parts in sketches.items():
                file = sketches_file(work.folder, split, number)
                with atomic_file(file) as temporary, open(temporary, "wb") as stored:
                    np.save(stored, np.concatenate([sketch([]), *parts]))
                record["sketches"][file.name] = sha256(file)
        skipped = work.source.take_skipped()
        record |= {key: getattr(stats, key) for key in TEXT} | {
            "skipped": skipped.counts,
            "damaged": skipped.messages,
            "tokenizer": work.fingerprint,
            "signature": work.signature,
        }
        _write_record(work, number, record)
        return record
    finally:
        for shard in shards.values():
            shard.abandon()


def done_or_do(
    work: Work, number: int, threads: int = 1, stopped: Callable[[], bool] = bool
) -> tuple[dict[str, Any], bool]:
    """Return the record of a block, and whether it was there already; see `do`."""
    if stopped():
        raise Stopped
    record = done(work, number)
    return (record, True) if record else (do(work, number, threads, stopped), False)


def sketches_file(folder: Path, split: str, number: int) -> Path:
    """Return the file of the sketches of a block's documents."""
    return folder / f"{split}-{number:05d}.sketches.npy"


def record_file(work: Work, number: int) -> Path:
    """Return the file of the record of a block."""
    return work.folder / f"block-{number:05d}-of-{len(work.blocks):05d}.json"


def read_record(work: Work, number: int) -> dict[str, Any]:
    """Return the record of a block, without a look at its files of rows.

    Raises:
      CorpusError: it is absent or damaged.
    """
    file = record_file(work, number)
    record = read_json(file, CorpusError, {"sha256": str})
    check_seal(record, file, "", CorpusError)
    return record


def _write_record(work: Work, number: int, record: dict[str, Any]) -> None:
    write_json(record_file(work, number), sealed(record), indent=None)


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    CorpusError.require(
        tokenizer.fingerprint == fingerprint,
        f"{folder / tokenizer.file_name}: changed during preparation. Run again",
    )
    return tokenizer
