"""The records of a store beside its memories: encoder and tokenizer, documents, and spans.

Shapes: N chunk, K vector of a chunk, E its width.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from memjax.checkpoints.rounding import DTYPES, SCALES, stored_width
from memjax.errors import MemjaxError
from memjax.files.json_values import LARGEST
from memjax.models.memory import KINDS, VECTORS

INTEGER = np.dtype("<i8")
SPAN_FIELDS = ("document", "token_start", "tokens", "byte_start", "byte_end")
NAME_LIMIT = 1024
"""Characters of a document's name and of a path, at most."""
_DEPTH = 4
"""Levels of settings."""
_PATTERNS = {
    "family": r"\w{1,64}",
    "stage": r".{1,256}",
    "sha256": "[0-9a-f]{64}",
    "tokenizer": "[0-9a-f]{16}",
    "checkpoint": f".{{0,{NAME_LIMIT}}}",
    "kind": "|".join(KINDS),
}
_INTEGERS = {"step": (0, LARGEST), "vocabulary": (1, 2**31), "chunk_length": (1, 2**31)}
LEAF = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""The name of a leaf."""
FORMAT = 2
"""The format that is written; all before it are read."""
DOCUMENTS_LIMIT, NAMES_LIMIT = 2**20, 2**26
"""Documents, and bytes of their names, at most."""
CHUNKS_LIMIT = 2**22
"""Chunks at most, of memories that have a row per document: no row bounds their number."""
SCALE_SUFFIX = ".scale"
SAFETENSORS = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int8": "I8",
    "int64": "I64",
    "uint8": "U8",
}
"""Names of dtypes in safetensors by NumPy's."""
Tensors = dict[str, np.ndarray]


class StoreError(MemjaxError):
    """A store is damaged, too large or of another encoder, or cannot hold given memories."""


