"""A stage of a run to a folder that others can load: weights as safetensors, settings, tokenizer and a card.

| file | holds |
|---|---|
| config.json | the run's config, the stage, sizes and checksums (manifest.py) |
| model.safetensors | all parameters under their paths; of large models `model-00001-of-00003.safetensors` and so on |
| model.safetensors.index.json | where there are several: which tensor lies in which |
| tokenizer.model, tokenizer.json | the run's vocabulary, under the one name or the other; absent where it is not known |
| README.md | a model card |
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from memjax.exporting.card import LICENSE, write_card
from memjax.exporting.manifest import DTYPES, INDEX, MANIFEST, SHARD, WHOLE, ExportError, File, Manifest
from memjax.exporting.reading import digest_of, is_export, model_shapes
from memjax.loading import TrainedStage, read_stage

GIGABYTE = 10**9
SHARD_BYTES = 5 * GIGABYTE


def export(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    stage: str = "",
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    license_id: str = LICENSE,
) -> Manifest:
    """Writes a stage of a run as a folder that `memjax.load` reads anywhere; all of it, or nothing.

    Args:
      workdir: what `memjax train` wrote, or the folder of a stage in it; of gs://BUCKET/FOLDER as `memjax.load` takes it.
      out: a new or empty folder on this machine.
      stage: its name; by default the last of the curriculum.
      dtype: `float32`, which keeps every bit, or `bfloat16`, half as large.
      shard_bytes: of a file of weights, at most, unless one tensor is larger.
      license_id: of the weights, as the Hugging Face Hub names licenses.

    Raises:
      ExportError: `out` is taken or in a bucket, a setting cannot be, or `workdir` is an export.
      CheckpointError: as `memjax.load`.
      TokenizerError: the tokenizer cannot be read.
    """
    _check(workdir, out, dtype, shard_bytes)
    found = read_stage(workdir, stage)
    out = Path(out).expanduser().absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        manifest = _write(found, temporary, dtype, shard_bytes)
        write_card(temporary, manifest, _shapes(found.params), workdir, out.name, found.tokenizer, license_id)
        for path in temporary.iterdir():
            path.chmod((temporary / MANIFEST).stat().st_mode)  # Safetensors lets none but the owner read what it writes.
            _sync(path)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _check(workdir: str | os.PathLike, out: str | os.PathLike, dtype: str, shard_bytes: int) -> None:
    if "://" in str(out):
        raise ExportError(
            f"{out}: an export is written to this machine's disk; give --out a folder, and copy it where it should be"
        )
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExportError(f"{out}: is there already; give --out a new folder, or delete it first")
    if dtype not in DTYPES:
        raise ExportError(f"dtype={dtype!r}: weights are written as {' or '.join(DTYPES)}")
    if shard_bytes < 1:
        raise ExportError(f"shard_bytes={shard_bytes}: a file has a byte or more")
    if "://" not in str(workdir) and is_export(Path(workdir)):
        raise ExportError(f"{workdir}: is an export already; give the workdir of the run")


def _write(found: TrainedStage, folder: Path, dtype: str, shard_bytes: int) -> Manifest:
    params = dict(flatten_dict(found.params, sep="/"))
    shapes = _shapes(found.params)
    if shapes != model_shapes(found.config, found.name):
        raise ExportError(f"stage {found.name}: its parameters are not those of the model that its config describes")
    width = jax.numpy.dtype(dtype).itemsize
    shards = split_shards({path: width * int(np.prod(shape)) for path, shape in shapes.items()}, shard_bytes)
    names = [WHOLE] if len(shards) == 1 else [SHARD.format(number + 1, len(shards)) for number in range(len(shards))]
    for name, paths in zip(names, shards, strict=True):
        # One file's tensors at a time leave the devices.
        save_file({path: _host(params[path], dtype) for path in paths}, folder / name)
    if len(shards) > 1:
        weight_map = {path: name for name, paths in zip(names, shards, strict=True) for path in paths}
        total = sum(width * int(np.prod(shape)) for shape in shapes.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    if found.tokenizer:
        found.tokenizer.save(folder)
        names.append(found.tokenizer.file_name)
    files = {name: File((folder / name).stat().st_size, digest_of(folder / name)) for name in names}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    fingerprint = found.tokenizer.fingerprint if found.tokenizer else ""
    manifest = Manifest(found.config, found.name, found.step, fingerprint, dtype, count, files)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


def split_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Paths in order, as many together as stay within `limit` bytes; one that is larger stands alone."""
    shards: list[list[str]] = []
    taken = 0
    for path in sorted(sizes):
        if not shards or taken + sizes[path] > limit:
            shards.append([])
            taken = 0
        shards[-1].append(path)
        taken += sizes[path]
    return shards


def _host(x: jax.Array, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x).astype(jax.numpy.dtype(dtype)))


def _shapes(params: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
