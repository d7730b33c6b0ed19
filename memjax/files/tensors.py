"""Safetensors files: the length of the header (8 bytes), the header (JSON), and the tensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from memjax.files.json_values import JSON_LIMIT

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of a model's weights, or the list of them where there are several."""


def save_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors, with the permissions of any new file and the metadata sorted.

    Safetensors lets none but the owner read what it writes, and orders metadata at random.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    path.chmod(mode)
    if metadata:
        head = read_header(path)
        header = json.loads(head[8:])
        header["__metadata__"] = dict(sorted(metadata.items()))
        with open(path, "r+b") as stream:
            stream.seek(8)
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            stream.write(text.ljust(len(head) - 8))


def read_header(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """Return the bytes before the tensors of a file; fewer of one that is cut short.

    Raises:
      ValueError: the header has more than `limit` bytes.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        length = stream.read(8)
        size = int.from_bytes(length, "little")
        if size > limit:
            raise ValueError(f"a header of {size} bytes, of which {limit} are read")
        return length + stream.read(size)
