"""Finalise a prepared corpus: the sizes of both splits, text statistics, and their overlap."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.config import Data
from memjax.data.blocks import (
    SPLITS,
    TEXT,
    TextStats,
    Work,
    combine,
    sketches_file,
    split_blocks,
    texts,
)
from memjax.data.rows import describe, describe_mixture
from memjax.data.sketches import near_duplicates, sketch
from memjax.data.sources.base import NAMED, CorpusError, Source
from memjax.data.vocabulary import Parts
from memjax.files import write_json

LEAST_ROWS = {"train": 8, "validation": 2}

Record = dict[str, Any]
"""The record of a block (`blocks.do`)."""


def finalize_rows(
    data: Data,
    folder: Path,
    works: Sequence[Work],
    records: Sequence[Sequence[Record]],
    parts: Parts,
) -> dict[str, Any]:
    """Write `{split}.json` of all parts and of the whole, and remove files that are not needed.

    Returns:
      what `text_stats` returns, `near_duplicates` if there are sketches (`validation`: held-out
      documents with a near-duplicate in training, `of`: all) and `parts` of a mixture.

    Raises:
      CorpusError: the text is too short for rows to train on and to hold out.
    """
    described = {
        split: [
            describe([record[split] for record in own], work.layout, work.fingerprint)
            for work, own in zip(works, records, strict=True)
        ]
        for split in SPLITS
    }
    metadata = text_stats(records)
    try:
        _check_enough(data, described, metadata["documents"], parts.names)
    except CorpusError:
        for work in works:
            _clear(work.folder, ())
        raise
    if works[0].sketches:
        held_out = np.concatenate([sketch([]), *_sketches(works, "validation")])
        found = near_duplicates(held_out, _sketches(works, "train"))
        metadata["near_duplicates"] = {"validation": int(found.sum()), "of": len(found)}
    for split, infos in described.items():
        for work, info in zip(works, infos, strict=True):
            write_json(work.folder / f"{split}.json", info)
        if len(works) > 1:
            own = {work.folder.name: info for work, info in zip(works, infos, strict=True)}
            mixture = describe_mixture(own, parts.weights)
            write_json(folder / f"{split}.json", mixture)
    for place, work in enumerate(works):
        made = [name for split in SPLITS for name in described[split][place]["files"]]
        _clear(work.folder, [*made, *(f"{split}.json" for split in SPLITS)])
    if len(works) > 1:
        metadata["parts"] = [
            {"corpus": name, "weight": weight} | text_stats([own])
            for name, weight, own in zip(parts.names, parts.weights, records, strict=True)
        ]
    return metadata


def recount(sources: Iterable[Source], version: int) -> dict[str, Any]:
    """Return `corpus_fingerprint`, `documents` and `characters` of the present text.

    They are counted as a folder of this format version counted them.
    """
    counted = []
    for source in sources:
        # Format 1 had no blocks.
        blocks = (
            [[block] for block in split_blocks(source)]
            if version > 1
            else [list(split_blocks(source))]
        )
        stats = [TextStats(texts(source, block)).finish() for block in blocks]
        counted.append([{key: getattr(one, key) for key in TEXT} for one in stats])
    return text_stats(counted)


def _clear(folder: Path, files: Iterable[str]) -> None:
    """Remove the files of a folder except these: they only helped to build rows."""
    kept = set(files)
    for file in folder.iterdir():
        if file.name not in kept and file.is_file():
            file.unlink()


def _check_enough(
    data: Data, described: dict[str, list[dict[str, Any]]], documents: int, names: Sequence[str]
) -> None:
    for split, infos in described.items():
        rows = sum(info["rows"] for info in infos)
        CorpusError.require(
            rows >= LEAST_ROWS[split],
            f"config.data.corpus={data.corpus!r} gives {rows} {split} rows of"
            f" {data.sequence_length} tokens, from"
            f" {sum(info['documents'] for info in infos)} of {documents} documents, expected at"
            f" least {LEAST_ROWS[split]}. Give more documents (in a text file, lines of"
            " <|endoftext|> separate them), a lower config.data.sequence_length or another"
            f" config.data.validation_share (now {data.validation_share})",
        )
    for name, info in zip(names, described["train"], strict=True):
        CorpusError.require(
            info["rows"] > 0,
            f"config.data.corpus: {name} gives no train row of {data.sequence_length} tokens,"
            " expected one or more. Leave it out",
        )


def text_stats(records: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Return the statistics of the text of parts, from the records of each one's blocks.

    Returns:
      `corpus_fingerprint`, `documents`, `characters`, `blocks`, `skipped` (from a reason to a
      number of damaged documents) and `damaged` (the errors of the first NAMED of them).
    """
    every = [record for own in records for record in own]
    skipped: collections.Counter[str] = collections.Counter()
    for record in every:
        skipped.update(record.get("skipped", {}))
    return {
        "corpus_fingerprint": combine(
            [combine([record["fingerprint"] for record in own]) for own in records]
        ),
        "documents": sum(record["documents"] for record in every),
        "characters": sum(record["characters"] for record in every),
        "blocks": len(every),
        "skipped": dict(sorted(skipped.items())),
        "damaged": [error for record in every for error in record.get("damaged", ())][:NAMED],
    }


def _sketches(works: Sequence[Work], split: str) -> Iterator[np.ndarray]:
    for work in works:
        for number in range(len(work.blocks)):
            yield np.load(sketches_file(work.folder, split, number))