@dataclasses.dataclass(frozen=True)
class EncoderProvenance:
    """The encoder and the tokenizer that made memories.

    Attributes:
      family: family of the stage that trained the encoder.
      stage: name of that stage.
      step: its number of steps.
      settings: the settings that fix, with its parameters, the encoder's function
        (`encoder_settings`).
      sha256: digest of the encoder's parameters.
      tokenizer: fingerprint of the tokenizer.
      vocabulary: number of its ids.
      chunk_length: tokens per chunk; fewer than the `chunk_length` of `settings` in a store of
        shorter chunks.
      leaves: shape of a row of each leaf; vectors have [K, E].
      kind: kind of the memories.
      checkpoint: path of the stage when it wrote; a hint for messages, never opened.
    """

    family: str
    stage: str
    step: int
    settings: Mapping[str, Any]
    sha256: str
    tokenizer: str
    vocabulary: int
    chunk_length: int
    leaves: Mapping[str, tuple[int, ...]]
    kind: str = "bank"
    checkpoint: str = dataclasses.field(default="", compare=False)

    @classmethod
    def from_json(cls, value: Any) -> "EncoderProvenance":
        """Return the provenance that `value` describes; trusts nothing in it.

        Raises:
          StoreError: a field is absent, unknown, of another type or out of bounds.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        StoreError.require(
            isinstance(value, dict) and value.keys() == fields,
            f"encoder: expected an object of {', '.join(sorted(fields))}",
        )
        for name, pattern in _PATTERNS.items():
            text = value[name]
            StoreError.require(
                isinstance(text, str) and re.fullmatch(pattern, text) and text.isprintable(),
                f"encoder.{name}: expected printable text that matches {pattern}",
            )
        for name, (low, high) in _INTEGERS.items():
            _require_integer(value[name], f"encoder.{name}", low, high)
        settings, leaves = value["settings"], value["leaves"]
        StoreError.require(
            isinstance(settings, dict) and _depth(settings) <= _DEPTH,
            f"encoder.settings: expected an object of at most {_DEPTH} levels",
        )
        StoreError.require(
            isinstance(leaves, dict) and 1 <= len(leaves) <= 64,
            "encoder.leaves: expected an object of 1 to 64 shapes",
        )
        for name, shape in leaves.items():
            StoreError.require(
                LEAF.fullmatch(name) and isinstance(shape, list) and 1 <= len(shape) <= 4,
                "encoder.leaves: expected names and shapes of 1 to 4 axes",
            )
            for size in shape:
                _require_integer(size, f"encoder.leaves.{name}", 1, 2**20)
        return cls(**value | {"leaves": {name: tuple(shape) for name, shape in leaves.items()}})

    def of_vectors(self, count: int) -> "EncoderProvenance":
        """Return the provenance of memories of which the first vectors alone are kept.

        Raises:
          StoreError: the encoder has fewer vectors, or `count` is less than 1.
        """
        shape = self.leaves.get(VECTORS, (0,))
        StoreError.require(
            1 <= count <= shape[0],
            f"vectors: {count}, expected a number from 1 to the {shape[0]} of"
            " config.model.memory_vectors. Keep one of these numbers",
        )
        leaves = {**self.leaves, VECTORS: (count, *shape[1:])}
        return dataclasses.replace(self, leaves=leaves)

    def of_length(self, tokens: int) -> "EncoderProvenance":
        """Return the provenance of memories of shorter chunks.

        Raises:
          StoreError: the encoder reads fewer tokens, or `tokens` is less than 1.
        """
        StoreError.require(
            1 <= tokens <= self.chunk_length,
            f"chunk_length: {tokens}, expected a number from 1 to the {self.chunk_length} of"
            " config.model.chunk_length. Cut the text at one of these numbers",
        )
        return dataclasses.replace(self, chunk_length=tokens)

    def require_same(self, other: "EncoderProvenance", where: str, fewer: bool = False) -> None:
        """Raise StoreError unless `other` has the same encoder and the same tokenizer.

        Args:
          other: the provenance that is expected; its stage and step may differ.
          where: the store, for messages.
          fewer: whether memories may lack the last of the encoder's vectors, and may be of shorter
            chunks.
        """
        own, most = self.leaves.get(VECTORS, (0,))[0], other.leaves.get(VECTORS, (0,))[0]
        if fewer and 1 <= own < most:
            other = other.of_vectors(own)
        whole = other.chunk_length == self.settings.get("chunk_length")
        if fewer and whole and 1 <= self.chunk_length < other.chunk_length:
            other = other.of_length(self.chunk_length)
        remedy = (
            f"Use stage {self.stage}{f' ({self.checkpoint})' if self.checkpoint else ''}, which"
            " compressed the text, or compress the text again."
        )
        StoreError.require(
            self.tokenizer == other.tokenizer,
            f"{where}: tokenizer {self.tokenizer}, expected {other.tokenizer} of stage"
            f" {other.stage}. {remedy}",
        )
        pairs = [
            (f"config.model.{_short(key)}", self.settings.get(key), other.settings.get(key))
            for key in {**self.settings, **other.settings}
        ] + [
            (name, getattr(self, name), getattr(other, name))
            for name in ("vocabulary", "chunk_length", "kind", "leaves", "sha256")
        ]
        for name, found, expected in pairs:
            StoreError.require(
                found == expected,
                f"{where}: made by the encoder of stage {self.stage} ({self.family}, step"
                f" {self.step}), expected that of stage {other.stage} ({other.family}, step"
                f" {other.step}): {name} is {_short(found)}, expected {_short(expected)}. {remedy}",
            )


class StoredDocument(NamedTuple):
    """A text whose chunks a store holds."""

    name: str
    """A label, never opened."""
    tokens: int
    bytes: int
    """Bytes of UTF-8."""
    start: int = 0
    """Byte of the source where the text begins."""


def check_documents(documents: Sequence[StoredDocument]) -> None:
    """Raise StoreError if a document's name or sizes are impossible."""
    for name, *sizes in documents:
        if not 0 < len(name) <= NAME_LIMIT or not name.isprintable():
            raise StoreError(
                f"document {name[:60]!r}: expected a name of 1 to {NAME_LIMIT} printable characters"
            )
        if not all(0 <= size <= LARGEST for size in sizes):
            raise StoreError(f"document {name}: sizes {sizes}, expected 0 to {LARGEST}")


def name_bytes(documents: Sequence[StoredDocument]) -> int:
    """Return the bytes of the documents' names, one per line."""
    return sum(len(document.name.encode()) + 1 for document in documents)


def documents_of(sizes: Int[np.ndarray, "D 3"], names: bytes) -> list[StoredDocument]:
    """Return documents of their sizes and of the lines of their names, checked."""
    rows, lines = sizes.tolist(), names.decode().split("\n")
    lines = lines if rows else []
    documents = [StoredDocument(name, *row) for name, row in zip(lines, rows, strict=True)]
    check_documents(documents)
    return documents


def sizes_of(documents: Sequence[StoredDocument]) -> Int[np.ndarray, "D 3"]:
    """Return tokens, bytes and first byte of documents."""
    return np.array([document[1:] for document in documents], INTEGER).reshape(-1, 3)


