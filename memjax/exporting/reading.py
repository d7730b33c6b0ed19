"""Exports read safely: no pickle, and everything is known to fit before an array is made.

In this order: `config.json` by itself; the sizes of the files it names; their checksums; the names, dtypes and shapes of their tensors
against those of the model that the config describes; then one tensor after another.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from memjax.checkpoints.reading import attempt
from memjax.config import Config, to_json
from memjax.data import Tokenizer, TokenizerError
from memjax.exporting.manifest import (
    DTYPES,
    INDEX,
    INDEX_LIMIT,
    TOKENIZER_LIMIT,
    WHOLE,
    ExportError,
    File,
    Manifest,
    is_manifest,
    read_manifest,
    read_object,
    size_of,
)
from memjax.models import build, example

CHUNKS_LIMIT = 2**12
"""Chunks of a row: models make a table of chunks by chunks when they are built."""
_BLOCK = 2**22
_SHOWN = 3
"""Tensors that a message names."""

Shapes = Mapping[str, tuple[int, ...]]
Place = Callable[[Any], Any]


class Exported(NamedTuple):
    """An export that fits together."""

    manifest: Manifest
    params: dict[str, Any]
    tokenizer: Tokenizer | None


def is_export(folder: Path) -> bool:
    """Whether `folder` has a `config.json` as exports have it.

    Raises:
      ExportError: it has one that is no JSON object.
    """
    path = folder / "config.json"
    return path.is_file() and is_manifest(read_object(path, INDEX_LIMIT))


def read_export(folder: str | os.PathLike, place: Place | None = None) -> Exported:
    """All that `memjax export` wrote, parameters as float32.

    Args:
      folder: the export.
      place: from the tree of shapes and dtypes to a layout for every leaf; by default all are on this machine's first device.

    Raises:
      ExportError: a file is absent, damaged, of another format, larger or smaller than was written, or does not fit the config.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, file in manifest.files.items():
        _require_size(folder / name, file)
    for name, file in manifest.files.items():
        _require_contents(folder / name, file)
    tokenizer = _tokenizer(folder, manifest)
    shapes = _model_shapes(manifest, folder)
    where = _locate(folder, manifest)
    _require_same({name: shape for name, (_, shape) in where.items()}, shapes, folder)
    return Exported(manifest, _arrays(folder, where, place), tokenizer)


def read_params(folder: str | os.PathLike, place: Place | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and meta of an export, as `memjax.checkpoints.load_params` gives those of a checkpoint.

    Raises:
      ExportError: as `read_export`.
    """
    manifest, params, _ = read_export(folder, place)
    meta = {"stage": manifest.stage, "step": manifest.step, "config": to_json(manifest.config), "tokenizer": manifest.tokenizer}
    return params, meta


def model_shapes(config: Config, stage: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a stage's model by their paths; nothing is computed."""
    module = build(config, config.stages[stage])
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), example(module, config))["params"])
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree, sep="/").items()}


def _model_shapes(manifest: Manifest, folder: Path) -> dict[str, tuple[int, ...]]:
    if manifest.config.chunks > CHUNKS_LIMIT:
        raise ExportError(
            f"{folder / 'config.json'}: rows of {manifest.config.chunks} chunks, where {CHUNKS_LIMIT} are the most there can be"
        )
    shapes, why = attempt(lambda: model_shapes(manifest.config, manifest.stage))
    if shapes is None:
        raise ExportError(f"{folder / 'config.json'}: its config describes no model that can be built ({why})")
    return shapes


def _require_size(path: Path, file: File) -> None:
    found = size_of(path)
    if found != file.bytes:
        raise ExportError(f"{path}: holds {found} bytes, where {file.bytes} were written; export or copy it again")


def _require_contents(path: Path, file: File) -> None:
    if digest_of(path) != file.sha256:
        raise ExportError(f"{path}: the contents are not those that were written (sha256 differs); export or copy it again")


