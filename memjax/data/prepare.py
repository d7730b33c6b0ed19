"""A corpus becomes a folder: a vocabulary, and the rows of both splits.

    folder/prepared.json     the settings, the corpus's fingerprint and sizes, near-duplicates across the splits
    folder/tokenizer.model   or tokenizer.json: trained on the training split alone, or the one that was given
    folder/rows-{N}/         both splits in rows of N tokens; of a mixture each part in a folder of its own

All is built in a folder beside it and moved into place whole (memjax/data/building.py), block by block and by several processes
(memjax/data/blocks.py). What a killed process leaves is gone on with, and the result is the same to the byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from memjax.config import Data
from memjax.data.blocks import SPLITS, Work, cut, digest, texts
from memjax.data.building import built
from memjax.data.corpora import is_validation
from memjax.data.finishing import finish_rows, recount
from memjax.data.layouts import Layout
from memjax.data.rows import Rows, RowsError, open_rows
from memjax.data.sources import open_source, parse_mixture
from memjax.data.sources.base import CorpusError, Source
from memjax.data.tfds_rows import holds_rows, open_both
from memjax.data.tokenizer import BYTE_LEVEL, FILES, Tokenizer, TokenizerError
from memjax.data.workers import run_blocks

_LOG = logging.getLogger(__name__)
_FORMAT = 2
_READABLE = (1, 2)
_ADVICE = "use another --workdir: a run's data must not change under its checkpoints"
_REMEDY = "delete the folder so that it is built again"
_BEFORE = {"tokenizer_from": "", "rows": "packed", "skip_damaged": False}
"""What folders of format 1, which do not say it, were built with."""


class Bar(Protocol):
    """Shows how far something is."""

    def advance(self, steps: int = 1, text: str | None = None) -> None:
        """Moves on; `text` stands beside it until the next one."""
        ...


MakeBar = Callable[[str, int], AbstractContextManager[Bar]]
"""Starts a bar of a name and a number of steps; `memjax.training.progress.Reporter.bar` is one."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Text ready to train on."""

    tokenizer: Tokenizer
    train: Rows
    """`MixedRows` of a mixture."""
    validation: Rows
    info: dict[str, Any]
    """What `prepared.json` says, plus `row_tokens`, `train` and `validation` (each split's own info) and `bytes_per_token`."""


