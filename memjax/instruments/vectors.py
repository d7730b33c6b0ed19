"""Vectors of texts, each with the text's tokens, whoever made them: in memory, in a .npz file, or in an ArrayRecord file too large to hold.

Shapes: T text, K vector of a text, E its width, L token of a text, B texts taken together.

A `.npz` file holds `vectors` float [T, K, E], or [T, E] where K is 1, `tokens` integer [T, L], and any of the fields of `VectorsInfo` under
their names. In an `.arrayrecord` file record t is text t: K * E little-endian numbers, then L int32; a `.json` file of the same name stands
beside it, is written last, and holds `texts`, `shape` [K, E], `length`, `dtype`, `info` (the fields), `bytes`, `sha256` and `format`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp  # For its bfloat16, which NumPy alone has not.
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float, Int

from memjax.data import spread
from memjax.instruments.errors import InstrumentError
from memjax.objectives import SpecialIds

FORMAT = 1
SUFFIXES = (".npz", ".arrayrecord")
_TOKEN = np.dtype("<i4")
_PART = 4096
"""Texts looked at or written at a time."""


class VectorsError(InstrumentError):
    """Vectors are absent, damaged or of other texts than those in use; the message names the file."""


@dataclasses.dataclass(frozen=True)
class VectorsInfo:
    """What vectors and tokens are. Every field may be left out of a .npz file."""

    encoder: str = ""
    """A name for what made the vectors."""
    vocabulary: int = 0
    """V; 0 is not said: the largest id there is, and one."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer; empty is not known."""
    pad_id: int = -1
    """Id that stands for no token; -1, which is no id, where texts have no padding or are filled up with -1."""
    bos_id: int = -1
    """Id that an autoregressive decoder is shown before the first token; -1 is the least that is not `pad_id`."""
    first_content: int = 0
    """The least id that stands for text; ids below are reserved."""

    @property
    def ids(self) -> SpecialIds:
        """Reserved ids, as objectives take them."""
        start = self.bos_id if self.bos_id >= 0 else int(self.pad_id == 0)
        return SpecialIds(self.pad_id, start, start, max(start, self.first_content - 1))


