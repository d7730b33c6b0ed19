"""What `config.json` of an export says, checked field by field before any other file is opened.

An export comes from anywhere, so nothing in it is trusted: files have names of one form and lie in the folder itself, sizes are compared
before anything is read, and the settings go through every check that a run's go through.
"""

import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memjax import __version__
from memjax.checkpoints import CheckpointError
from memjax.config import Config, ConfigError, from_config_dict
from memjax.data.tokenizer import FILES as TOKENIZERS

FORMAT_VERSION = 1
LIBRARY = "memjax"
MANIFEST, INDEX, CARD = "config.json", "model.safetensors.index.json", "README.md"
WHOLE = "model.safetensors"
"""The weights' file where there is one."""
SHARD = "model-{:05d}-of-{:05d}.safetensors"
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
"""What weights are written as, and what safetensors calls it."""
MANIFEST_LIMIT, INDEX_LIMIT, TOKENIZER_LIMIT = 2**20, 2**26, 2**28
"""Bytes, at most."""
LARGEST = 2**53
LARGEST_SIZE = 2**22
"""Of a model or its data: checks of settings count up to them."""
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_KEYS = (
    "library_name", "format_version", "version", "stage", "step", "tokenizer", "dtype", "parameters", "files", "config", "sha256",
)  # fmt: skip


class ExportError(CheckpointError):
    """An export is damaged, does not fit together, or cannot be written; the message names the file."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file beside `config.json`."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is exported."""

    config: Config
    """Of the whole run, resolved."""
    stage: str
    step: int
    tokenizer: str
    """Fingerprint; empty where the weights do not say whose ids they know."""
    dtype: str
    parameters: int
    files: Mapping[str, File]
    """The weights and the tokenizer; the index and the card are not among them."""

    @property
    def weights(self) -> list[str]:
        """Names of the files of weights."""
        return [name for name in self.files if name not in TOKENIZERS]

    @property
    def tokenizer_file(self) -> str:
        """Name of the tokenizer's file; empty if there is none."""
        return next((name for name in self.files if name in TOKENIZERS), "")

    def to_bytes(self) -> bytes:
        """The file's contents."""
        value = {
            "library_name": LIBRARY,
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "stage": self.stage,
            "step": self.step,
            "tokenizer": self.tokenizer,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "files": {name: dataclasses.asdict(file) for name, file in self.files.items()},
            "config": dataclasses.asdict(self.config),
        }
        return (json.dumps(sealed(value), indent=2) + "\n").encode()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the checksum of all its other members: a setting that changed by chance would be another model of the same shape."""
    others = {key: value[key] for key in value if key != "sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return others | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def is_manifest(value: Any) -> bool:
    """Whether a `config.json` is that of an export; a workdir's is the config alone."""
    return isinstance(value, dict) and ("format_version" in value or value.get("library_name") == LIBRARY)


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
      ExportError: there is none, or it is larger or something else.
    """
    try:
        value = json.loads(read_small(path, limit).decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except ExportError:
        raise
    except (RecursionError, ValueError) as error:
        raise ExportError(f"{path}: no JSON ({str(error)[:100] or 'nested too deeply'}); the file is damaged") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path}: holds no JSON object; the file is damaged")
    return value


def read_small(path: Path, limit: int) -> bytes:
    """The contents of a file of at most `limit` bytes.

    Raises:
      ExportError: it is larger, absent or no file.
    """
    if size_of(path) > limit:
        raise ExportError(f"{path}: {size_of(path)} bytes, where {limit} are the most there can be")
    return path.read_bytes()


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
      ExportError: it is absent or no file.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); the export is not all there") from error
    if not stat.S_ISREG(found.st_mode):  # A pipe would be waited for.
        raise ExportError(f"{path}: is no file")
    return found.st_size


def read_manifest(folder: Path) -> Manifest:
    """What the export `folder` says of itself.

    Raises:
      ExportError: `config.json` is absent, damaged, of another format, or no field is what it should be.
    """
    path = folder / MANIFEST
    value = read_object(path, MANIFEST_LIMIT)
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise ExportError(f"{path}: an export of format {str(version)[:40]}, while this memjax reads format {FORMAT_VERSION}")
    _require_keys(value, _KEYS, path)
    if value["sha256"] != sealed(value)["sha256"]:
        raise ExportError(f"{path}: its contents are not those that were written (sha256 differs); export again")
    for key in ("stage", "tokenizer", "dtype"):
        if not isinstance(value[key], str):
            raise ExportError(f"{path}: {key} must be a word")
    if value["dtype"] not in DTYPES:
        raise ExportError(f"{path}: dtype must be one of {', '.join(DTYPES)}")
    for key in ("data", "model"):
        _require_small(value["config"].get(key) if isinstance(value["config"], dict) else None, f"config.{key}", path)
    try:
        config = from_config_dict(value["config"])
    except ConfigError as error:
        raise ExportError(f"{path}: its config cannot be ({error})") from error
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: its config cannot be read ({type(error).__name__}); the file is damaged") from error
    if value["stage"] not in config.stages:
        raise ExportError(f"{path}: there is no stage {value['stage'][:60]!r} in its config")
    return Manifest(
        config,
        value["stage"],
        _whole(value["step"], "step", path),
        value["tokenizer"],
        value["dtype"],
        _whole(value["parameters"], "parameters", path),
        _files(value["files"], bool(value["tokenizer"]), path),
    )


def _files(value: Any, tokenizer: bool, path: Path) -> dict[str, File]:
    if not isinstance(value, dict) or len(value.keys() & set(TOKENIZERS)) != tokenizer or len(value) <= tokenizer:
        raise ExportError(f"{path}: files must name the weights{' and the tokenizer' if tokenizer else ' and no tokenizer'}")
    files = {}
    for name, file in value.items():
        # A name of this form has no folder in it: nothing outside is ever opened.
        if name not in TOKENIZERS and not _WEIGHTS.fullmatch(name):
            raise ExportError(
                f"{path}: files names {name[:80]!r}; weights lie beside it in {WHOLE} or {SHARD.format(1, 2)} and so on"
            )
        if not isinstance(file, dict):
            raise ExportError(f"{path}: files.{name} must be an object")
        _require_keys(file, ("bytes", "sha256"), path)
        digest = file["sha256"]
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ExportError(f"{path}: files.{name}.sha256 must be 64 hex digits")
        files[name] = File(_whole(file["bytes"], f"files.{name}.bytes", path), digest)
    return files


def _require_small(value: Any, name: str, path: Path) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _require_small(part, f"{name}.{key}", path)
    elif isinstance(value, (int, float)) and abs(value) > LARGEST_SIZE:
        raise ExportError(f"{path}: {name[:60]} is {str(value)[:20]}, where {LARGEST_SIZE} is the most that is read")


def _require_keys(value: Mapping[str, Any], keys: Iterable[str], path: Path) -> None:
    keys = set(keys)
    if value.keys() != keys:
        absent, unknown = sorted(keys - value.keys()), sorted(value.keys() - keys)
        wrong = f"lacks {', '.join(absent)}" if absent else f"has the unknown {unknown[0][:60]!r}"
        raise ExportError(f"{path}: {wrong}; the file is damaged")


def _whole(value: Any, name: str, path: Path) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ExportError(f"{path}: {name} must be a whole number from 0 to {LARGEST}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
