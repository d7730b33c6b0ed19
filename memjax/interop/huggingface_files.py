"""Safetensors files of a Hugging Face folder: which tensor is where, parts of them, and the same files with other numbers in them.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and place of every tensor), and the tensors.
"""

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from memjax.interop.huggingface_settings import HuggingFaceError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Floats of weights."""
BESIDE = (".json", ".model", ".txt", ".jinja", ".md")
"""What is copied beside weights: settings, tokenizer, licence."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The tensors of a folder, none of which is in memory."""

    folder: Path
    place: dict[str, Path]
    """The file of every tensor."""
    shape: dict[str, tuple[int, ...]]
    dtype: dict[str, str]

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises HuggingFaceError if a tensor is not there, or is of another shape or of no float type."""
        if name not in self.place:
            raise HuggingFaceError(f"{self.folder} has no tensor {name!r}, which its config.json asks for")
        at = f"{self.place[name]}: tensor {name!r}"
        if self.shape[name] != shape:
            raise HuggingFaceError(f"{at} is of shape {self.shape[name]}; its config.json asks for {shape}")
        if self.dtype[name] not in DTYPES:
            raise HuggingFaceError(f"{at} is of type {self.dtype[name]}; weights are {', '.join(DTYPES)}")

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, in its own type; nothing else of it is read."""
        try:
            with safe_open(self.place[name], framework="numpy") as file:
                return file.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            raise HuggingFaceError(f"{self.place[name]} cannot be read ({error})") from error


def open_files(folder: str | os.PathLike) -> Files:
    """What a folder's headers say.

    Raises:
      HuggingFaceError: it has no safetensors files, or one that cannot be read.
    """
    folder = Path(folder)
    files = Files(folder, {}, {}, {})
    for path in _paths(folder):
        for name, entry in read_header(path)[1].items():
            if name != "__metadata__":
                files.place[name], files.shape[name], files.dtype[name] = path, tuple(entry["shape"]), entry["dtype"]
    return files


def _paths(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise HuggingFaceError(
                f"{folder} has neither {SINGLE} nor {INDEX}: there are no weights in a form that is read here"
            )
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise HuggingFaceError(f"{folder / INDEX} is no index of safetensors files ({error!r})") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise HuggingFaceError(f"{folder / INDEX} names {name!r}, and there is no such file beside it")
    return [folder / name for name in names]


def read_header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes before a file's tensors, and what they say; HuggingFaceError if it is no whole safetensors file."""
    try:
        # This also looks whether the tensors are all there.
        with safe_open(path, framework="numpy"), open(path, "rb") as file:
            length = file.read(8)
            text = file.read(struct.unpack("<Q", length)[0])
    except (SafetensorError, OSError, struct.error) as error:
        raise HuggingFaceError(f"{path} is no whole safetensors file ({error})") from error
    return length + text, json.loads(text)


def write_like(source: Path, out: Path, tensor: Callable[[str], np.ndarray | None]) -> None:
    """Writes the folder `out`: files as in `source`, with the same headers, and other numbers in them; one tensor at a time is in memory.

    Args:
      source: a folder with safetensors files.
      out: a folder that is not there yet, or is empty.
      tensor: numbers of a tensor, in any float type; None leaves them as they are in `source`.

    Raises:
      HuggingFaceError: `out` is taken, or a file cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise HuggingFaceError(f"{out} is there already; give a new or empty folder")
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in _paths(source):
        _write_file(path, temporary / path.name, tensor)
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.suffix in BESIDE or not path.suffix) and not path.name.startswith("."):
            shutil.copyfile(path, temporary / path.name)
    if out.exists():
        out.rmdir()
    temporary.replace(out)


def _write_file(source: Path, out: Path, tensor: Callable[[str], np.ndarray | None]) -> None:
    head, entries = read_header(source)
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    with open(source, "rb") as old, open(out, "wb") as new:
        new.write(head)
        for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            values = tensor(name)
            if values is None:
                old.seek(len(head) + start)
                data: Any = old.read(end - start)
            else:
                array = np.ascontiguousarray(values, DTYPES[entry["dtype"]])
                data = array.reshape(-1).view(np.uint8).data
            if len(data) != end - start:
                raise HuggingFaceError(f"{source}: tensor {name!r} takes {end - start} bytes; it was given {len(data)}")
            new.write(data)
