"""Files by their paths: a file, a folder or a glob is one source, whatever mixture of formats it holds."""

from __future__ import annotations

import bisect
import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memjax.data.sources.base import Block, CorpusError, Document
from memjax.data.sources.documents import CountingSource, check_number
from memjax.data.sources.lines import JsonLinesPart, TextPart
from memjax.data.sources.parquet import ParquetPart
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.python_docs import PYTHON_DOCS
from memjax.data.sources.records import ArrayRecordPart
from memjax.data.sources.streams import unreadable

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
"""What a file's name ends in, and how it is read then."""


def corpus_files(corpus: str) -> list[Path]:
    """The files behind a corpus path, sorted.

    Raises:
      CorpusError: there are none, or one has an ending that is not read.
    """
    kinds = ", ".join(FORMATS)
    path = Path(corpus).expanduser()
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and suffix_of(file)]
        if not files:
            raise CorpusError(f"config.data.corpus={corpus!r} is a folder without any file that ends in {kinds}")
        return sorted(files)
    # A file whose own name holds a bracket is taken as it stands.
    files = [path] if path.exists() else [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = sorted(file for file in files if not file.is_dir())
    if not files:
        raise CorpusError(
            f"config.data.corpus={corpus!r} matches no file on this machine; give {PYTHON_DOCS!r}, the path of a file ({kinds}),"
            " of a folder of such files or a glob, tfds:NAME/CONFIG or hf:NAME:CONFIG"
        )
    for file in files:
        if not suffix_of(file):
            raise CorpusError(f"{file}: files of this ending are not read; config.data.corpus takes {kinds}")
    return files


def suffix_of(file: Path, formats: Mapping[str, type[Part]] = FORMATS) -> str:
    """The one of `formats` that the file's name ends in, or nothing."""
    return next((suffix for suffix in formats if file.name.endswith(suffix)), "")


@dataclass(frozen=True)
class FilesBlock(Block):
    """A range of file `part` (bytes, rows or records), or files from `part` on, whole. Hand it on as it is."""

    first: int = 0
    """The number by which the first document is called, so that no process needs an index of the file to read a range."""
    files: int = 0
    """How many whole files, of which `start` and `stop` then count the bytes on disk; 0: a range of one."""


class FilesSource(CountingSource):
    """The documents of files, in the order of the files."""

    def __init__(
        self,
        name: str,
        files: list[Path],
        text_field: str,
        skip_damaged: bool,
        formats: Mapping[str, type[Part]] = FORMATS,
    ):
        """Opens nothing yet. Each file's name ends in one of `formats`.

        Raises:
          CorpusError: a file vanished.
        """
        super().__init__(name, skip_damaged)
        self._stamp: list[list[Any]] = []
        self._parts: list[Part] = []
        for file in files:
            try:
                state = file.stat()
            except OSError as error:
                raise unreadable(file, error) from error
            self._stamp.append([str(file), state.st_size, state.st_mtime_ns])
            self._parts.append(formats[suffix_of(file, formats)](file, text_field, state.st_size))
        self._ends: list[int] = []

    def __len__(self) -> int:
        """Documents; the first call reads the text and JSON-lines files once."""
        return self._count(None)

    def _count(self, number: int | None) -> int:
        """Counts the documents of one file after the other, until there are more than `number`."""
        while len(self._ends) < len(self._parts) and (number is None or not self._ends or self._ends[-1] <= number):
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._parts[len(self._ends)]))
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Document:
        """Document `number`; only the files up to its own are counted."""
        check_number(number, self._count(number), self.name)
        part = bisect.bisect_right(self._ends, number)
        return self._parts[part].get(number - (self._ends[part - 1] if part else 0))

    def blocks(self, size: int) -> list[Block]:
        """Small files together; large ones in ranges, for which text and JSON-lines files are read once; packed ones whole."""
        blocks: list[Block] = []
        group: list[int] = []
        weight = 0

        def flush() -> None:
            nonlocal weight
            if group:
                on_disk = sum(self._parts[number].size for number in group)
                blocks.append(FilesBlock(group[0], 0, on_disk, 0, len(group)))
            group.clear()
            weight = 0

        for number, part in enumerate(self._parts):
            grown = part.size * part.grown
            if weight + grown > size:
                flush()
            if grown > size:
                blocks += [FilesBlock(number, *span) for span in part.spans(size)]
            else:
                group.append(number)
                weight += grown
        flush()
        return blocks

    def read(self, block: Block) -> Iterator[Document]:
        """The documents of a block."""
        if not isinstance(block, FilesBlock):
            block = FilesBlock(block.part, block.start, block.stop, self._parts[block.part].number_at(block.start))
        for part in self._parts[block.part : block.part + max(block.files, 1)]:
            span = part.whole() if block.files else Span(block.start, block.stop, block.first)
            yield from self.visible(part.entries(span), part.document)

    def stamp(self) -> list[list[Any]]:
        """Name, bytes and time of each file, as they were when the source was opened."""
        return self._stamp
