"""From what a source stores to documents: the damaged are skipped and counted, or named."""

from __future__ import annotations

import abc
import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from memjax.data.sources.base import Block, CorpusError, Document, Source

Entry = TypeVar("Entry")


class DocumentError(CorpusError):
    """One document is damaged, and its neighbours may be whole.

    Attributes:
      reason: the kind of damage, in a few words that are the same for all documents of that kind.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Both arguments, so that the error can come back from a process."""
        return type(self), (str(self), self.reason)


class CountingSource(Source):
    """A source that can skip damaged documents.

    `len` and `source[i]` count every entry: also the damaged, for which `source[i]` raises, and those without any visible
    character, which it returns. Iteration and `read` leave out both (the damaged only where `skip_damaged` is set).

    Attributes:
      skip_damaged: whether `read` skips documents that cannot be read as text; else it raises.
      skipped: reason to number of documents that this copy of the source has skipped. It is not pickled: a process that reads
        for another sends its own back, with `take_skipped`.
    """

    def __init__(self, name: str, skip_damaged: bool):
        self.name = name
        self.skip_damaged = skip_damaged
        self.skipped: collections.Counter[str] = collections.Counter()

    def take_skipped(self) -> dict[str, int]:
        """What was skipped since the last call: reason to number of documents."""
        taken = dict(self.skipped)
        self.skipped.clear()
        return taken

    def visible(self, entries: Iterable[Entry], document: Callable[[Entry], Document]) -> Iterator[Document]:
        """`document` of each entry, without those that are damaged or have no visible character.

        Raises:
          DocumentError: one is damaged, and the source does not skip.
        """
        for entry in entries:
            try:
                found = document(entry)
            except DocumentError as error:
                if not self.skip_damaged:
                    raise
                self.skipped[error.reason] += 1
                continue
            if found.text and not found.text.isspace():
                yield found

    def __getstate__(self) -> dict[str, Any]:
        """All but what this copy has counted."""
        return self.__dict__ | {"skipped": collections.Counter()}


class NumberedSource(CountingSource):
    """A source whose documents are reached by their number; blocks are ranges of numbers."""

    @abc.abstractmethod
    def values(self, start: int, stop: int) -> Iterator[Any]:
        """What is stored for the documents `start` to `stop - 1`."""

    @abc.abstractmethod
    def document(self, number: int, value: Any) -> Document:
        """The document stored as `value`.

        Raises:
          DocumentError: it is damaged.
        """

    @abc.abstractmethod
    def text_bytes(self) -> int:
        """About how many bytes of text there are."""

    def __getitem__(self, number: int) -> Document:
        """Document `number`."""
        check_number(number, len(self), self.name)
        return self.document(number, next(self.values(number, number + 1)))

    def blocks(self, size: int) -> list[Block]:
        """Equal ranges of documents, of about `size` bytes by the mean of all."""
        return [Block(0, start, stop) for start, stop in ranges(len(self), self.text_bytes(), size)]

    def read(self, block: Block) -> Iterator[Document]:
        """The documents of a block."""
        entries = zip(itertools.count(block.start), self.values(block.start, block.stop), strict=False)
        yield from self.visible(entries, lambda entry: self.document(*entry))


def ranges(count: int, total_bytes: int, size: int) -> list[tuple[int, int]]:
    """`count` things of `total_bytes` in all, as (start, stop) of about `size` bytes each."""
    step = max(1, count * size // max(total_bytes, 1))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def check_number(number: int, count: int, name: str) -> None:
    """Raises IndexError unless there is a document `number`."""
    if not 0 <= number < count:
        raise IndexError(f"{name}: has no document {number}, only 0 to {count - 1}")


def text_of(value: Any, where: str, field: str) -> str:
    """A stored value as text: strings as they are, bytes as UTF-8.

    Raises:
      DocumentError: it is neither, is not UTF-8 or holds half of a surrogate pair.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            message = f"{where}: field {field!r} is not UTF-8 at byte {error.start} of the field"
            raise DocumentError(message, "not UTF-8") from error
    if not isinstance(value, str):
        raise DocumentError(
            f"{where}: field {field!r} holds a {type(value).__name__}, not text; set config.data.text_field to a field with text",
            "not text",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{where}: field {field!r} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
            "half of a surrogate pair",
        ) from error
    return value


def text_of_json(line: str, where: str, field: str, each: str = "line") -> str:
    """`field` of a JSON object.

    Raises:
      DocumentError: it is not JSON, not an object, has no such field or no text there.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # Too many digits or brackets are no JSONDecodeError.
        raise DocumentError(
            f'{where}: not JSON ({error}); each {each} must be an object such as {{"{field}": "..."}}', "not JSON"
        ) from error
    if not isinstance(record, dict):
        raise DocumentError(
            f'{where}: holds a {type(record).__name__}; each {each} must be an object such as {{"{field}": "..."}}',
            "not a JSON object",
        )
    if field not in record:
        raise DocumentError(
            f"{where}: has no field {field!r}, only {', '.join(record)}; set config.data.text_field to one of them",
            "no such field",
        )
    return text_of(record[field], where, field)
