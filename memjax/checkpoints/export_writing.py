"""Write a trained stage as a folder that others can load.

The folder holds:

- config.json: the run's config, the stage, sizes and checksums (export_manifest.py).
- model.safetensors: all parameters under their paths; large models are split into
  `model-00001-of-00003.safetensors` and so on.
- model.safetensors.index.json: which file holds which tensor, where there are several.
- tokenizer.model or tokenizer.json: the run's vocabulary; absent if it is unknown.
- README.md: a model card.
- reconstructor: an export of the autoencoder whose encoder the model has, if it has that of one.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from memjax.checkpoints.export_manifest import (
    CARD,
    DTYPES,
    MANIFEST,
    RECONSTRUCTOR,
    SHARD,
    ExportError,
    Manifest,
)
from memjax.checkpoints.export_reading import model_shapes, shapes_of
from memjax.config import Config
from memjax.data import Tokenizer
from memjax.files import atomic_dir, entries, new_folder, write_json
from memjax.files.tensors import INDEX, WHOLE, save_tensors

Trained = tuple[Config, str, int, Mapping[str, Any], Tokenizer | None]
GIGABYTE = 10**9
SHARD_BYTES = 5 * GIGABYTE


def write_export(
    out: str | os.PathLike,
    config: Config,
    stage: str,
    step: int,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    card: str = "",
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    reconstructor: Trained | None = None,
) -> Manifest:
    """Write a trained stage as a folder that `memjax.load` reads anywhere; all of it, or nothing.

    Args:
      out: a new or empty folder on this machine.
      config: the config of the run.
      stage: the name of the stage.
      step: steps that it was trained.
      params: all its parameters.
      tokenizer: its tokenizer; None where the weights came without one.
      card: the text of README.md; empty for none.
      dtype: `float32`, which keeps every bit, or `bfloat16`, half as large.
      shard_bytes: bytes of a file of weights, at most, unless one tensor is larger.
      reconstructor: config, stage, step, parameters and tokenizer of the autoencoder with the same
        encoder; None for none.

    Raises:
      ExportError: `out` is taken, or a setting cannot be.
      OSError: `out` is in a bucket.
    """
    out = check_out(out, dtype, shard_bytes).absolute()
    with atomic_dir(out, sync=True) as temporary:
        files = _write_files(config, stage, params, tokenizer, temporary, dtype, shard_bytes)
        count = sum(math.prod(shape) for shape in shapes_of(params).values())
        fingerprint = tokenizer.fingerprint if tokenizer else ""
        manifest = Manifest(stage, step, fingerprint, dtype, count, files, config)
        (temporary / MANIFEST).write_bytes(manifest.to_bytes())
        if card:
            (temporary / CARD).write_text(card, encoding="utf-8")
        if reconstructor is not None:
            folder = temporary / RECONSTRUCTOR
            write_export(folder, *reconstructor, dtype=dtype, shard_bytes=shard_bytes)
    return manifest


def check_out(out: str | os.PathLike, dtype: str, shard_bytes: int) -> Path:
    """Return the local path of `out`, to which an export can be written in this form.

    Raises:
      ExportError: it cannot be.
    """
    path = new_folder(out, ExportError)
    ExportError.require(
        dtype in DTYPES, f"dtype={dtype!r}: weights are written as {' or '.join(DTYPES)}"
    )
    ExportError.require(shard_bytes > 0, f"shard_bytes={shard_bytes}: a file has a byte or more")
    return path


def _write_files(
    config: Config,
    stage: str,
    tree: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    folder: Path,
    dtype: str,
    shard_bytes: int,
) -> dict[str, dict[str, Any]]:
    """Write weights, their index and the tokenizer, and return sizes and checksums."""
    params, shapes = dict(flatten_dict(tree, sep="/")), shapes_of(tree)
    ExportError.require(
        shapes == model_shapes(config, stage),
        f"stage {stage}: its parameters are not those of the model that its config describes",
    )
    kind = jax.numpy.dtype(dtype)
    sizes = {path: kind.itemsize * math.prod(shape) for path, shape in shapes.items()}
    shards = split_shards(sizes, shard_bytes)
    names = [SHARD.format(number, len(shards)) for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WHOLE]
    for name, paths in zip(names, shards, strict=True):
        # One file's tensors at a time leave the devices.
        arrays = {x: np.ascontiguousarray(np.asarray(params[x]).astype(kind)) for x in paths}
        save_tensors(folder / name, arrays)
    if len(shards) > 1:
        weight_map = {
            path: name for name, paths in zip(names, shards, strict=True) for path in paths
        }
        metadata = {"total_size": sum(sizes.values())}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})
    if tokenizer:
        tokenizer.save(folder)
        names.append(tokenizer.file_name)
    return entries(folder / name for name in names)


def split_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Return paths in order, in groups of at most `limit` bytes; a larger one is alone."""
    shards: list[list[str]] = []
    taken = 0
    for path in sorted(sizes):
        if not shards or taken + sizes[path] > limit:
            shards.append([])
            taken = 0
        shards[-1].append(path)
        taken += sizes[path]
    return shards
