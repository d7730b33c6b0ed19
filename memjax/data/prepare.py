"""A corpus becomes a folder: a vocabulary trained on the training split, and the rows of both splits.

    folder/prepared.json     the settings, the corpus's fingerprint and sizes
    folder/tokenizer.model   trained on the training split alone
    folder/rows-{N}/         both splits in rows of N tokens

Each is written under another name and moved into place whole, so what a killed process leaves is never taken for done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memjax.config import Data
from memjax.data.corpora import PYTHON_DOCS, CorpusError, corpus_files, is_validation, read_corpus
from memjax.data.rows import Rows, RowsError, open_rows, write_rows
from memjax.data.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
SPLITS = ("train", "validation")
LEAST_ROWS = {"train": 8, "validation": 2}
_FORMAT = 1
_BATCH_CHARACTERS = 4_000_000
"""Text given to the tokenizer's threads at once."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Text ready to train on."""

    tokenizer: Tokenizer
    train: Rows
    validation: Rows
    info: dict[str, Any]
    """What `prepared.json` says, plus `row_tokens`, `train` and `validation` (each split's own info) and `bytes_per_token`."""


def prepare(data: Data, folder: str | os.PathLike, report: Callable[[str], None] = _LOG.info) -> Prepared:
    """Builds what `data` asks for in `folder`, or opens it if it is there.

    The corpus is streamed, never held: once to train the vocabulary and once to write the rows of each split. Later calls read
    it only where the sizes or times of its files have changed, to tell whether the text has. Another row length is added
    beside those that are there, with the same vocabulary; nothing that was built ever changes.

    Args:
      data: the settings.
      folder: where the data lies or will lie.
      report: is told, in a line of text, what was done.

    Raises:
      CorpusError: the corpus cannot be read, is too small, or changed while it was read.
      TokenizerError: the vocabulary asked for is too large for the corpus, or the stored one is damaged.
      RowsError: the folder holds data of other settings or of another corpus, or is damaged.
    """
    folder = Path(folder)
    if not (folder / "prepared.json").exists():
        if folder.exists() and any(folder.iterdir()):
            raise RowsError(
                f"{folder}: holds files but no prepared.json, so it is not data of ours; empty it or use another --workdir"
            )
        with _moved_into_place(folder) as temporary:
            _build(data, temporary, report)
    info = _read_info(folder / "prepared.json")
    _check_same(data, info, folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != info["tokenizer"]:
        raise RowsError(
            f"{folder / tokenizer.file_name}: is tokenizer {tokenizer.fingerprint}, while {folder / 'prepared.json'} was written with"
            f" {info['tokenizer']}; delete the folder so that it is built again"
        )
    rows_folder = folder / f"rows-{data.row_tokens}"
    if not rows_folder.exists():
        with _moved_into_place(rows_folder) as temporary:
            _build_rows(data, temporary, tokenizer, info["corpus_fingerprint"], report)
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


def _build(data: Data, folder: Path, report: Callable[[str], None]) -> None:
    """Vocabulary, rows and prepared.json in an empty folder."""
    report(f"data: reading {data.corpus} to train a vocabulary of {data.vocabulary}")
    stamp = _stamp(data.corpus)
    census = _Census(_texts(data))
    started = time.monotonic()
    tokenizer = Tokenizer.train((text for text in census if not is_validation(text, data.validation_share)), data.vocabulary)
    census.finish()
    report(
        f"data: read {census.documents} documents, {census.characters} characters, and trained a vocabulary of"
        f" {data.vocabulary} in {time.monotonic() - started:.1f} s"
    )
    tokenizer.save(folder)
    rows_folder = folder / f"rows-{data.row_tokens}"
    rows_folder.mkdir()
    _build_rows(data, rows_folder, tokenizer, census.fingerprint, report)
    info = {
        "format": _FORMAT,
        "corpus": data.corpus,
        "text_field": data.text_field,
        "vocabulary": data.vocabulary,
        "validation_share": data.validation_share,
        "corpus_fingerprint": census.fingerprint,
        "corpus_stamp": stamp,
        "python": platform.python_version(),
        "documents": census.documents,
        "characters": census.characters,
        "tokenizer": tokenizer.fingerprint,
    }
    (folder / "prepared.json").write_text(json.dumps(info, indent=2) + "\n")


def _build_rows(data: Data, folder: Path, tokenizer: Tokenizer, fingerprint: str, report: Callable[[str], None]) -> None:
    started = time.monotonic()
    for split in SPLITS:
        census = _Census(_texts(data))
        held_out = split == "validation"
        texts = (text for text in census if is_validation(text, data.validation_share) == held_out)
        info = write_rows(folder, split, _encoded(texts, tokenizer), data.row_tokens, tokenizer)
        census.finish()
        if census.fingerprint != fingerprint:
            raise CorpusError(f"config.data.corpus={data.corpus!r} changed while it was read; run again when it is complete")
        if info["rows"] < LEAST_ROWS[split]:
            raise CorpusError(
                f"config.data.corpus={data.corpus!r} gives {info['rows']} {split} rows of {data.row_tokens} tokens, from"
                f" {info['documents']} of {census.documents} documents; at least {LEAST_ROWS[split]} are needed: give more documents,"
                f" a lower config.data.row_tokens or another config.data.validation_share (now {data.validation_share})"
            )
    report(f"data: wrote rows of {data.row_tokens} tokens in {time.monotonic() - started:.1f} s")


def _texts(data: Data) -> Iterator[str]:
    return (document.text for document in read_corpus(data.corpus, data.text_field))


def _encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    threads = os.cpu_count() or 1
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield from tokenizer.encode_batch(batch, threads)
            batch, characters = [], 0
    yield from tokenizer.encode_batch(batch, threads)


class _Census:
    """Passes texts on, counting and fingerprinting them."""

    def __init__(self, texts: Iterable[str]):
        self.documents = self.characters = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._texts = iter(texts)

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            raw = text.encode()
            self._hash.update(len(raw).to_bytes(8, "big") + raw)
            self.documents += 1
            self.characters += len(text)
            yield text

    def finish(self) -> None:
        """Takes what its reader left, so that the fingerprint is of the whole corpus."""
        for _ in self:
            pass

    @property
    def fingerprint(self) -> str:
        return self._hash.hexdigest()


def _read_info(file: Path) -> dict[str, Any]:
    remedy = "delete the folder so that it is built again"
    try:
        info = json.loads(file.read_text())
        version = info["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RowsError(f"{file}: is damaged ({type(error).__name__}: {error}); {remedy}") from error
    if version != _FORMAT:
        raise RowsError(f"{file}: data of format {version}, while this memjax reads format {_FORMAT}; {remedy}")
    return info


def _check_same(data: Data, info: dict[str, Any], folder: Path) -> None:
    """Raises RowsError if the folder was built of other settings or of another corpus."""
    advice = "use another --workdir: a run's data must not change under its checkpoints"
    for key in ("vocabulary", "validation_share"):
        if getattr(data, key) != info[key]:
            raise RowsError(f"{folder}: was built with config.data.{key}={info[key]}, not {getattr(data, key)}; {advice}")
    same_source = (data.corpus, data.text_field) == (info["corpus"], info["text_field"])
    if same_source and info["corpus_stamp"] == _stamp(data.corpus):
        return
    census = _Census(_texts(data))
    census.finish()
    if census.fingerprint == info["corpus_fingerprint"]:
        return
    for key in ("corpus", "text_field"):
        if getattr(data, key) != info[key]:
            raise RowsError(f"{folder}: was built with config.data.{key}={info[key]!r}, not {getattr(data, key)!r}; {advice}")
    why = f" with Python {info['python']}, while this is {platform.python_version()}" if data.corpus == PYTHON_DOCS else ""
    raise RowsError(
        f"{folder}: was built{why} from another text of config.data.corpus={data.corpus!r} ({info['documents']} documents,"
        f" {info['characters']} characters then, {census.documents} and {census.characters} now); {advice}"
    )


def _stamp(corpus: str) -> list[list[Any]]:
    """Name, bytes and time of each file of the corpus: while it stands still, so does the text."""
    if corpus == PYTHON_DOCS:
        return [[PYTHON_DOCS, platform.python_version(), platform.python_implementation()]]
    states = ((str(file), file.stat()) for file in corpus_files(corpus))
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]


@contextlib.contextmanager
def _moved_into_place(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's is for its owner alone.
        try:
            temporary.rename(target)
        except OSError:
            # Another process built the same meanwhile; the caller checks that it is the same.
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
