"""A store of several files, which processes write part by part.

    part-00000.store, ...   parts, each a store of its own (store_file.py)
    store.json              their sizes and checksums, written when all of them are there
    unfinished.json         while parts are missing: the encoder, the text, and how many parts

Documents and chunks of a part come after those of the part before. Each file appears whole, so a
process that is killed loses no part, and the same work resumes. Further text becomes further parts,
and the store stays as it was until they are all there.
"""

import dataclasses
from pathlib import Path
from typing import Any

from memjax.checkpoints.store_file import Contents, read_store, write_store
from memjax.checkpoints.store_records import EncoderProvenance, StoreError
from memjax.errors import few
from memjax.files import (
    check_seal,
    entries,
    new_folder,
    read_json,
    read_manifest,
    sealed,
    verify,
    write_json,
)

MANIFEST, UNFINISHED = "store.json", "unfinished.json"
FORMAT = 1
PARTS_LIMIT = 512
"""Parts at most: each holds a file open while its store is."""
_REMEDY = "Restore the file, or compress the text again into another folder"
_PLAN = {"format": (FORMAT,), "text": str, "dtype": str, "first": int, "parts": int}
"""The shape of `unfinished.json`, beside the encoder."""


@dataclasses.dataclass(frozen=True)
class StoreFolder:
    """A store of which a text becomes further parts; made by `begin`.

    Attributes:
      path: the folder.
      provenance: the encoder and the tokenizer.
      dtype: how numbers are stored.
      text: 32 hex digits or so that identify the text and how it is cut.
      parts: numbers of the parts that the text becomes; none if they are all in the store.
    """

    path: Path
    provenance: EncoderProvenance
    dtype: str
    text: str
    parts: range

    @classmethod
    def begin(
        cls, path: Path, provenance: EncoderProvenance, dtype: str, text: str, count: int
    ) -> "StoreFolder":
        """Begin, or resume, to write a text as `count` parts.

        Args:
          path: a new or empty folder, or one that `begin` made.
          provenance: as the attribute.
          dtype: as the attribute.
          text: as the attribute.
          count: parts that the text becomes.

        Raises:
          StoreError: the folder holds something else, parts of another encoder or dtype, or parts
            of another text that is unfinished; or there would be too many parts.
        """
        listed = _listed(path)
        start = len(listed["files"]) if listed else 0
        plan = _plan(path, start)
        if listed is None and plan is None:
            new_folder(path, StoreError)
        if listed is not None:
            first = read_store(path / min(listed["files"]), verify=False)
            _require_same(path, first.provenance, first.dtype, provenance, dtype)
            if text in listed["texts"]:
                return cls(path, provenance, dtype, text, range(0))
        if plan is not None:
            encoder = EncoderProvenance.from_json(plan["encoder"])
            _require_same(path, encoder, plan["dtype"], provenance, dtype)
            StoreError.require(
                (plan["text"], plan["parts"]) == (text, count),
                f"{path}: another text is being compressed here, or this one has changed, expected"
                " the same. Run the command that began, or use another folder",
            )
            return cls(path, provenance, dtype, text, range(start, start + count))
        StoreError.require(
            start + count <= PARTS_LIMIT,
            f"{path}: {start + count} parts, expected at most {PARTS_LIMIT}. Use another folder",
        )
        folder = cls(path, provenance, dtype, text, range(start, start + count))
        path.mkdir(parents=True, exist_ok=True)
        for number in folder.parts:  # Of an `append_part` that was killed.
            part_file(path, number).unlink(missing_ok=True)
        plan = dict(zip(_PLAN, (FORMAT, text, dtype, start, count), strict=True))
        write_json(path / UNFINISHED, sealed(plan | {"encoder": dataclasses.asdict(provenance)}))
        return folder

    def todo(self) -> list[int]:
        """Return the numbers of the parts that are missing.

        Raises:
          StoreError: a part is damaged, or of another encoder or dtype.
        """
        files = {number: part_file(self.path, number) for number in self.parts}
        for file in files.values():
            if file.exists():
                found = read_store(file, verify=False)
                _require_same(file, found.provenance, found.dtype, self.provenance, self.dtype)
        return [number for number, file in files.items() if not file.exists()]

    def write(self, number: int, contents: Contents) -> None:
        """Write a part.

        Raises:
          StoreError: the memories are of another encoder or dtype.
        """
        file = part_file(self.path, number)
        _require_same(file, contents.provenance, contents.dtype, self.provenance, self.dtype)
        write_store(file, contents)

    def finish(self) -> None:
        """Make the parts a part of the store.

        Raises:
          StoreError: parts are missing, or hold no chunk.
        """
        if not self.parts:
            return
        if missing := self.todo():
            raise _incomplete(self.path, missing, len(self.parts))
        files = [part_file(self.path, number) for number in self.parts]
        StoreError.require(
            any(len(read_store(file, verify=False).spans) for file in files),
            f"{self.path}: nothing but white space, expected text. Delete the folder",
        )
        _add(self.path, files, [self.text])
        (self.path / UNFINISHED).unlink(missing_ok=True)