def check_spans(
    spans: Int[np.ndarray, "N 5"], documents: Sequence[StoredDocument], length: int
) -> None:
    """Raise StoreError if a chunk is of no document, outside its own, or longer than `length`."""
    sizes = sizes_of(documents)
    wrong = ((spans < 0) | (spans > LARGEST)).any(axis=1) | (spans[:, 0] >= len(documents))
    if not wrong.any():
        document, token, tokens, first, last = spans.T
        size, text_bytes, start = sizes[document].T
        wrong = (tokens < 1) | (tokens > length) | (token + tokens > size)
        wrong |= (first < start) | (last < first) | (last > start + text_bytes)
    if wrong.any():
        at = int(wrong.argmax())
        fields = zip(SPAN_FIELDS, spans[at].tolist(), strict=True)
        raise StoreError(
            f"chunk {at} lies outside its document or has more than {length} tokens"
            f" ({', '.join(f'{name} {value}' for name, value in fields)})"
        )


class Metadata(NamedTuple):
    """Format, dtype, encoder and counts in the metadata of a file."""

    format: int
    dtype: str
    encoder: EncoderProvenance
    chunks: int
    documents: int


def read_metadata(info: Any, sizes: Mapping[str, int]) -> Metadata:
    """Return what the metadata describe.

    Args:
      info: JSON of the metadata, which may be any.
      sizes: first size of each tensor, from which format 1 has its counts.

    Raises:
      StoreError: a field is absent, of another type or out of bounds.
    """
    StoreError.require(
        isinstance(info, dict) and {"format", "dtype", "encoder"} <= info.keys(),
        "metadata without format, dtype and encoder",
    )
    made = info["format"]
    StoreError.require(
        type(made) is int and 1 <= made <= FORMAT,
        f"format {str(made)[:20]}, while this memjax reads 1 to {FORMAT}",
    )
    encoder = EncoderProvenance.from_json(info["encoder"])
    names = {"chunks": "spans", "documents": "documents"}
    counts = {
        name: sizes.get(tensor, 0) if made == 1 else info.get(name)
        for name, tensor in names.items()
    }
    limit = LARGEST if encoder.kind == "bank" or made == 1 else CHUNKS_LIMIT
    _require_integer(counts["chunks"], "chunks", 0, limit)
    _require_integer(counts["documents"], "documents", 0, DOCUMENTS_LIMIT)
    return Metadata(made, str(info["dtype"])[:20], encoder, **counts)


def leaf_rows(
    provenance: EncoderProvenance, dtype: str
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of a row of each stored leaf.

    Raises:
      StoreError: the dtype is unknown.
    """
    StoreError.require(dtype in DTYPES, f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
    rows: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        name: (DTYPES[dtype], (*shape[:-1], stored_width(shape[-1], dtype)))
        for name, shape in provenance.leaves.items()
    }
    if dtype in SCALES:
        scale = SCALES[dtype]
        rows |= {name + SCALE_SUFFIX: (scale, shape[:-1]) for name, (_, shape) in rows.items()}
    return rows


def tensor_layout(
    info: Metadata, sizes: Mapping[str, int]
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor of a file.

    Args:
      info: its metadata.
      sizes: first size of each tensor: compressed bytes may be any number.
    """
    count = info.chunks if info.encoder.kind == "bank" else info.documents
    rows = leaf_rows(info.encoder, info.dtype)
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        f"leaf.{name}": (kind, (count, *shape)) for name, (kind, shape) in rows.items()
    }
    names = sizes.get("names", 0)
    if info.format == 1:
        StoreError.require(
            names <= NAMES_LIMIT * min(info.documents, 1),
            f"{info.documents} documents with {names} bytes of names",
        )
        layout["spans"] = INTEGER, (info.chunks, len(SPAN_FIELDS))
        layout["documents"] = INTEGER, (info.documents, len(StoredDocument._fields) - 1)
        layout["names"] = np.dtype(np.uint8), (names,)
        return layout
    for name in ("spans", "documents", "names"):
        layout[name] = np.dtype(np.uint8), (sizes.get(name, 0),)
    return layout


def digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of the metadata's text and of all tensors."""
    hashed = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        hashed.update(f"\n{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        hashed.update(tensors[name].reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _require_integer(value: Any, name: str, low: int, high: int) -> None:
    """Raise StoreError unless `value` is an integer from `low` to `high`."""
    StoreError.require(
        type(value) is int and low <= value <= high,
        f"{name}: expected an integer from {low} to {high}",
    )


def _short(value: Any) -> str:
    return value[:40] if isinstance(value, str) and value.isprintable() else repr(value)[:120]


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)
