"""Tokenizers: text to ids and back, with reserved ids that no text produces.

memjax reads two kinds of file: a sentencepiece model (`tokenizer.model`,
memjax/data/tokenizers/sentencepiece.py), as `train_tokenizer` makes, and a Hugging Face
`tokenizer.json` (memjax/data/tokenizers/byte_level.py, extra `hf`). Every id stands for a fixed
string of bytes, so decoding joins them, and the bytes of a text are counted without decoding it. A
vocabulary is tried when it is loaded: it spells every id, and one that does not give texts back is
not `exact`.

V: entries of the vocabulary, the largest id and 1.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from memjax.errors import MemjaxError
from memjax.files import atomic_file

RESERVED = ("<pad>", "<unk>", "<s>", "</s>", "<blank>", "<delimiter>")
"""Names of the reserved ids: padding, unknown text, begin and end of a document, blank and
delimiter (memjax/objectives)."""
TRAINING_CHARACTERS = 100_000_000
"""Training holds its text in memory and gains nothing from more."""
FILES = ("tokenizer.model", "tokenizer.json")
"""File names of a run's vocabulary."""
BORDERS = ("<s>", "</s>")
LONGEST = 2**28
"""Bytes of a file, at most."""
LARGEST = 2**22
"""V, at most."""
Borders = Mapping[str, Sequence[str | int]]
"""Tokens or ids for `<s>` and `</s>` by the settings beside a vocabulary, the first one first."""
TRIED = (
    "The cat's 2 mice, 1,234.50 of them; DON'T!",
    "  two  spaces \t\t tabs \r\n\n lines \u3000\xa0 and an end ",
    "e\u0301 \xe9 \ufb01 \xbd \u2126 \uff21 \u2581 \u2585 \ufffd \ufeff \u200d \xad",
    "\0\1\x1b\x7f <s></s><unk><pad> [UNK] <|endoftext|> <0x41> ## \u0120\u010a",
    "\u4e2d\u6587 \u0939\u093f\u0928\u094d\u0926\u0940 \uc548 \U0001f600\U0001f468\u200d\U0001f469",
)
"""Texts that an exact vocabulary gives back: of any case, space, form, script and code."""


class TokenizerError(MemjaxError):
    """A vocabulary cannot be trained, or a file is not a usable vocabulary.

    The message names the setting or the file.
    """


def require_text(texts: Iterable[str]) -> None:
    """Raise TokenizerError if a text is none, or has half surrogates, which UTF-8 cannot write."""
    try:
        for text in texts:
            TokenizerError.require(
                isinstance(text, str), f"text: {type(text).__name__}, expected a string"
            )
            text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text: {error.object[error.start]!r} at character {error.start}, expected UTF-8"
        ) from error


