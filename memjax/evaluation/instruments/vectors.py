"""Vectors of texts with their tokens, in memory, in a .npz file, or in an ArrayRecord file.

Shapes: T text, K vector of a text, E its width, L token of a text, B texts of a batch.

Any encoder may have made them. An ArrayRecord file may be larger than memory.

A `.npz` file has `vectors` float [T, K, E], or [T, E] where K is 1, `tokens` integer [T, L], and
any of the fields of `VectorsInfo` under their names. In an `.arrayrecord` file record t is text t:
K * E little-endian numbers, then L int32. A `.json` file of the same name is written last. It has
`texts`, `shape` [K, E], `length`, `dtype`, `info` (the fields), `files` and `format`.
"""

import dataclasses
import functools
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp  # For bfloat16, which NumPy lacks.
import numpy as np
from jaxtyping import Float, Int

from memjax.data.records import Records, write_records
from memjax.errors import MemjaxError
from memjax.files import atomic_file, entries, read_manifest, sealed, write_json
from memjax.objectives import SpecialIds
from memjax.progress import track

FORMAT = 1
SUFFIXES = (".npz", ".arrayrecord")
_TOKEN = np.dtype("<i4")
_REMEDY = "Write the vectors again"
_PART = 4096
"""Texts per read or write."""


class VectorsError(MemjaxError):
    """Vectors are absent, damaged or of other texts than those in use; the message names a file."""


@dataclasses.dataclass(frozen=True)
class VectorsInfo:
    """Description of vectors and tokens. A .npz file may omit every field."""

    encoder: str = ""
    """Name of the encoder."""
    vocabulary: int = 0
    """V; 0 stands for the largest id plus one."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer; empty if unknown."""
    pad_id: int = -1
    """Id of padding; -1, which is not an id, for texts without padding or padded with -1."""
    bos_id: int = -1
    """Id that an autoregressive decoder reads before the first token.

    -1 is the least id that is not `pad_id`.
    """
    first_content: int = 0
    """Least id of text; ids below are reserved."""

    @property
    def ids(self) -> SpecialIds:
        """Return the reserved ids, in the form that objectives take."""
        start = self.bos_id if self.bos_id >= 0 else int(self.pad_id == 0)
        return SpecialIds(self.pad_id, start, start, max(start, self.first_content - 1))