def append_part(path: Path, contents: Contents) -> None:
    """Add memories to a store as one more part.

    Args:
      path: the folder of a store.
      contents: memories of the same encoder, in the same dtype.

    Raises:
      StoreError: it is no such folder, a text is unfinished there, the memories are of another
        encoder or dtype, or there are too many parts.
    """
    listed = _listed(path)
    if listed is None:
        raise StoreError(
            f"{path}: no {MANIFEST} here, expected the folder of a store. Save a file instead"
        )
    count, first = len(listed["files"]), read_store(path / min(listed["files"]), verify=False)
    StoreError.require(
        _plan(path, count) is None,
        f"{path}: a text is being compressed here, expected a whole store. Run its command again",
    )
    _require_same(path, first.provenance, first.dtype, contents.provenance, contents.dtype)
    StoreError.require(
        count < PARTS_LIMIT,
        f"{path}: {count} parts, expected fewer than {PARTS_LIMIT}. Use another folder",
    )
    file = part_file(path, count)
    write_store(file, contents)
    _add(path, [file], [])


def read_folder(path: Path, check: bool) -> list[Contents]:
    """Return the contents of all parts; leaves stay on disk until they are read.

    Args:
      path: the folder.
      check: whether to read all of it and compare its checksums.

    Raises:
      StoreError: parts are missing, damaged, or of several encoders or dtypes; the message names
        them.
    """
    listed = _listed(path)
    if listed is None:
        plan = _plan(path, 0)
        if plan is None:
            raise StoreError(
                f"{path}: a folder without {MANIFEST}, expected a store of `memjax compress`."
                " Compress the text again."
            )
        numbers = range(plan["parts"])
        missing = [number for number in numbers if not part_file(path, number).exists()]
        raise _incomplete(path, missing, len(numbers))
    if check:
        verify(path, listed["files"], _REMEDY, StoreError)
    names = sorted(listed["files"])
    found = [read_store(path / name, verify=False) for name in names]
    for name, part in zip(names, found, strict=True):
        whole = found[0]
        _require_same(path / name, part.provenance, part.dtype, whole.provenance, whole.dtype)
    return found


def part_file(path: Path, number: int) -> Path:
    """Return the file of a part."""
    return path / f"part-{number:05d}.store"


def is_folder(path: Path) -> bool:
    """Return whether a folder holds a store of parts, or one that is unfinished."""
    return (path / MANIFEST).is_file() or (path / UNFINISHED).is_file()


def bytes_of(path: Path) -> int:
    """Return the bytes of a store: of its file, or of all files of its folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _add(path: Path, files: list[Path], texts: list[str]) -> None:
    """Write the list of parts with further ones."""
    listed = _listed(path) or {"files": {}, "texts": []}
    new = {
        "format": FORMAT,
        "texts": listed["texts"] + texts,
        "files": listed["files"] | entries(files),
    }
    write_json(path / MANIFEST, sealed(new))


def _listed(path: Path) -> dict[str, Any] | None:
    """Return the list of parts, whose sizes are right; None if there is none."""
    file = path / MANIFEST
    if not file.exists():
        return None
    found = read_manifest(file, (FORMAT,), _REMEDY, StoreError, {"texts": [str]})
    StoreError.require(
        1 <= len(found["files"]) <= PARTS_LIMIT,
        f"{file}: {len(found['files'])} parts, expected 1 to {PARTS_LIMIT}. {_REMEDY}",
    )
    return found


def _plan(path: Path, start: int) -> dict[str, Any] | None:
    """Return what is being written as parts from `start` on; None if nothing is."""
    file = path / UNFINISHED
    if not file.exists():
        return None
    found = read_json(file, StoreError, _PLAN | {"encoder": dict}, _REMEDY)
    check_seal(found, file, _REMEDY, StoreError)
    StoreError.require(
        1 <= found["parts"] <= PARTS_LIMIT,
        f"{file}: parts: {found['parts']}, expected 1 to {PARTS_LIMIT}. {_REMEDY}",
    )
    return found if found["first"] == start else None  # The list has the parts of others.


def _incomplete(path: Path, missing: list[int], count: int) -> StoreError:
    lacks = f"{MANIFEST} is" if not missing else f"parts {few(missing)} of {count} are"
    return StoreError(
        f"{path}: {lacks} missing, expected a whole store. Run the command that compresses again:"
        " it writes only what is missing"
    )


def _require_same(
    where: Path, found: EncoderProvenance, dtype: str, expected: EncoderProvenance, other: str
) -> None:
    """Raise StoreError unless memories are of one encoder and one dtype."""
    found.require_same(expected, str(where))
    StoreError.require(
        dtype == other, f"{where}: memories of dtype {dtype}, expected {other}. Use one dtype"
    )
