"""Safetensors files of a Hugging Face folder: read in parts, and copied with other values."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from memjax.files import (
    atomic_dir,
    new_folder,
    parse_json,
    read_json,
    regular,
    require_inside,
    require_shape,
)
from memjax.files.tensors import INDEX, WHOLE, read_header
from memjax.interop.huggingface.settings import HuggingFaceError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Float types of weights."""
_REMEDY = "Download it again"
_TENSOR = {"shape": [int], "dtype": str, "data_offsets": [int]}
BESIDE = (".json", ".model", ".txt", ".jinja", ".md")
"""Files that are copied beside weights: settings, tokenizer, licence."""


class Tensor(NamedTuple):
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Files:
    """The tensors of a folder by name; none of them is in memory."""

    folder: Path
    tensors: dict[str, Tensor]

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise HuggingFaceError if a tensor is absent, or has another shape or no float type."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise HuggingFaceError(
                f"{self.folder} has no tensor {name!r}, which its config.json names"
            )
        at = f"{tensor.file}: tensor {name!r}"
        if tensor.shape != shape:
            raise HuggingFaceError(
                f"{at} has shape {tensor.shape}, expected {shape} by its config.json"
            )
        if tensor.dtype not in DTYPES:
            raise HuggingFaceError(
                f"{at} has type {tensor.dtype}, expected one of {', '.join(DTYPES)}"
            )

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of a tensor in its own type, and nothing else of it."""
        path = self.tensors[name].file
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            raise HuggingFaceError(f"{path} cannot be read ({error})") from error


def open_files(folder: str | os.PathLike) -> Files:
    """Read the headers of a folder.

    Raises:
      HuggingFaceError: it has no safetensors files, one that cannot be read, or two with the same
        tensor.
    """
    tensors: dict[str, Tensor] = {}
    for path in _paths(Path(folder)):
        for name, entry in _header(path)[1].items():
            if name in tensors:
                raise HuggingFaceError(
                    f"{path}: tensor {name!r} is in {tensors[name].file.name} too, expected it in"
                    f" one file. {_REMEDY}"
                )
            tensors[name] = Tensor(path, tuple(entry["shape"]), entry["dtype"])
    return Files(Path(folder), tensors)


def _paths(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        if not (folder / WHOLE).is_file():
            raise HuggingFaceError(
                f"{folder} has neither {WHOLE} nor {INDEX}: there are no weights in a form that"
                " is read here"
            )
        return [folder / WHOLE]
    index = read_json(folder / INDEX, HuggingFaceError, {"weight_map": {str: str}}, _REMEDY)
    names = sorted(set(index["weight_map"].values()))
    for name in names:
        require_inside(name, folder / INDEX, _REMEDY, HuggingFaceError)
        HuggingFaceError.require(
            (folder / name).is_file(),
            f"{folder / INDEX} names {name!r}, and there is no such file beside it",
        )
    return [folder / name for name in names]


def _header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes before a file's tensors, and what they hold of each tensor.

    Raises:
      HuggingFaceError: the file is not a whole safetensors file.
    """
    try:
        # This also checks that all tensors are there.
        with safe_open(regular(path), framework="numpy"):
            head = read_header(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise HuggingFaceError(f"{path} is no whole safetensors file ({error})") from error
    header = parse_json(head[8:], path, HuggingFaceError, dict, _REMEDY)
    header.pop("__metadata__", None)
    require_shape(header, {str: _TENSOR}, path, HuggingFaceError, _REMEDY)
    return head, header


def write_like(source: Path, out: Path, tensor: Callable[[str], np.ndarray | None]) -> None:
    """Write the files of `source` with the same headers and other values into `out`.

    One tensor at a time is in memory.

    Args:
      source: a folder with safetensors files.
      out: a new or empty folder.
      tensor: returns the values of a tensor, in any float type; None keeps those of `source`.

    Raises:
      HuggingFaceError: `out` is taken, or a file cannot be read.
    """
    with atomic_dir(new_folder(out, HuggingFaceError)) as temporary:
        for path in _paths(source):
            _write_file(path, temporary / path.name, tensor)
        for path in sorted(source.iterdir()):
            if (
                path.is_file()
                and (path.suffix in BESIDE or not path.suffix)
                and not path.name.startswith(".")
            ):
                shutil.copyfile(path, temporary / path.name)


def _write_file(source: Path, out: Path, tensor: Callable[[str], np.ndarray | None]) -> None:
    head, entries = _header(source)
    with open(source, "rb") as old, open(out, "wb") as new:
        new.write(head)
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            values = tensor(name)
            if values is None:
                old.seek(len(head) + start)
                data: Any = old.read(end - start)
            else:
                array = np.ascontiguousarray(values, DTYPES[entry["dtype"]])
                data = array.reshape(-1).view(np.uint8).data
            if len(data) != end - start:
                raise HuggingFaceError(
                    f"{source}: tensor {name!r} takes {end - start} bytes; it was given {len(data)}"
                )
            new.write(data)