class _Records:
    """The records of one file as structs of `vectors` [K, E] and `tokens` [L]."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path, self.dtype = path, dtype
        self.source = Records([path], error=VectorsError)
        # Vectors and tokens of a batch are read one after the other.
        self._last: tuple[list[int], np.ndarray] = ([], np.empty(0, dtype))

    def read(self, numbers: list[int]) -> np.ndarray:
        """Return the records of these numbers."""
        if self._last[0] != numbers:
            try:
                records = b"".join(self.source.read(numbers))
            except VectorsError as error:
                raise VectorsError(f"{error}. {_REMEDY}") from error
            VectorsError.require(
                len(records) == len(numbers) * self.dtype.itemsize,
                f"{self.path}: a record is of another size. {_REMEDY}",
            )
            self._last = numbers, np.frombuffer(records, self.dtype)
        return self._last[1]


@dataclasses.dataclass(frozen=True)
class _Column:
    """One field of records, which is read like an array indexed by numbers of texts."""

    records: _Records
    field: str
    numbers: range
    """The record of each text."""

    @property
    def dtype(self) -> np.dtype:
        return self.records.dtype[self.field].base

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.numbers), *self.records.dtype[self.field].shape

    def __getitem__(self, indices: np.ndarray | slice) -> Any:
        if isinstance(indices, slice):
            return dataclasses.replace(self, numbers=self.numbers[indices])
        return self.records.read([self.numbers[i] for i in indices])[self.field]


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Texts and their vectors. Columns may be on disk; `take` reads the requested texts only.

    Raises:
      VectorsError: shapes are inconsistent, there are no texts, or, for columns in memory, a vector
        is not finite or an id is outside the vocabulary.
    """

    vectors: Float[np.ndarray, "T K E"] | _Column
    tokens: Int[np.ndarray, "T L"] | _Column
    info: VectorsInfo = VectorsInfo()
    name: str = "vectors"
    """Name of the file, for messages."""

    def __post_init__(self) -> None:
        vectors, tokens = self.vectors.shape, self.tokens.shape
        if len(vectors) != 3 or len(tokens) != 2 or 0 in vectors[1:] or 0 in tokens[1:]:
            raise VectorsError(
                f"{self.name}: vectors {list(vectors)} and tokens {list(tokens)}, expected"
                " [T, K, E] and [T, L]"
            )
        VectorsError.require(
            vectors[0] == tokens[0],
            f"{self.name}: vectors of {vectors[0]} texts and tokens of {tokens[0]}, expected"
            " equal numbers",
        )
        VectorsError.require(vectors[0], f"{self.name}: no texts, expected at least one")
        if isinstance(self.vectors, np.ndarray) and isinstance(self.tokens, np.ndarray):
            if not jnp.issubdtype(self.vectors.dtype, jnp.floating) or not np.issubdtype(
                self.tokens.dtype, np.integer
            ):
                kinds = f"vectors of {self.vectors.dtype} and tokens of {self.tokens.dtype}"
                raise VectorsError(
                    f"{self.name}: {kinds}, expected vectors of floats and tokens of integers"
                )
            parts = (self.vectors[i : i + _PART] for i in range(0, len(self), _PART))
            _require_finite(parts, len(self), self.name)
            low, high = int(self.tokens.min()), int(self.tokens.max())
            vocabulary = self.info.vocabulary or high + 1
            if low < min(self.info.pad_id, 0) or high >= vocabulary:
                raise VectorsError(
                    f"{self.name}: ids {low} to {high}, expected ids of the vocabulary of"
                    f" {vocabulary}"
                )

    def __len__(self) -> int:
        return self.vectors.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (K, E)."""
        return self.vectors.shape[1], self.vectors.shape[2]

    @property
    def length(self) -> int:
        """Return L."""
        return self.tokens.shape[1]

    @functools.cached_property
    def vocabulary(self) -> int:
        """Return V: the given one, or the largest id plus one."""
        return self.info.vocabulary or int(self.all_tokens().max()) + 1

    def take(
        self, indices: Int[np.ndarray, " B"]
    ) -> tuple[Float[np.ndarray, "B K E"], Int[np.ndarray, "B L"]]:
        """Return vectors in float32 and tokens of some texts.

        Raises:
          VectorsError: they cannot be read, or one is not finite.
        """
        vectors, tokens = self.vectors[indices], self.tokens[indices]
        if isinstance(self.vectors, _Column):
            _require_finite([vectors], len(vectors), self.name)
        return vectors.astype(np.float32), tokens.astype(np.int32)

    def all_tokens(self) -> Int[np.ndarray, "T L"]:
        """Return the tokens of all texts; for a file, this reads all of it."""
        parts = (np.arange(i, min(i + _PART, len(self))) for i in range(0, len(self), _PART))
        return np.concatenate([self.tokens[part].astype(np.int32) for part in parts])

    def part(self, start: int, stop: int) -> "Vectors":
        """Return the texts start to stop - 1 as a view.

        Raises:
          VectorsError: there are none.
        """
        VectorsError.require(
            0 <= start < stop <= len(self),
            f"{self.name}: {len(self)} texts, expected texts {start} to {stop}. Pass more texts",
        )
        return Vectors(self.vectors[start:stop], self.tokens[start:stop], self.info, self.name)


def check_alike(one: Vectors, other: Vectors) -> None:
    """Raise VectorsError unless a reader of the vectors of `one` can read those of `other`."""
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("vectors and width (K, E)", one.shape, other.shape),
        ("text length", one.length, other.length),
        ("tokenizer", one.info.tokenizer, other.info.tokenizer),
        ("vocabulary", one.info.vocabulary, other.info.vocabulary),
        ("pad_id", one.info.pad_id, other.info.pad_id),
    )
    for what, ours, theirs in facts:
        # An unknown tokenizer or vocabulary of one side counts as equal to the other's.
        if ours != theirs and ours and theirs:
            raise VectorsError(
                f"{other.name}: {what} {theirs}, expected {ours} as in {one.name}. Pass vectors of"
                " the same encoder"
            )


def save_vectors(path: str | os.PathLike, vectors: Vectors) -> None:
    """Write a .npz or .arrayrecord file, by the suffix of the name; the latter text by text.

    The latter keeps bfloat16; a .npz file has float32.

    Raises:
      VectorsError: the name has another suffix.
    """
    path = Path(path)
    _require_suffix(path)
    dtype = np.dtype(vectors.vectors.dtype)
    if path.suffix == ".npz":
        stored, tokens = vectors.vectors[np.arange(len(vectors))], vectors.all_tokens()
        # A .npz file has NumPy's own types only.
        stored = stored.astype(np.float32) if dtype.kind != "f" else stored
        about: dict[str, Any] = dataclasses.asdict(vectors.info)
        with atomic_file(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, vectors=stored, tokens=tokens, **about)
        return
    with write_records(path) as writer:
        for start in track(range(0, len(vectors), _PART), "vectors"):
            texts = np.arange(start, min(start + _PART, len(vectors)))
            for row, tokens in zip(vectors.vectors[texts], vectors.tokens[texts], strict=True):
                writer.write(row.tobytes() + tokens.astype(_TOKEN).tobytes())
    manifest = {
        "format": FORMAT,
        "texts": len(vectors),
        "shape": list(vectors.shape),
        "length": vectors.length,
        "dtype": dtype.name,
        "info": dataclasses.asdict(vectors.info),
        "files": entries([path]),
    }
    write_json(path.with_suffix(".json"), sealed(manifest))


def open_vectors(path: str | os.PathLike) -> Vectors:
    """Open the vectors in a file.

    Raises:
      VectorsError: it is absent, empty or damaged, has no texts or other contents, a vector is not
        finite, or an id is outside the vocabulary.
    """
    path = Path(path)
    _require_suffix(path)
    VectorsError.require(path.is_file(), f"{path}: no such file")
    VectorsError.require(path.stat().st_size, f"{path}: an empty file, expected vectors and tokens")
    return _open_npz(path) if path.suffix == ".npz" else _open_records(path)


def _open_npz(path: Path) -> Vectors:
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored = dict(archive)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise VectorsError(f"{path}: cannot be read as a .npz file ({error})") from error
    absent = {"vectors", "tokens"} - stored.keys()
    if absent:
        raise VectorsError(
            f"{path}: no {' and no '.join(sorted(absent))}, expected vectors [T, K, E] and tokens"
            " [T, L]"
        )
    vectors, tokens = stored["vectors"], stored["tokens"]
    fields: dict[str, Any] = {
        field.name: type(field.default) for field in dataclasses.fields(VectorsInfo)
    }
    try:
        info = VectorsInfo(
            **{name: kind(stored[name].item()) for name, kind in fields.items() if name in stored}
        )
    except (TypeError, ValueError) as error:
        raise VectorsError(
            f"{path}: {', '.join(fields)}: {error}, expected one word or number each"
        ) from error
    return Vectors(vectors[:, None] if vectors.ndim == 2 else vectors, tokens, info, str(path))


def _open_records(path: Path) -> Vectors:
    stored = read_manifest(path.with_suffix(".json"), (FORMAT,), _REMEDY, VectorsError)
    try:
        vectors = ("vectors", jnp.dtype(stored["dtype"]), tuple(map(int, stored["shape"])))
        dtype = np.dtype([vectors, ("tokens", _TOKEN, (int(stored["length"]),))])
        texts, info = int(stored["texts"]), VectorsInfo(**stored["info"])
    except (ValueError, TypeError, KeyError) as error:
        raise VectorsError(
            f"{path.with_suffix('.json')}: not a manifest of vectors ({type(error).__name__}:"
            f" {error}). {_REMEDY}"
        ) from error
    records = _Records(path, dtype)
    found = len(records.source)
    VectorsError.require(
        found == texts, f"{path}: {found} texts, expected {texts} by the manifest. {_REMEDY}"
    )
    columns = [_Column(records, name, range(texts)) for name in ("vectors", "tokens")]
    return Vectors(columns[0], columns[1], info, str(path))


def _require_suffix(path: Path) -> None:
    VectorsError.require(
        path.suffix in SUFFIXES, f"{path}: expected a file with the suffix {' or '.join(SUFFIXES)}"
    )


def _require_finite(parts: Iterable[np.ndarray], texts: int, name: str) -> None:
    """Raise VectorsError if a text has NaN or infinity in a vector."""
    with np.errstate(over="ignore"):  # Numbers beyond float32 count as infinity.
        finite = (np.isfinite(part.astype(np.float32)).all(axis=(1, 2)) for part in parts)
        bad = sum(int((~one).sum()) for one in finite)
    if bad:
        raise VectorsError(
            f"{name}: NaN or infinity in the vectors of {bad} of {texts} texts, expected finite"
            " numbers. Leave those texts out"
        )
