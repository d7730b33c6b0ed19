"""A corpus becomes a folder: a vocabulary, and the rows of both splits.

    folder/prepared.json     settings, fingerprint and sizes of the corpus, near-duplicates across
                             the splits
    folder/tokenizer.model   or tokenizer.json: trained on the training split alone, or given
    folder/rows-{N}/         both splits in rows of N tokens; of a mixture, a folder per part

All is built in a folder beside it and moved into place whole (`memjax.files.resumable_dir`), block
by block and by several processes (memjax/data/blocks.py). After a kill the next call resumes, and
the result is the same to the byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memjax import progress
from memjax.config import Data
from memjax.data.blocks import SPLITS, Work, digest, split_blocks
from memjax.data.finalize import finalize_rows, recount
from memjax.data.packing import Layout
from memjax.data.rows import Rows, RowsError, open_rows
from memjax.data.sources.base import CorpusError, counted
from memjax.data.tfds_rows import holds_rows, open_both
from memjax.data.tokenizers import Tokenizer, load_tokenizer
from memjax.data.vocabulary import Parts, check_size, is_given, open_vocabulary
from memjax.data.workers import run_blocks
from memjax.files import check_seal, read_json, resumable_dir, sealed, write_json

_LOG = logging.getLogger("memjax")
_FORMAT = 3
"""Since format 3, a wrapped text without a blank line is split at line ends every few pages, not at
each."""
_READABLE = (1, 2, 3)
_ADVICE = "Use another --workdir: a run's data must not change under its checkpoints"
_REMEDY = "Delete the folder so that it is built again"
_BEFORE = {"tokenizer_from": "", "rows": "packed", "skip_damaged": False}
"""Settings of folders of format 1, which do not hold them."""

_SHAPE = {
    "format": _READABLE,
    **dict.fromkeys(("corpus", "text_field", "corpus_fingerprint", "tokenizer", "python"), str),
    **dict.fromkeys(("vocabulary", "documents", "characters"), int),
    "validation_share": float,
    "corpus_stamp": list,
    "parts?": [{"weight": float}],
    "tokenizer_from?": str,
    "rows?": str,
    "skip_damaged?": bool,
}
"""The shape of prepared.json."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Text ready to train on."""

    tokenizer: Tokenizer
    train: Rows
    """`MixedRows` of a mixture."""
    validation: Rows
    info: dict[str, Any]
    """The contents of `prepared.json`, `row_tokens`, `train` and `validation` (the info of each
    split) and `bytes_per_token`.
    """


def prepare(
    data: Data,
    folder: str | os.PathLike,
    log: Callable[[str], None] = _LOG.info,
    workers: int | None = None,
) -> Prepared:
    """Build the data of these settings in `folder`, or open it if it exists.

    The corpus is streamed. The first 100 million characters of the training split train the
    vocabulary; then all of it is read, block by block, to write rows. Later calls read it only
    where sizes or times of its files have changed, to compare the text. Rows of another length are
    added beside the present ones, with the same vocabulary; what was built never changes.

    Args:
      data: the settings.
      folder: the data folder.
      log: called with a line of text per step that was done.
      workers: processes that share the blocks; by default one per processor. The result does not
        depend on it.

    Raises:
      CorpusError: the corpus is unreadable, too small, or changed during reading.
      TokenizerError: the vocabulary is too large for the corpus, or a given or stored one is
        damaged or too large.
      RowsError: the folder holds data of other settings or of another corpus, or is damaged.
      OSError: the disk refuses.
    """
    folder, workers = Path(folder), workers or os.cpu_count() or 1
    if holds_rows(data.corpus):
        return Prepared(*open_both(data, folder))
    if not (folder / "prepared.json").exists():
        RowsError.require(
            not folder.exists() or not any(folder.iterdir()),
            f"{folder}: holds files but no prepared.json, expected prepared data. Empty it or"
            " use another --workdir",
        )
        check_sources(data)
        with resumable_dir(folder, _holds_blocks, log) as partial:
            if partial:
                _build(data, partial, workers, log)
    info = _read_info(folder / "prepared.json")
    _check_same(data, info, folder, log)
    tokenizer = load_tokenizer(folder)
    RowsError.require(
        tokenizer.fingerprint == info["tokenizer"],
        f"{folder / tokenizer.file_name}: tokenizer {tokenizer.fingerprint}, expected"
        f" {info['tokenizer']} as in {folder / 'prepared.json'}. {_REMEDY}",
    )
    rows_folder = folder / f"rows-{data.sequence_length}"
    if not rows_folder.exists():
        with resumable_dir(rows_folder, _holds_blocks, log) as partial:
            if partial:
                _add_rows(data, info, partial, folder, tokenizer, workers, log)
    train, validation = (open_rows(rows_folder, split, tokenizer.fingerprint) for split in SPLITS)
    info |= {"row_tokens": data.sequence_length, "train": train.info, "validation": validation.info}
    info["bytes_per_token"] = sum(rows.info["bytes"] for rows in (train, validation)) / sum(
        rows.info["tokens"] for rows in (train, validation)
    )
    log(
        f"data: {len(train)} rows to train on and {len(validation)} held out, of"
        f" {data.sequence_length} tokens,"
        f" {info['bytes_per_token']:.2f} bytes per token, in {folder}"
    )
    return Prepared(tokenizer, train, validation, info)