class _Records:
    """The records of an ArrayRecord file, in random access."""

    def __init__(self, path: Path):
        self.path = path
        self.source = grain.sources.ArrayRecordDataSource([str(path)])
        # Vectors and tokens of a batch are asked for one after the other.
        self._last: tuple[bytes, list[bytes]] = (b"none", [])

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The records of these numbers."""
        key = indices.tobytes()
        if self._last[0] != key:
            try:
                self._last = key, list(self.source.__getitems__(indices.tolist()))
            except RuntimeError as error:
                raise VectorsError(f"{self.path}: a record cannot be read ({error}); write the file again") from error
        return self._last[1]


@dataclasses.dataclass(frozen=True)
class _Column:
    """One part of all records, read like an array that is indexed by numbers of texts."""

    records: _Records
    start: int
    """Byte of the record where the part begins."""
    dtype: np.dtype
    shape: tuple[int, ...]
    """[texts, ...]."""
    first: int = 0
    """The record of text 0."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        if indices.size and not -len(self) <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"texts {indices.min()} to {indices.max()} of {len(self)}")
        item = self.shape[1:]
        count = int(np.prod(item))
        parts = self.records.read(indices % len(self) + self.first)
        try:
            return np.stack([np.frombuffer(part, self.dtype, count, self.start) for part in parts]).reshape(-1, *item)
        except ValueError as error:
            raise VectorsError(f"{self.records.path}: a record is cut short ({error}); write the file again") from error

    def part(self, start: int, stop: int) -> "_Column":
        return dataclasses.replace(self, shape=(stop - start, *self.shape[1:]), first=self.first + start)


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Texts, and of each the vectors that stand for it. Columns may lie on disk: `take` reads what it is asked for.

    Raises:
      VectorsError: shapes are at odds, there are no texts, or, of columns in memory, a vector is not finite or an id is outside the
        vocabulary.
    """

    vectors: Float[np.ndarray, "T K E"] | _Column
    tokens: Int[np.ndarray, "T L"] | _Column
    info: VectorsInfo = VectorsInfo()
    name: str = "vectors"
    """For messages: the file."""

    def __post_init__(self) -> None:
        vectors, tokens = self.vectors.shape, self.tokens.shape
        if len(vectors) != 3 or len(tokens) != 2 or 0 in vectors[1:] or 0 in tokens[1:]:
            raise VectorsError(f"{self.name}: vectors {list(vectors)} and tokens {list(tokens)}; give [T, K, E] and [T, L]")
        if vectors[0] != tokens[0]:
            raise VectorsError(f"{self.name}: vectors of {vectors[0]} texts, and tokens of {tokens[0]}; there must be as many")
        if not vectors[0]:
            raise VectorsError(f"{self.name}: there are no texts")
        if isinstance(self.vectors, np.ndarray) and isinstance(self.tokens, np.ndarray):
            if not jnp.issubdtype(self.vectors.dtype, jnp.floating) or not np.issubdtype(self.tokens.dtype, np.integer):
                kinds = f"vectors of {self.vectors.dtype} and tokens of {self.tokens.dtype}"
                raise VectorsError(f"{self.name}: {kinds}; vectors are floats and tokens are integers")
            bad = sum(_not_finite(self.vectors[i : i + _PART]) for i in range(0, len(self), _PART))
            _require_finite(bad, len(self), self.name)
            _require_ids(self.tokens, self.info, self.name)

    def __len__(self) -> int:
        return self.vectors.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, E)."""
        return self.vectors.shape[1], self.vectors.shape[2]

    @property
    def length(self) -> int:
        """L."""
        return self.tokens.shape[1]

    @functools.cached_property
    def vocabulary(self) -> int:
        """V as it is said, or the largest id that there is, and one."""
        return self.info.vocabulary or int(self.all_tokens().max()) + 1

    def take(self, indices: Int[np.ndarray, " B"]) -> tuple[Float[np.ndarray, "B K E"], Int[np.ndarray, "B L"]]:
        """Vectors in float32 and tokens of some texts.

        Raises:
          VectorsError: they cannot be read, or one is not finite.
        """
        vectors, tokens = self.vectors[indices], self.tokens[indices]
        if isinstance(self.vectors, _Column):
            _require_finite(_not_finite(vectors), len(vectors), self.name)
        return vectors.astype(np.float32), tokens.astype(np.int32)

    def all_tokens(self) -> Int[np.ndarray, "T L"]:
        """The tokens of all texts; of a file, this reads all of it."""
        parts = (np.arange(i, min(i + _PART, len(self))) for i in range(0, len(self), _PART))
        return np.concatenate([self.tokens[part].astype(np.int32) for part in parts])

    def part(self, start: int, stop: int) -> "Vectors":
        """Texts start to stop - 1, not copied.

        Raises:
          VectorsError: there are none.
        """
        if not 0 <= start < stop <= len(self):
            raise VectorsError(
                f"{self.name}: holds {len(self)} texts, so there are none from {start} to {stop}; give more texts"
            )
        vectors, tokens = (
            x.part(start, stop) if isinstance(x, _Column) else x[start:stop] for x in (self.vectors, self.tokens)
        )
        return Vectors(vectors, tokens, self.info, self.name)

    def some(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """`take` of up to `limit` texts, spread evenly."""
        return self.take(np.array(spread(len(self), limit)))


def check_alike(one: Vectors, other: Vectors) -> None:
    """Raises VectorsError unless what reads the vectors of `one` can read those of `other`."""
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("vectors and width (K, E)", one.shape, other.shape),
        ("text length", one.length, other.length),
        ("tokenizer", one.info.tokenizer, other.info.tokenizer),
        ("vocabulary", one.info.vocabulary, other.info.vocabulary),
        ("pad_id", one.info.pad_id, other.info.pad_id),
    )
    for what, ours, theirs in facts:
        # A tokenizer or a vocabulary that one side does not say is taken for that of the other.
        if ours != theirs and ours and theirs:
            raise VectorsError(f"{other.name}: {what} {theirs}, while {one.name} has {ours}; give vectors made in the same way")


def save_vectors(path: str | os.PathLike, vectors: Vectors) -> None:
    """Writes a .npz or .arrayrecord file, by the name's end; the latter text by text. bfloat16 is kept there and float32 in a .npz.

    Raises:
      VectorsError: the name ends otherwise.
    """
    path = Path(path)
    _require_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(vectors.vectors.dtype)
    if path.suffix == ".npz":
        stored, tokens = vectors.vectors[np.arange(len(vectors))], vectors.all_tokens()
        # A .npz knows NumPy's own types only.
        stored = stored.astype(np.float32) if dtype.kind != "f" else stored
        about: dict[str, Any] = dataclasses.asdict(vectors.info)
        np.savez(path, vectors=stored, tokens=tokens, **about)
        return
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for start in range(0, len(vectors), _PART):
            texts = np.arange(start, min(start + _PART, len(vectors)))
            for row, tokens in zip(vectors.vectors[texts], vectors.tokens[texts], strict=True):
                writer.write(row.tobytes() + tokens.astype(_TOKEN).tobytes())
    finally:
        writer.close()
    info = {
        "format": FORMAT,
        "texts": len(vectors),
        "shape": list(vectors.shape),
        "length": vectors.length,
        "dtype": dtype.name,
        "info": dataclasses.asdict(vectors.info),
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }
    about_path = path.with_suffix(".json")
    temporary = about_path.with_name(f"{about_path.name}.tmp")
    temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    temporary.replace(about_path)


