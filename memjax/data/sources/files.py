"""A file, a folder or a glob as one source; the files may be of different formats."""

from __future__ import annotations

import collections
import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from memjax.data.sources.base import Block, CorpusError, Document, Source, counted
from memjax.data.sources.lines import JsonLinesPart, TextPart
from memjax.data.sources.parquet import ParquetPart
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.python_docs import PYTHON_DOCS
from memjax.data.sources.records import ArrayRecordPart

FORMATS: dict[str, type[Part]] = {
    ".txt": TextPart,
    ".txt.gz": TextPart,
    ".jsonl": JsonLinesPart,
    ".jsonl.gz": JsonLinesPart,
    ".txt.zst": TextPart,
    ".jsonl.zst": JsonLinesPart,
    ".parquet": ParquetPart,
    ".arrayrecord": ArrayRecordPart,
    ".array_record": ArrayRecordPart,
}
"""From the end of a file's name to the class that reads it."""


def corpus_files(corpus: str) -> tuple[list[Path], collections.Counter[str]]:
    """Return the files of a corpus path, sorted, and why and how many others are left out.

    Linked folders are read like others, each folder once.

    Raises:
      CorpusError: there are none, or a name that the path or glob matches has an unknown ending.
    """
    kinds = ", ".join(FORMATS)
    path = Path(corpus).expanduser()
    left_out: collections.Counter[str] = collections.Counter()
    if path.is_dir():
        files = []
        for file in _below(path, left_out):
            if not file.is_file():
                left_out["broken link" if not file.exists() else "pipe, device or socket"] += 1
            elif suffix_of(file):
                files.append(file)
            else:
                left_out[file.suffix or "no ending"] += 1
        CorpusError.require(
            files,
            f"corpus {corpus!r}: no file in this folder ends in {kinds}, expected one or more. It"
            f" holds {counted(left_out) or 'no file'}",
        )
        return sorted(files), left_out
    # A path that exists is no glob, even where it holds brackets.
    matches = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
    files = []
    for file in sorted(matches):
        if not file.is_dir():
            files.append(file)
        elif "**" not in path.parts:
            left_out["folder"] += 1
    CorpusError.require(
        files,
        f"corpus {corpus!r}: no such file on this machine, expected a file ({kinds}), a folder of"
        f" such files, a glob, {PYTHON_DOCS!r}, tfds:NAME/CONFIG or hf:NAME:CONFIG",
    )
    for file in files:
        CorpusError.require(
            suffix_of(file),
            f"{file}: unknown ending, expected {kinds}. Name such files",
        )
    return files, left_out


def _below(folder: Path, left_out: collections.Counter[str]) -> Iterator[Path]:
    """Yield what is below a folder and is no folder; links to folders may go round in a circle."""
    seen = {os.path.realpath(folder)}

    def unread(error: OSError) -> None:
        left_out["unreadable folder"] += 1

    for place, folders, names in os.walk(folder, onerror=unread, followlinks=True):
        fresh = {}
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if real not in seen:
                fresh[name] = seen.add(real)
        folders[:] = fresh
        yield from (Path(place, name) for name in names)


def suffix_of(file: Path, formats: Mapping[str, type[Part]] = FORMATS) -> str:
    """Return which of `formats` the name of the file ends in, in any case, or an empty string."""
    name = file.name.lower()
    return next((suffix for suffix in formats if name.endswith(suffix)), "")


@dataclass(frozen=True)
class FilesBlock(Block):
    """A range of file `part` (bytes, rows or records), or whole files from `part` on."""

    first: int = 0
    """The number of the first document, as its id shows it."""
    files: int = 0
    """Number of whole files, whose bytes on disk `start` and `stop` then count; 0 for a range."""


class FilesSource(Source):
    """The documents of files, in the order of the files."""

    def __init__(
        self,
        name: str,
        files: list[Path],
        text_field: str,
        skip_damaged: bool,
        formats: Mapping[str, type[Part]] = FORMATS,
        left_out: Mapping[str, int] = MappingProxyType({}),
    ):
        """List the files, whose names end in one of `formats`; none is opened yet.

        Raises:
          CorpusError: a file is absent.
        """
        super().__init__(name, skip_damaged)
        self.left_out = counted(left_out)
        self._parts = [formats[suffix_of(file, formats)](file, text_field) for file in files]
        self.signature = [[str(part.file), part.size, part.changed] for part in self._parts]

    def blocks(self, size: int) -> list[Block]:
        """Return blocks of small files together, and of ranges of large ones.

        Finding the ranges reads text and JSON-lines files once. A compressed file is one range.
        """

        def together(first: int, stop: int) -> list[Block]:
            on_disk = sum(part.size for part in self._parts[first:stop])
            return [FilesBlock(first, 0, on_disk, 0, stop - first)] if first < stop else []

        blocks: list[Block] = []
        first = weight = 0
        for number, part in enumerate(self._parts):
            text = part.size * part.text_per_byte
            if weight + text > size:
                blocks += together(first, number)
                first, weight = number, 0
            if text > size:
                blocks += [FilesBlock(number, *span) for span in part.spans(size)]
                first = number + 1
            else:
                weight += text
        return blocks + together(first, len(self._parts))

    def read(self, block: Block) -> Iterator[Document]:
        """Yield the documents of a block that `blocks` returned."""
        assert isinstance(block, FilesBlock)
        for part in self._parts[block.part : block.part + max(block.files, 1)]:
            span = part.whole() if block.files else Span(block.start, block.stop, block.first)
            yield from self.visible(part.entries(span), part.document)