def check_sources(data: Data) -> None:
    """Check that the corpus and a given vocabulary can be opened; makes nothing.

    Raises:
      CorpusError, TokenizerError: they cannot.
    """
    Parts.of(data)
    if is_given(data):
        check_size(load_tokenizer(data.tokenizer), data)


def _build(data: Data, folder: Path, workers: int, log: Callable[[str], None]) -> None:
    """Build vocabulary, rows and prepared.json in a folder that is empty or resumed."""
    plan = {"format": _FORMAT} | {
        key: value for key, value in dataclasses.asdict(data).items() if key not in _NOT_OURS
    }
    begun: dict[str, Any] = {}
    with contextlib.suppress(RowsError):
        begun = read_json(folder / "plan.json", RowsError)
    if begun != plan:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(folder / "plan.json", plan)
    parts = Parts.of(data)
    for source in parts.sources:
        if source.left_out:
            log(f"data: {source.name}: left out {source.left_out}")
    tokenizer = open_vocabulary(data, parts, folder, log)
    rows_folder = folder / f"rows-{data.sequence_length}"
    metadata = _build_rows(data, parts, rows_folder, folder, tokenizer, True, workers, log)
    info = {
        "format": _FORMAT,
        "corpus": data.corpus,
        "text_field": data.text_field,
        "vocabulary": data.vocab_size,
        "tokenizer_from": data.tokenizer,
        "rows": data.packing,
        "skip_damaged": data.skip_damaged,
        "validation_share": data.validation_share,
        "corpus_stamp": parts.signatures(),
        **metadata,
        "python": platform.python_version(),
        "tokenizer": tokenizer.fingerprint,
    }
    (folder / "plan.json").unlink()
    (folder / "vocabulary.json").unlink()
    write_json(folder / "prepared.json", sealed(info))


_NOT_OURS = ("attributions", "memories")
"""Settings of `Data` that have no effect on what is built."""