def open_vectors(path: str | os.PathLike) -> Vectors:
    """The vectors in a file. Of a .npz all is read and looked at; of an ArrayRecord file, what is taken.

    Raises:
      VectorsError: it is absent, empty or damaged, holds no texts or something else, a vector is not finite, or an id is outside the
        vocabulary.
    """
    path = Path(path)
    _require_suffix(path)
    if not path.is_file():
        raise VectorsError(f"{path}: no such file")
    if not path.stat().st_size:
        raise VectorsError(f"{path}: an empty file")
    return _open_npz(path) if path.suffix == ".npz" else _open_records(path)


def verify_vectors(path: str | os.PathLike) -> None:
    """Reads every byte of an ArrayRecord file and compares checksums, which `open_vectors` does not take the time for.

    Raises:
      VectorsError: it is not what was written, or an id is outside the vocabulary.
    """
    vectors, path = open_vectors(path), Path(path)
    if path.suffix == ".arrayrecord":
        if json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"] != _sha256(path):
            raise VectorsError(f"{path}: the contents are not those that were written (sha256 differs); write it again")
        _require_ids(vectors.all_tokens(), vectors.info, vectors.name)


def _open_npz(path: Path) -> Vectors:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("one array, and no archive of arrays")
        with archive:
            stored = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VectorsError(f"{path}: cannot be read as a .npz file ({error})") from error
    absent = {"vectors", "tokens"} - stored.keys()
    if absent:
        raise VectorsError(
            f"{path}: holds no {' and no '.join(sorted(absent))}; there must be vectors [T, K, E] and tokens [T, L]"
        )
    vectors, tokens = stored["vectors"], stored["tokens"]
    fields: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(VectorsInfo)}
    try:
        info = VectorsInfo(**{name: kind(stored[name].item()) for name, kind in fields.items() if name in stored})
    except (TypeError, ValueError) as error:
        raise VectorsError(f"{path}: {', '.join(fields)} are one word or number each ({error})") from error
    return Vectors(vectors[:, None] if vectors.ndim == 2 else vectors, tokens, info, str(path))


def _open_records(path: Path) -> Vectors:
    about = path.with_suffix(".json")
    try:
        stored = json.loads(about.read_text(encoding="utf-8"))
        version, size, texts = stored["format"], stored["bytes"], int(stored["texts"])
        shape, length = tuple(map(int, stored["shape"])), int(stored["length"])
        dtype, info = np.dtype(jnp.dtype(stored["dtype"])), VectorsInfo(**stored["info"])
    except FileNotFoundError as error:
        raise VectorsError(f"{about}: no such file, so {path.name} was not written to its end; write it again") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise VectorsError(f"{about}: does not describe vectors ({type(error).__name__}: {error}); write them again") from error
    if version != FORMAT:
        raise VectorsError(f"{about}: vectors of format {version}, while this memjax reads format {FORMAT}; write them again")
    if path.stat().st_size != size:
        raise VectorsError(f"{path}: holds {path.stat().st_size} bytes, where {size} were written; write it again")
    try:
        records = _Records(path)
        found = len(records.source)
    except (RuntimeError, ValueError) as error:
        raise VectorsError(f"{path}: cannot be read ({error}); write it again") from error
    if found != texts:
        raise VectorsError(f"{path}: {found} records, where {about.name} counts {texts} texts; write it again")
    tokens = _Column(records, int(np.prod(shape)) * dtype.itemsize, _TOKEN, (texts, length))
    return Vectors(_Column(records, 0, dtype, (texts, *shape)), tokens, info, str(path))


def _require_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise VectorsError(f"{path}: vectors are in files that end in {' or '.join(SUFFIXES)}")


def _not_finite(vectors: np.ndarray) -> int:
    """Texts with a vector that holds NaN or infinity."""
    with np.errstate(over="ignore"):  # What float32 cannot hold counts as infinity.
        return int((~np.isfinite(vectors.astype(np.float32))).any(axis=(1, 2)).sum())


def _require_finite(bad: int, texts: int, name: str) -> None:
    if bad:
        raise VectorsError(f"{name}: the vectors of {bad} of {texts} texts hold NaN or infinity; leave those texts out")


def _require_ids(tokens: np.ndarray, info: VectorsInfo, name: str) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    least = min(info.pad_id, 0)
    if low < least or (info.vocabulary and high >= info.vocabulary):
        raise VectorsError(f"{name}: ids {low} to {high} are not all of the vocabulary of {info.vocabulary or high + 1}")


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