def digest_of(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    if not manifest.tokenizer:
        return None
    path, size = folder / manifest.tokenizer_file, manifest.files[manifest.tokenizer_file].bytes
    if size > TOKENIZER_LIMIT:
        raise ExportError(f"{path}: {size} bytes, where {TOKENIZER_LIMIT} are the most there can be")
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        raise ExportError(str(error)) from error
    if tokenizer.fingerprint != manifest.tokenizer:
        raise ExportError(f"{path}: is tokenizer {tokenizer.fingerprint}, and the weights know {manifest.tokenizer[:40]}")
    if tokenizer.vocabulary > manifest.config.data.vocabulary:
        raise ExportError(
            f"{path}: has {tokenizer.vocabulary} entries, and the model {manifest.config.data.vocabulary}: they are not of one run"
        )
    return tokenizer


def _locate(folder: Path, manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Which file every tensor lies in, and its shape; compared with the index, if there is one."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in manifest.weights:
        path = folder / name
        try:
            with safe_open(path, framework="numpy") as file:
                for tensor in sorted(file.keys()):
                    part = file.get_slice(tensor)
                    if tensor in found:
                        raise ExportError(f"{path}: tensor {_short(tensor)} lies in {found[tensor][0]} as well")
                    if part.get_dtype() != DTYPES[manifest.dtype]:
                        raise ExportError(
                            f"{path}: tensor {_short(tensor)} is {part.get_dtype()}, and weights are {manifest.dtype}"
                        )
                    found[tensor] = name, tuple(part.get_shape())
        except SafetensorError as error:
            raise ExportError(f"{path}: is no safetensors file ({str(error)[:120]})") from error
    if manifest.weights != [WHOLE]:
        _require_index(folder / INDEX, manifest, {tensor: name for tensor, (name, _) in found.items()})
    return found


def _require_index(path: Path, manifest: Manifest, found: Mapping[str, str]) -> None:
    """Raises ExportError unless the index says of every tensor the file it lies in. Other readers go by it; nothing is opened for it here."""
    told = read_object(path, INDEX_LIMIT).get("weight_map")
    if not isinstance(told, dict):
        raise ExportError(f"{path}: has no weight_map; the file is damaged")
    for tensor, name in told.items():
        if name not in manifest.weights:
            raise ExportError(
                f"{path}: tensor {_short(tensor)} is said to be in {_short(name)}, which is no file of this export"
            )
        if found.get(tensor) != name:
            raise ExportError(f"{path}: tensor {_short(tensor)} is said to be in {name}, and is not there")
    absent = sorted(found.keys() - told.keys())
    if absent:
        raise ExportError(f"{path}: does not say where tensor {_short(absent[0])} is")


def _require_same(found: Shapes, shapes: Shapes, folder: Path) -> None:
    for kind, names in (
        ("lacks", shapes.keys() - found.keys()),
        ("has, beside those of the model,", found.keys() - shapes.keys()),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ExportError(
                f"{folder}: the export {kind} tensor {', '.join(map(_short, sorted(names)[:_SHOWN]))}{more}; weights and config are of"
                " different models"
            )
    for name, shape in shapes.items():
        if found[name] != shape:
            raise ExportError(
                f"{folder}: tensor {_short(name)} is of shape {list(found[name])}, and by the config it is {list(shape)}; weights and"
                " config are of different models"
            )


def _arrays(folder: Path, where: Mapping[str, tuple[str, tuple[int, ...]]], place: Place | None) -> dict[str, Any]:
    shapes = unflatten_dict({path: jax.ShapeDtypeStruct(shape, np.float32) for path, (_, shape) in where.items()}, sep="/")
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = flatten_dict(place(shapes) if place else jax.tree.map(lambda _: one, shapes), sep="/")
    params = {}
    for name in dict.fromkeys(name for name, _ in where.values()):
        with safe_open(folder / name, framework="numpy") as file:
            for path in (path for path, (own, _) in where.items() if own == name):
                params[path] = jax.device_put(np.asarray(file.get_tensor(path)).astype(np.float32), places[path])
    return unflatten_dict(params, sep="/")


def _short(name: Any) -> str:
    return repr(name)[:100]