def _build_rows(
    data: Data,
    parts: Parts,
    folder: Path,
    tokenizer_folder: Path,
    tokenizer: Tokenizer,
    sketches: bool,
    workers: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Build the rows of both splits, and return the text statistics of `prepared.json`."""
    started = time.monotonic()
    works = [
        Work(
            source,
            own,
            tokenizer_folder,
            Layout.of(data),
            data.validation_share,
            split_blocks(source),
            digest(source.mtime_signature()),
            tokenizer.fingerprint,
            sketches,
        )
        for source, own in zip(parts.sources, parts.folders(folder), strict=True)
    ]
    for work in works:
        work.folder.mkdir(parents=True, exist_ok=True)
    records: list[list[dict[str, Any]]] = [[{} for _ in work.blocks] for work in works]
    blocks = sum(len(work.blocks) for work in works)
    tokens = size = kept = 0
    with progress.bar("data", blocks) as shown:
        for place, number, record, there in run_blocks(works, workers):
            records[place][number] = record
            kept += there
            if not there:
                tokens += sum(record[split]["tokens"] for split in SPLITS)
                size += record["bytes"]
            shown.advance(1, _speed(tokens, size, time.monotonic() - started))
    CorpusError.require(
        Parts.of(data).signatures() == parts.signatures(),
        f"config.data.corpus={data.corpus!r} changed during reading. Run again when it is complete",
    )
    seconds = time.monotonic() - started
    metadata = finalize_rows(data, folder, works, records, parts)
    resumed = f", after {kept} of an earlier process" if kept else ""
    log(
        f"data: wrote {blocks - kept} block{'s' * (blocks - kept != 1)} of rows of"
        f" {data.sequence_length} tokens{resumed}, in {seconds:.1f} s"
        f" ({_speed(tokens, size, seconds)})"
    )
    if "near_duplicates" in metadata:
        near = metadata["near_duplicates"]
        log(
            f"data: {near['validation']} of {near['of']} held-out documents are near-duplicates of"
            " training documents"
        )
    if metadata["skipped"]:
        count = sum(metadata["skipped"].values())
        why = counted(metadata["skipped"])
        log(f"data: skipped {count} damaged document{'s' * (count != 1)} ({why})")
    return metadata


def _speed(tokens: int, size: int, seconds: float) -> str:
    return (
        f"{tokens / max(seconds, 1e-9):,.0f} tokens/s, {size / max(seconds, 1e-9) / 1e6:.1f} MB/s"
    )


def _add_rows(
    data: Data,
    info: dict[str, Any],
    partial: Path,
    folder: Path,
    tokenizer: Tokenizer,
    workers: int,
    log: Callable[[str], None],
) -> None:
    """Add rows of another length to a folder."""
    parts = Parts.of(data)
    metadata = _build_rows(data, parts, partial, folder, tokenizer, False, workers, log)
    if info["format"] == 1:
        metadata |= recount(parts.sources, info["format"])
    if metadata["corpus_fingerprint"] != info["corpus_fingerprint"]:
        raise _other_text(data, info, folder, metadata)


def _read_info(file: Path) -> dict[str, Any]:
    info = read_json(file, RowsError, _SHAPE, _REMEDY)
    check_seal(info, file, _REMEDY, RowsError)
    return _BEFORE | info


def _check_same(data: Data, info: dict[str, Any], folder: Path, log: Callable[[str], None]) -> None:
    """Raise RowsError if the folder was built with other settings or from another corpus.

    A corpus that is no longer there was the same.
    """
    _check_tokenizer(data, info, folder)
    keys = {
        "packing": "rows",
        "skip_damaged": "skip_damaged",
        "validation_share": "validation_share",
        **({} if is_given(data) else {"vocab_size": "vocabulary"}),
    }
    for name, key in keys.items():
        RowsError.require(
            getattr(data, name) == info[key],
            f"{folder}: built with config.data.{name}={info[key]}, not"
            f" {getattr(data, name)}. {_ADVICE}",
        )
    same_source = (data.corpus, data.text_field) == (info["corpus"], info["text_field"])
    try:
        parts = Parts.of(data)
    except CorpusError as error:
        if not same_source:
            raise
        log(f"data: {error}. The rows in {folder} are used as they are")
        return
    if same_source and info["corpus_stamp"] in (parts.signatures(), parts.signatures()[0]):
        return
    weights = [part["weight"] for part in info.get("parts", ({"weight": 1.0},))]
    found = recount(parts.sources, info["format"])
    if found["corpus_fingerprint"] == info["corpus_fingerprint"] and (
        len(weights) == 1 or list(parts.weights) == weights
    ):
        return
    for key in ("corpus", "text_field"):
        RowsError.require(
            getattr(data, key) == info[key],
            f"{folder}: built with config.data.{key}={info[key]!r}, not"
            f" {getattr(data, key)!r}. {_ADVICE}",
        )
    raise _other_text(data, info, folder, found)


def _check_tokenizer(data: Data, info: dict[str, Any], folder: Path) -> None:
    """Raise RowsError if the folder was built with another vocabulary."""
    made_by = info["tokenizer_from"]
    if not is_given(data):
        same = data.tokenizer == made_by
    else:
        there = Path(data.tokenizer).expanduser().exists()
        tokenizer = load_tokenizer(data.tokenizer if data.tokenizer != made_by or there else folder)
        check_size(tokenizer, data)
        same = tokenizer.fingerprint == info["tokenizer"]
        RowsError.require(
            same or data.tokenizer != made_by,
            f"{folder}: built with tokenizer {info['tokenizer']}, but"
            f" config.data.tokenizer={made_by!r} is now {tokenizer.fingerprint}. {_ADVICE}",
        )
    RowsError.require(
        same,
        f"{folder}: built with config.data.tokenizer={made_by!r}, not {data.tokenizer!r}."
        f" {_ADVICE}",
    )


def _other_text(data: Data, info: dict[str, Any], folder: Path, found: dict[str, Any]) -> RowsError:
    if info["format"] < _FORMAT and info["characters"] == found["characters"]:
        return RowsError(
            f"{folder}: built by an earlier memjax, which split config.data.corpus={data.corpus!r}"
            f" into {info['documents']} documents, expected {found['documents']}. {_ADVICE}"
        )
    other_python = "python-docs" in data.corpus and info["python"] != platform.python_version()
    why = f" with Python {info['python']}, not {platform.python_version()}," if other_python else ""
    return RowsError(
        f"{folder}: built{why} from another text of config.data.corpus={data.corpus!r}"
        f" ({info['documents']} documents, {info['characters']} characters then,"
        f" {found['documents']} and {found['characters']} now). {_ADVICE}"
    )


def _holds_blocks(folder: Path) -> bool:
    """Return whether an unfinished folder has finished blocks."""
    return any(folder.rglob("block-*.json"))
