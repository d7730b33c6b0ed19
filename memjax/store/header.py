"""The header of a store: what its data files hold, checked field by field before any of them is opened.

A store comes from anywhere, so nothing in its header is trusted: every field has a type and bounds, the sizes of the files follow from the
counts by Python's own integers, and reading a store opens no name or path in it.

Shapes: N chunk, K vector of a chunk, E its width, L token of a chunk, D document.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from memjax.store.rounding import DTYPES, SCALE

FORMAT = 1
HEADER = "store.json"
HEADER_LIMIT = 2**16
"""Bytes of a header; what grows with the text stands in data files."""
SPAN_FIELDS = ("document", "token_start", "tokens", "byte_start", "byte_end")
DOCUMENT_FIELDS = ("tokens", "bytes", "start", "name_end")
NUMBER_BYTES = 8
"""Of a span or a document: int64."""
LARGEST = 2**53
"""Of any count: sums of a few stay far below 2**63, and JSON keeps them exact."""
DOCUMENTS_LIMIT, NAMES_LIMIT, NAME_LIMIT = 2**20, 2**26, 1024
"""Documents, bytes of all their names, and characters of one."""
_WORD = 256
_MEMBERS = 64
_DIGITS = 20
_DEPTH = 3
_TOP = ("format", "model", "tokenizer", "vocabulary", "dtype", "shape", "chunk_length", "chunks", "documents", "files")
_MODEL = ("family", "stage", "step", "settings", "sha256")
_HINT = "checkpoint"
"""A member of `model` that may be absent."""


class StoreError(ValueError):
    """A store is absent, damaged, too large, of another model or tokenizer, or given what it cannot hold; the message names it."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Which encoder and which tokenizer made memories."""

    family: str
    stage: str
    step: int
    settings: Mapping[str, Any]
    """Those that say, with its parameters, which function the encoder is (`encoder_settings`)."""
    sha256: str
    """Of the encoder's parameters."""
    tokenizer: str
    """Fingerprint."""
    vocabulary: int
    chunk_length: int
    """L."""
    shape: tuple[int, int]
    """(K, E)."""
    checkpoint: str = dataclasses.field(default="", compare=False)
    """Where the encoder was, as it was given: a hint, shown, and opened by `memjax.load` alone."""

    def require_same(self, other: "Origin", where: str) -> None:
        """Raises StoreError, about the store `where`, unless `other` has the same encoder and tokenizer; stage and step may differ."""
        remedy = "give the stage that compressed it, or compress the text again"
        if self.tokenizer != other.tokenizer:
            raise StoreError(
                f"{where}: text in the words of tokenizer {self.tokenizer}, and stage {other.stage} has {other.tokenizer}; {remedy}"
            )
        differ: list[tuple[str, Any, Any]] = [
            (f"config.model.{key}", self.settings.get(key), other.settings.get(key))
            for key in {**self.settings, **other.settings}
        ]
        differ += [
            ("vocabulary", self.vocabulary, other.vocabulary),
            ("tokens of a chunk", self.chunk_length, other.chunk_length),
            ("vectors and width", self.shape, other.shape),
            ("sha256 of parameters", self.sha256, other.sha256),
        ]
        for what, theirs, ours in differ:
            if theirs != ours:
                raise StoreError(
                    f"{where}: compressed by the encoder of stage {self.stage} ({self.family}, step {self.step}), and that of stage"
                    f" {other.stage} ({other.family}, step {other.step}) is another: {what} {_short(theirs)} there,"
                    f" {_short(ours)} here; {remedy}"
                )


@dataclasses.dataclass(frozen=True)
class File:
    """A data file."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Header:
    """What `store.json` says."""

    origin: Origin
    dtype: str
    chunks: int
    """N."""
    documents: int
    """D."""
    files: Mapping[str, File]

    def to_bytes(self) -> bytes:
        """The file's contents."""
        origin = self.origin
        value = {
            "format": FORMAT,
            "model": {key: getattr(origin, key) for key in _MODEL}
            | {"settings": dict(origin.settings)}
            | ({_HINT: origin.checkpoint} if origin.checkpoint else {}),
            "tokenizer": origin.tokenizer,
            "vocabulary": origin.vocabulary,
            "dtype": self.dtype,
            "shape": list(origin.shape),
            "chunk_length": origin.chunk_length,
            "chunks": self.chunks,
            "documents": self.documents,
            "files": {name: dataclasses.asdict(file) for name, file in self.files.items()},
        }
        return (json.dumps(value, indent=2) + "\n").encode()


def file_sizes(origin: Origin, dtype: str, chunks: int, documents: int) -> dict[str, int | None]:
    """Bytes of every data file that a store of such counts has; None where the header alone says how many."""
    vectors, width = origin.shape
    sizes: dict[str, int | None] = {
        "memories.bin": chunks * vectors * width * DTYPES[dtype].itemsize,
        "spans.bin": chunks * len(SPAN_FIELDS) * NUMBER_BYTES,
        "documents.bin": documents * len(DOCUMENT_FIELDS) * NUMBER_BYTES,
        "names.bin": None,
    }
    return sizes | ({"scales.bin": chunks * vectors * SCALE.itemsize} if dtype == "int8" else {})


