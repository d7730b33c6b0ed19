"""When all blocks are done: what both splits are, what the text was, and what of the held-out text was trained on all the same."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.config import Data
from memjax.data.blocks import SPLITS, TEXT, Census, Work, clear, combine, cut, sketches_file, texts
from memjax.data.rows import describe, describe_mixture
from memjax.data.sketches import near_duplicates, sketch
from memjax.data.sources.base import CorpusError, Source

LEAST_ROWS = {"train": 8, "validation": 2}

Record = dict[str, Any]
"""What is known of a block (`blocks.do`)."""


def finish_rows(
    data: Data,
    folder: Path,
    works: Sequence[Work],
    records: Sequence[Sequence[Record]],
    names: Sequence[str],
    weights: Sequence[float],
) -> dict[str, Any]:
    """Writes `{split}.json` of all parts and of the whole, and takes away what only helped to build them.

    Returns `corpus_fingerprint`, `documents`, `characters`, `blocks`, `skipped` (reason to number of damaged documents), `near_duplicates` if
    there are sketches (`validation`: held-out documents that have one to train on, `of` so many) and `parts` of a mixture.

    Raises:
      CorpusError: the text is too little for rows to train on and to hold out.
    """
    try:
        described = {split: [_describe(work, own, split) for work, own in zip(works, records, strict=True)] for split in SPLITS}
        _check_enough(data, described, sum(record["documents"] for own in records for record in own), names)
    except CorpusError:
        for work in works:
            clear(work.folder, ())
        raise
    about = _about_text(records)
    if works[0].sketches:
        about["near_duplicates"] = _count_near_duplicates(works)
    for split, infos in described.items():
        for work, info in zip(works, infos, strict=True):
            (work.folder / f"{split}.json").write_text(json.dumps(info, indent=2) + "\n")
        if len(works) > 1:
            mixture = describe_mixture({work.folder.name: info for work, info in zip(works, infos, strict=True)}, weights)
            (folder / f"{split}.json").write_text(json.dumps(mixture, indent=2) + "\n")
    for place, work in enumerate(works):
        made = [name for split in SPLITS for name in described[split][place]["files"]]
        clear(work.folder, [*made, *(f"{split}.json" for split in SPLITS)])
    if len(works) > 1:
        about["parts"] = [
            {"corpus": name, "weight": weight} | _about_text([own])
            for name, weight, own in zip(names, weights, records, strict=True)
        ]
    return about


def recount(sources: Iterable[Source], version: int) -> dict[str, Any]:
    """`corpus_fingerprint`, `documents` and `characters` of the text as it is now, as a folder of this format counted them."""
    counted = []
    for source in sources:
        # The first format knew no blocks.
        blocks = [[block] for block in cut(source)] if version > 1 else [list(cut(source))]
        censuses = [Census(texts(source, block)).finish() for block in blocks]
        counted.append([{key: getattr(census, key) for key in TEXT} for census in censuses])
    return _about_text(counted)


def _describe(work: Work, records: Sequence[Record], split: str) -> dict[str, Any]:
    return describe([record[split] for record in records], work.layout, work.fingerprint)


def _check_enough(data: Data, described: dict[str, list[dict[str, Any]]], documents: int, names: Sequence[str]) -> None:
    for split, infos in described.items():
        rows = sum(info["rows"] for info in infos)
        if rows < LEAST_ROWS[split]:
            raise CorpusError(
                f"config.data.corpus={data.corpus!r} gives {rows} {split} rows of {data.row_tokens} tokens, from"
                f" {sum(info['documents'] for info in infos)} of {documents} documents; at least {LEAST_ROWS[split]} are needed: give more"
                " documents, a lower config.data.row_tokens or another config.data.validation_share"
                f" (now {data.validation_share})"
            )
    for name, info in zip(names, described["train"], strict=True):
        if not info["rows"]:
            raise CorpusError(f"{name} gives no train row of {data.row_tokens} tokens; leave it out of config.data.corpus")


def _about_text(records: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """What is known of the text of parts, given what is known of each one's blocks."""
    every = [record for own in records for record in own]
    skipped: collections.Counter[str] = collections.Counter()
    for record in every:
        skipped.update(record.get("skipped", {}))
    return {
        "corpus_fingerprint": combine([combine([record["fingerprint"] for record in own]) for own in records]),
        "documents": sum(record["documents"] for record in every),
        "characters": sum(record["characters"] for record in every),
        "blocks": len(every),
        "skipped": dict(sorted(skipped.items())),
    }


def _count_near_duplicates(works: Sequence[Work]) -> dict[str, int]:
    held_out = np.concatenate([sketch([]), *_sketches(works, "validation")])
    found = near_duplicates(held_out, _sketches(works, "train"))
    return {"validation": int(found.sum()), "of": len(found)}


def _sketches(works: Sequence[Work], split: str) -> Iterator[np.ndarray]:
    for work in works:
        for number in range(len(work.blocks)):
            yield np.load(sketches_file(work.folder, split, number))
