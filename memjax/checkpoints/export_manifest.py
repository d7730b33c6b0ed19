"""The `config.json` of an export, checked field by field before any other file is opened.

An export comes from anywhere, so nothing in it is trusted: files have names of one form and lie in
the folder itself, sizes are compared before anything is read, and the settings go through every
check that a run's go through.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memjax.checkpoints.reading import CheckpointError, read_config
from memjax.config import Config
from memjax.data.tokenizers import FILES as TOKENIZERS
from memjax.errors import few
from memjax.files import check_seal, read_json, sealed
from memjax.files.tensors import WHOLE
from memjax.version import __version__

FORMAT_VERSION = 1
LIBRARY = "memjax"
MANIFEST, CARD = "config.json", "README.md"
RECONSTRUCTOR = "reconstructor"
"""Folder in an export: that of the autoencoder whose encoder the model has."""
SHARD = "model-{:05d}-of-{:05d}.safetensors"
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
"""Dtypes of weights, and their names in safetensors."""
REMEDY = "Export or copy it again"
_SHAPE = {
    "format_version": (FORMAT_VERSION,),
    **dict.fromkeys(("stage", "tokenizer", "sha256"), str),
    "dtype": tuple(DTYPES),
    **dict.fromkeys(("step", "parameters"), int),
    "files": {str: {"bytes": int, "sha256": str}},
    "config": dict,
}
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class ExportError(CheckpointError):
    """An export is damaged, inconsistent, or cannot be written; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of an export."""

    stage: str
    step: int
    tokenizer: str
    """Fingerprint; empty where the weights came without a tokenizer."""
    dtype: str
    parameters: int
    files: Mapping[str, Mapping[str, Any]]
    """`bytes` and `sha256` of the weights and the tokenizer; the index and the card are not among
    them."""
    config: Config
    """The config of the whole run, resolved."""

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
        made_by = {
            "library_name": LIBRARY,
            "format_version": FORMAT_VERSION,
            "version": __version__,
        }
        value = sealed(made_by | dataclasses.asdict(self))
        return (json.dumps(value, indent=2) + "\n").encode()


def is_manifest(value: Any) -> bool:
    """Return whether a `config.json` is that of an export; a workdir's is the config alone."""
    return isinstance(value, dict) and (
        "format_version" in value or value.get("library_name") == LIBRARY
    )


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the export in `folder`.

    Raises:
      ExportError: `config.json` is absent, damaged, of another format, or no field is what it
        should be.
    """
    path = folder / MANIFEST
    value = read_json(path, ExportError, _SHAPE, REMEDY)
    check_seal(value, path, REMEDY, ExportError)
    _check_files(value["files"], bool(value["tokenizer"]), path)
    config, stage = read_config(value["config"], path, ExportError), value["stage"]
    ExportError.require(
        stage in config.stages, f"{path}: stage: {stage!r}, expected one of {few(config.stages)}"
    )
    return Manifest(
        stage,
        value["step"],
        value["tokenizer"],
        value["dtype"],
        value["parameters"],
        value["files"],
        config,
    )


def _check_files(files: Mapping[str, Any], tokenizer: bool, path: Path) -> None:
    named = "the weights and the tokenizer" if tokenizer else "the weights and no tokenizer"
    ExportError.require(
        len(files.keys() & set(TOKENIZERS)) == tokenizer and len(files) > tokenizer,
        f"{path}: files: {few(files)}, expected {named}. {REMEDY}",
    )
    for name in files:
        # A name of this form has no folder in it: nothing outside is ever opened.
        ExportError.require(
            name in TOKENIZERS or _WEIGHTS.fullmatch(name),
            f"{path}: files: {few([name])}, expected {WHOLE} or {SHARD.format(1, 2)} and so on."
            f" {REMEDY}",
        )