def parse_header(data: bytes, where: str) -> Header:
    """What a header says.

    Args:
      data: the contents of `store.json`.
      where: the file, for messages.

    Raises:
      StoreError: it is too long, no JSON, of another format, or a field is absent, unknown, of another type or out of bounds.
    """
    if len(data) > HEADER_LIMIT:
        raise StoreError(f"{where}: {len(data)} bytes, where a header has {HEADER_LIMIT} at most; this is no store of memjax")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_constant
        )
    except RecursionError:
        raise StoreError(f"{where}: nested too deeply to be a header of a store") from None
    except ValueError as error:
        raise StoreError(f"{where}: does not describe a store ({error})") from error
    try:
        return _header(value)
    except _Wrong as error:
        raise StoreError(f"{where}: {error}; the file is damaged or no header of a store") from error


class _Wrong(ValueError):
    """A field is not what it should be."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of a header")


def _header(value: Any) -> Header:
    if isinstance(value, dict) and type(value.get("format")) is int and value["format"] != FORMAT:
        raise _Wrong(f"a store of format {value['format']}, while this memjax reads format {FORMAT}")
    top = _members(value, _TOP, "the header")
    _whole(top["format"], "format", FORMAT, FORMAT)
    hinted = isinstance(top["model"], dict) and _HINT in top["model"]
    model = _members(top["model"], (*_MODEL, _HINT) if hinted else _MODEL, "model")
    shape = top["shape"]
    if not isinstance(shape, list) or len(shape) != 2:
        raise _Wrong("shape must be [vectors, width]")
    if not isinstance(model["settings"], dict):
        raise _Wrong("model.settings must be an object")
    _plain(model["settings"], "model.settings", _DEPTH)
    origin = Origin(
        family=_word(model["family"], "model.family"),
        stage=_word(model["stage"], "model.stage"),
        step=_whole(model["step"], "model.step", 0, LARGEST),
        settings=model["settings"],
        sha256=_hex(model["sha256"], "model.sha256", 64),
        tokenizer=_hex(top["tokenizer"], "tokenizer", 16),
        vocabulary=_whole(top["vocabulary"], "vocabulary", 1, 2**31),
        chunk_length=_whole(top["chunk_length"], "chunk_length", 1, 2**31),
        shape=(_whole(shape[0], "shape[0]", 1, 2**20), _whole(shape[1], "shape[1]", 1, 2**20)),
        checkpoint=_word(model[_HINT], "model.checkpoint", limit=NAME_LIMIT) if hinted else "",
    )
    dtype = _word(top["dtype"], "dtype")
    if dtype not in DTYPES:
        raise _Wrong(f"dtype must be one of {', '.join(DTYPES)}")
    chunks = _whole(top["chunks"], "chunks", 0, 2**40)
    documents = _whole(top["documents"], "documents", 0, DOCUMENTS_LIMIT)
    sizes = file_sizes(origin, dtype, chunks, documents)
    listed = _members(top["files"], sizes, "files")
    return Header(origin, dtype, chunks, documents, {name: _file(listed[name], name, size) for name, size in sizes.items()})


def _file(value: Any, name: str, size: int | None) -> File:
    members = _members(value, ("bytes", "sha256"), f"files.{name}")
    found = _whole(members["bytes"], f"files.{name}.bytes", 0, 2**62 if size is not None else NAMES_LIMIT)
    if size is not None and found != size:
        raise _Wrong(f"files.{name}.bytes is {found}, where the counts make {size}")
    return File(found, _hex(members["sha256"], f"files.{name}.sha256", 64))


def _short(value: Any) -> str:
    return value[:16] if isinstance(value, str) else repr(value)[:120]


def _members(value: Any, keys: Iterable[str], name: str) -> dict[str, Any]:
    """`value` if it is an object of exactly these keys."""
    keys = set(keys)
    if not isinstance(value, dict):
        raise _Wrong(f"{name} must be an object")
    if value.keys() != keys:
        absent = ", ".join(sorted(keys - value.keys()))
        unknown = ", ".join(repr(key[:_MEMBERS]) for key in sorted(value.keys() - keys)[:3])
        raise _Wrong(f"{name} lacks {absent}" if absent else f"{name} has the unknown {unknown}")
    return value


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _Wrong(f"{name} must be a whole number from {low} to {high}")
    return value


def _word(value: Any, name: str, least: int = 1, limit: int = _WORD) -> str:
    if not isinstance(value, str) or not least <= len(value) <= limit or not value.isprintable():
        raise _Wrong(f"{name} must be a word of at most {limit} printable characters")
    return value


def _hex(value: Any, name: str, digits: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise _Wrong(f"{name} must be {digits} hex digits")
    return value


def _plain(value: Any, name: str, depth: int) -> None:
    """Raises _Wrong unless `value` is made of a few words, numbers, and at most `depth` layers of objects and lists."""
    if isinstance(value, (dict, list)):
        if not depth or len(value) > _MEMBERS:
            raise _Wrong(f"{name} has too many layers or members")
        for key in value if isinstance(value, dict) else ():
            _word(key, f"a name in {name}")
        for part in value.values() if isinstance(value, dict) else value:
            _plain(part, name, depth - 1)
    elif isinstance(value, str):
        _word(value, name, least=0)
    elif type(value) not in (bool, int, float) or abs(value) > LARGEST:
        raise _Wrong(f"{name} must hold words and numbers")