def prepare(
    data: Data,
    folder: str | os.PathLike,
    report: Callable[[str], None] = _LOG.info,
    workers: int | None = None,
    bar: MakeBar | None = None,
) -> Prepared:
    """Builds what `data` asks for in `folder`, or opens it if it is there.

    The corpus is streamed, never held: the first 100 million characters of the training split to train the vocabulary, then all of it, block
    by block, to write rows. Later calls read it only where the sizes or times of its files have changed, to tell whether the text has.
    Another row length is added beside those that are there, with the same vocabulary; nothing that was built ever changes.

    Args:
      data: the settings.
      folder: where the data lies or will lie.
      report: is told, in a line of text, what was done.
      workers: processes that share the blocks; by default as many as there are processors. The result does not depend on it.
      bar: shows how many blocks are done, if there are several.

    Raises:
      CorpusError: the corpus cannot be read, is too small, or changed while it was read.
      TokenizerError: the vocabulary asked for is too large for the corpus, or a given or stored one is damaged or too large.
      RowsError: the folder holds data of other settings or of another corpus, or is damaged.
      OSError: the disk refuses.
    """
    folder, workers = Path(folder), workers or os.cpu_count() or 1
    if holds_rows(data.corpus):
        return Prepared(*open_both(data, folder))
    if not (folder / "prepared.json").exists():
        if folder.exists() and any(folder.iterdir()):
            raise RowsError(
                f"{folder}: holds files but no prepared.json, so it is not data of ours; empty it or use another --workdir"
            )
        with built(folder, _holds_blocks, report) as partial:
            if partial:
                _build(data, partial, workers, report, bar)
    info = _read_info(folder / "prepared.json")
    _check_same(data, info, folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != info["tokenizer"]:
        raise RowsError(
            f"{folder / tokenizer.file_name}: is tokenizer {tokenizer.fingerprint}, while {folder / 'prepared.json'} was written with"
            f" {info['tokenizer']}; {_REMEDY}"
        )
    rows_folder = folder / f"rows-{data.row_tokens}"
    if not rows_folder.exists():
        with built(rows_folder, _holds_blocks, report) as partial:
            if partial:
                _add_rows(data, info, partial, folder, tokenizer, workers, report, bar)
    train, validation = (open_rows(rows_folder, split, tokenizer.fingerprint) for split in SPLITS)
    info |= {"row_tokens": data.row_tokens, "train": train.info, "validation": validation.info}
    info["bytes_per_token"] = sum(rows.info["bytes"] for rows in (train, validation)) / sum(
        rows.info["tokens"] for rows in (train, validation)
    )
    report(
        f"data: {len(train)} rows to train on and {len(validation)} held out, of {data.row_tokens} tokens,"
        f" {info['bytes_per_token']:.2f} bytes a token, in {folder}"
    )
    return Prepared(tokenizer, train, validation, info)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The corpora of a mixture, or the one there is."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    sources: tuple[Source, ...]

    @classmethod
    def of(cls, data: Data) -> _Parts:
        pairs = parse_mixture(data.corpus)
        sources = (open_source(corpus, data.text_field, data.skip_damaged) for _, corpus in pairs)
        return cls(tuple(corpus for _, corpus in pairs), tuple(float(weight) for weight, _ in pairs), tuple(sources))

    def stamps(self) -> list[list[Any]]:
        """While they are the same, so is the text."""
        # As they come back from JSON.
        return json.loads(json.dumps([source.stamp() for source in self.sources]))

    def folders(self, rows: Path) -> list[Path]:
        """Where the rows of each part lie."""
        return [rows] if len(self.names) == 1 else [rows / f"part-{number}" for number in range(len(self.names))]


def _build(data: Data, folder: Path, workers: int, report: Callable[[str], None], bar: MakeBar | None) -> None:
    """Vocabulary, rows and prepared.json in a folder that is empty or holds what a killed process left."""
    plan = {"format": _FORMAT} | {key: value for key, value in dataclasses.asdict(data).items() if key not in _NOT_OURS}
    if _read(folder / "plan.json") != plan:
        _empty(folder)
        (folder / "plan.json").write_text(json.dumps(plan))
    parts = _Parts.of(data)
    tokenizer = _vocabulary(data, parts, folder, report)
    about = _build_rows(data, parts, folder / f"rows-{data.row_tokens}", folder, tokenizer, True, workers, report, bar)
    settings = {"corpus": data.corpus, "text_field": data.text_field, "vocabulary": data.vocabulary}
    settings |= {
        "tokenizer_from": data.tokenizer,
        "rows": data.rows,
        "skip_damaged": data.skip_damaged,
    }
    info = {"format": _FORMAT} | settings | {"validation_share": data.validation_share, "corpus_stamp": parts.stamps()}
    info |= about | {"python": platform.python_version(), "tokenizer": tokenizer.fingerprint}
    (folder / "plan.json").unlink()
    (folder / "vocabulary.json").unlink()
    (folder / "prepared.json").write_text(json.dumps(info, indent=2) + "\n")


_NOT_OURS = ("attributions", "memories")
"""Settings of `Data` that do not bear on what is built."""


def _vocabulary(data: Data, parts: _Parts, folder: Path, report: Callable[[str], None]) -> Tokenizer:
    """The given one, the one that an earlier process trained, or a new one, which is then in the folder."""
    note = folder / "vocabulary.json"
    made = {"stamps": parts.stamps()}
    with contextlib.suppress(TokenizerError):
        stored = Tokenizer.load(folder)
        if not _given(data) and _read(note) == made | {"fingerprint": stored.fingerprint}:
            return stored
    if _given(data):
        tokenizer = Tokenizer.load(data.tokenizer)
        _check_size(tokenizer, data)
    else:
        report(f"data: reading {data.corpus} to train a vocabulary of {data.vocabulary}")
        started = time.monotonic()
        tokenizer = Tokenizer.train(_training_texts(parts, data.validation_share), data.vocabulary, *_kind(data))
        report(f"data: trained a vocabulary of {data.vocabulary} in {time.monotonic() - started:.1f} s")
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save(folder)
    note.write_text(json.dumps(made | {"fingerprint": tokenizer.fingerprint}))
    return tokenizer


def _kind(data: Data) -> tuple[str, ...]:
    return (data.tokenizer,) if data.tokenizer else ()


def _given(data: Data) -> bool:
    """Whether the vocabulary is a file."""
    return data.tokenizer not in ("", BYTE_LEVEL)


def _check_size(tokenizer: Tokenizer, data: Data) -> None:
    if tokenizer.vocabulary > data.vocabulary:
        raise TokenizerError(
            f"config.data.vocabulary={data.vocabulary} is less than the {tokenizer.vocabulary} ids of config.data.tokenizer="
            f"{data.tokenizer!r}, reserved ones included; use {tokenizer.vocabulary} or more"
        )


def _training_texts(parts: _Parts, share: float) -> Iterator[str]:
    """Documents to train a vocabulary on, of a mixture's parts in proportion to their weights for as long as each lasts."""

    def of(source: Source) -> Iterator[str]:
        return (text for text in texts(source, cut(source)) if not is_validation(text, share))

    if len(parts.sources) == 1:
        yield from of(parts.sources[0])
        return
    streams = [of(source) for source in parts.sources]
    # Characters taken, over the weight: the least is next.
    taken = [(0.0, number) for number in range(len(streams))]
    while taken:
        so_far, number = heapq.heappop(taken)
        text = next(streams[number], None)
        if text is not None:
            yield text
            heapq.heappush(taken, (so_far + len(text) / parts.weights[number], number))


def _build_rows(
    data: Data,
    parts: _Parts,
    folder: Path,
    tokenizer_folder: Path,
    tokenizer: Tokenizer,
    sketches: bool,
    workers: int,
    report: Callable[[str], None],
    bar: MakeBar | None,
) -> dict[str, Any]:
    """The rows of both splits, and what `prepared.json` says of the text."""
    started = time.monotonic()
    works = []
    for source, own in zip(parts.sources, parts.folders(folder), strict=True):
        own.mkdir(parents=True, exist_ok=True)
        stamp, fingerprint = digest(source.stamp()), tokenizer.fingerprint
        layout, share = Layout.of(data), data.validation_share
        works.append(Work(source, own, tokenizer_folder, layout, share, cut(source), stamp, fingerprint, sketches))
    records: list[dict[int, dict[str, Any]]] = [{} for _ in works]
    blocks = sum(len(work.blocks) for work in works)
    tokens = size = kept = 0
    with bar("data", blocks) if bar and blocks > 1 else contextlib.nullcontext() as shown:
        for place, number, record, there in run_blocks(works, workers):
            records[place][number] = record
            kept += there
            if not there:
                tokens += sum(record[split]["tokens"] for split in SPLITS)
                size += record["bytes"]
            if shown is not None:
                shown.advance(1, _speed(tokens, size, time.monotonic() - started))
    if _Parts.of(data).stamps() != parts.stamps():
        raise CorpusError(f"config.data.corpus={data.corpus!r} changed while it was read; run again when it is complete")
    ordered = [[found[number] for number in range(len(work.blocks))] for work, found in zip(works, records, strict=True)]
    seconds = time.monotonic() - started
    about = finish_rows(data, folder, works, ordered, parts.names, parts.weights)
    went_on = f", with {kept} more that were there" if kept else ""
    report(
        f"data: wrote {blocks - kept} block{'s' * (blocks - kept != 1)} of rows of {data.row_tokens} tokens{went_on}, in {seconds:.1f} s"
        f" ({_speed(tokens, size, seconds)})"
    )
    if "near_duplicates" in about:
        near = about["near_duplicates"]
        report(f"data: {near['validation']} of {near['of']} held-out documents are near-duplicates of one to train on")
    if about["skipped"]:
        why = ", ".join(f"{count} {reason}" for reason, count in about["skipped"].items())
        count = sum(about["skipped"].values())
        report(f"data: left out {count} damaged document{'s' * (count != 1)} ({why})")
    return about


def _speed(tokens: int, size: int, seconds: float) -> str:
    return f"{tokens / max(seconds, 1e-9):,.0f} tokens/s, {size / max(seconds, 1e-9) / 1e6:.1f} MB/s"


def _add_rows(
    data: Data,
    info: dict[str, Any],
    partial: Path,
    folder: Path,
    tokenizer: Tokenizer,
    workers: int,
    report: Callable[[str], None],
    bar: MakeBar | None,
) -> None:
    """Rows of another length for a folder that is there."""
    parts = _Parts.of(data)
    about = _build_rows(data, parts, partial, folder, tokenizer, False, workers, report, bar)
    if info["format"] == 1:
        about |= recount(parts.sources, info["format"])
    if about["corpus_fingerprint"] != info["corpus_fingerprint"]:
        raise _other_text(data, info, folder, about)


def _read_info(file: Path) -> dict[str, Any]:
    try:
        info = json.loads(file.read_text())
        version = info["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RowsError(f"{file}: is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error
    if version not in _READABLE:
        raise RowsError(f"{file}: data of format {version}, while this memjax reads format {_FORMAT}; {_REMEDY}")
    return (_BEFORE if version == 1 else {}) | info


def _check_same(data: Data, info: dict[str, Any], folder: Path) -> None:
    """Raises RowsError if the folder was built of other settings or of another corpus."""
    _check_tokenizer(data, info, folder)
    keys = ["rows", "skip_damaged", "validation_share"]
    keys += ["vocabulary"] * (not _given(data))
    for key in keys:
        if getattr(data, key) != info[key]:
            raise RowsError(f"{folder}: was built with config.data.{key}={info[key]}, not {getattr(data, key)}; {_ADVICE}")
    parts = _Parts.of(data)
    same_source = (data.corpus, data.text_field) == (info["corpus"], info["text_field"])
    if same_source and info["corpus_stamp"] in (parts.stamps(), parts.stamps()[0]):
        return
    weights = [part["weight"] for part in info.get("parts", ({"weight": 1.0},))]
    found = recount(parts.sources, info["format"])
    if found["corpus_fingerprint"] == info["corpus_fingerprint"] and (len(weights) == 1 or list(parts.weights) == weights):
        return
    for key in ("corpus", "text_field"):
        if getattr(data, key) != info[key]:
            raise RowsError(f"{folder}: was built with config.data.{key}={info[key]!r}, not {getattr(data, key)!r}; {_ADVICE}")
    raise _other_text(data, info, folder, found)


def _check_tokenizer(data: Data, info: dict[str, Any], folder: Path) -> None:
    """Raises RowsError if the folder's ids are those of another vocabulary than is asked for."""
    made_by = info["tokenizer_from"]
    if not _given(data):
        same = data.tokenizer == made_by
    else:
        tokenizer = Tokenizer.load(data.tokenizer if data.tokenizer != made_by or Path(data.tokenizer).exists() else folder)
        _check_size(tokenizer, data)
        same = tokenizer.fingerprint == info["tokenizer"]
        if not same and data.tokenizer == made_by:
            raise RowsError(
                f"{folder}: was built with tokenizer {info['tokenizer']}, and config.data.tokenizer={made_by!r} is now"
                f" {tokenizer.fingerprint}; {_ADVICE}"
            )
    if not same:
        raise RowsError(f"{folder}: was built with config.data.tokenizer={made_by!r}, not {data.tokenizer!r}; {_ADVICE}")


def _other_text(data: Data, info: dict[str, Any], folder: Path, found: dict[str, Any]) -> RowsError:
    other_python = "python-docs" in data.corpus and info["python"] != platform.python_version()
    why = f" with Python {info['python']}, while this is {platform.python_version()}" if other_python else ""
    return RowsError(
        f"{folder}: was built{why} from another text of config.data.corpus={data.corpus!r} ({info['documents']} documents,"
        f" {info['characters']} characters then, {found['documents']} and {found['characters']} now); {_ADVICE}"
    )


def _holds_blocks(folder: Path) -> bool:
    """Whether a folder that was not finished has blocks that are."""
    return any(folder.rglob("block-*.json"))


def _read(file: Path) -> Any:
    """The JSON in a file, or None."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


__all__: Sequence[str] = ["Bar", "MakeBar", "Prepared", "prepare"]