class Tokenizer(abc.ABC):
    """A vocabulary that converts text to ids and back.

    Attributes:
      pad_id: like `unk_id`, `bos_id`, `eos_id`, `blank_id` and `delimiter_id` a reserved id.
        `bos_id` and `eos_id` may be one.
      content: the least id that stands for text, and the one above the greatest; reserved ids lie
        outside.
      exact: whether any text survives byte for byte; False if the vocabulary normalises text, or
        does not give back what was tried. Bytes per id are then those of the text it gives.
      spaced: whether the vocabulary puts a space before a document, as Llama 2's; `encode` does,
        and `decode` takes it away. The bytes of its first id count it.
    """

    file_name: ClassVar[str]
    """The one of FILES that holds the vocabulary."""
    kind: ClassVar[str]
    """The name of that kind of file."""
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int
    blank_id: int
    delimiter_id: int
    content: tuple[int, int]
    exact: bool = True
    spaced: bool = False
    names_begin: bool
    names_end: bool
    """True if the file, or settings beside it, name a begin, or an end, of a document."""
    adds_begin: bool = False
    """True if the file itself puts a begin before every text for other libraries."""
    begins: bool | None = None
    """True if settings of Hugging Face beside the file put `bos_id` before every text, False if
    only before one without context, and None if they name none."""
    _size: int
    """V of the file."""
    _names: Mapping[int, str]
    """Names of the reserved ids."""

    def __init__(
        self, model: bytes, origin: str = "the vocabulary", borders: Borders | None = None
    ):
        """Parse the contents of a file, and try them.

        Args:
          model: the contents.
          origin: the file, which begins a message.
          borders: begin and end of a document by the settings beside it. The contents that `save`
            writes have them.

        Raises:
          TokenizerError: it is damaged, of another kind, does not spell every byte, or needs a
            package.
        """
        self._model, self._origin = model, origin
        try:
            texts = [*TRIED, self._open(borders or {})]
            self.exact &= [self.decode(ids) for ids in self.encode_batch(texts)] == texts
        except (TokenizerError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # A panic of Rust is no Exception.
            raise TokenizerError(
                f"{origin} is no {self.kind}, or a damaged one ({error}). Download it again, or"
                " train a vocabulary on the corpus"
            ) from error

    @abc.abstractmethod
    def _open(self, borders: Borders) -> str:
        """Parse the contents; return another text that an exact vocabulary gives back."""

    def save(self, path: str | os.PathLike) -> None:
        """Write the file that `load_tokenizer` reads, as `file_name` in a folder."""
        path = Path(path)
        with atomic_file(path / self.file_name if path.is_dir() else path) as temporary:
            temporary.write_bytes(self._model)

    @property
    def vocabulary(self) -> int:
        """Return V."""
        return len(self._bytes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits of the model's sha256; equal fingerprints mean equal ids."""
        return hashlib.sha256(self._model).hexdigest()[:16]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """Return the UTF-8 bytes per id, int32 [V]; 0 for reserved ids."""
        return np.array([len(spelling) for spelling in self._bytes], np.int32)

    def encode(self, text: str, start: bool = True) -> np.ndarray:
        """Return the ids int32 [tokens] of any text.

        No id is added at the ends.

        Args:
          text: the text.
          start: whether it is the start of a document, or else continues one.

        Raises:
          TokenizerError: it has half surrogates.
        """
        return self.encode_batch([text], start=start)[0]

    @abc.abstractmethod
    def encode_batch(
        self, texts: Sequence[str], threads: int = 1, start: bool = True
    ) -> list[np.ndarray]:
        """Return `encode` of each text, on that many threads."""

    def decode(self, ids: Iterable[int], start: bool = True) -> str:
        """Return the text of `ids` [tokens]: exactly the encoded one, if the vocabulary is `exact`.

        Bytes that form no character become U+FFFD; reserved ids become nothing.

        Args:
          ids: ids.
          start: whether they are the start of a document, or else continue one.
        """
        text = b"".join(self._bytes[i] for i in _integers(ids)).decode(errors="replace")
        return text.removeprefix(" ") if start and self.spaced else text

    def ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Return the byte of a document in UTF-8 at which each of its tokens ends, int64 [tokens].

        Args:
          text: the document.
          ids: `encode` of it.
        """
        if self.exact:
            found = np.cumsum(self.byte_lengths[ids], dtype=np.int64)
            if self.spaced and len(ids) and self._bytes[ids[0]].startswith(b" "):
                found -= 1
        else:
            found = np.maximum.accumulate(np.array(self._ends(text), np.int64))
            found[-1:] = len(text.encode())
        return found

    @abc.abstractmethod
    def _ends(self, text: str) -> list[int]:
        """Return `ends` by the library, for vocabularies that are not exact."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""Return one readable string per token.

        It is the text of the token, the name of a reserved id, or `\xNN` for bytes of a longer
        character.
        """
        return [self._piece(i) for i in _integers(ids)]

    def _piece(self, i: int) -> str:
        if i in self._names:
            return self._names[i]
        try:
            return self._bytes[i].decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in self._bytes[i])

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        """Return the bytes of each id, [V]; empty for reserved ids."""
        ids = range(max(self._size, *(i + 1 for i in self._names)))
        return [b"" if i in self._names else self._spelling(i) for i in ids]

    @abc.abstractmethod
    def _spelling(self, i: int) -> bytes:
        """Return the bytes of an id that is not reserved."""

    def _sized(self, size: int) -> int:
        """Return V of the file, checked: libraries take memory for every id up to it."""
        TokenizerError.require(
            size <= LARGEST,
            f"{self._origin}: id {size - 1}, expected ids below {LARGEST}. Give another"
            " vocabulary, or number its tokens without gaps",
        )
        return size

    def _reserve(self, found: Mapping[str, int], free: Iterable[int] = ()) -> dict[int, str]:
        """Give every name in RESERVED an id.

        That is the vocabulary's own, or one of its `free` ones, or a new one above all.
        """
        spare, names, vocabulary = list(free), {}, self._size
        # A vocabulary without a token for the begin of a document marks borders by the token for
        # its end, and vice versa.
        begin, end = found.get("<s>"), found.get("</s>")
        borders = {"<s>": end if begin is None else begin, "</s>": begin if end is None else end}
        self.names_begin, self.names_end = begin is not None, end is not None
        ids = {**found, **borders}
        for name, attribute in zip(
            RESERVED, ("pad", "unk", "bos", "eos", "blank", "delimiter"), strict=True
        ):
            i = ids.get(name)
            if i is None or (name in ("<pad>", "<blank>", "<delimiter>") and i in names):
                i = spare.pop(0) if spare else vocabulary
                vocabulary += i == vocabulary
            setattr(self, f"{attribute}_id", i)
            names.setdefault(i, name)
        return names


def named(borders: Borders, special: Mapping[str, int]) -> dict[str, int]:
    """Return the id of each name: the first one of its tokens or ids that is a special token."""
    ids = {
        name: [special.get(x) if isinstance(x, str) else x for x in given]
        for name, given in borders.items()
    }
    found = {
        name: next((i for i in own if i in special.values()), None) for name, own in ids.items()
    }
    return {name: i for name, i in found.items() if i is not None}


def _integers(ids: Iterable[int]) -> list[int]:
    return np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).tolist()


def training_part(texts: Iterable[str]) -> Iterator[str]:
    """Yield the first texts, until they have the characters that a vocabulary is trained on."""
    left = TRAINING_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        left -= len(text)
        yield text
