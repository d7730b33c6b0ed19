"""Exports are read safely: no pickle, and all checks come before the first array.

The order is: `config.json` by itself; the sizes of the files it names; their checksums; the names,
dtypes and shapes of their tensors against those of the model that the config describes; then one
tensor after another.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from memjax.checkpoints.export_manifest import (
    DTYPES,
    MANIFEST,
    REMEDY,
    ExportError,
    Manifest,
    read_manifest,
)
from memjax.checkpoints.reading import attempt
from memjax.config import Config
from memjax.data import Tokenizer, TokenizerError, load_tokenizer
from memjax.files import check_size, read_json, verify
from memjax.files.tensors import INDEX, WHOLE
from memjax.models import build, example

_SHOWN = 3
"""Tensors that a message names."""

Shapes = Mapping[str, tuple[int, ...]]
Place = Callable[[Any], Any]


class Exported(NamedTuple):
    """An export whose files fit together; no array is in memory yet."""

    manifest: Manifest
    tokenizer: Tokenizer | None
    folder: Path
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """File and shape by path."""

    def read(self, place: Place | None = None) -> dict[str, Any]:
        """Read the parameters in float32.

        Args:
          place: maps the tree of shapes and dtypes to a sharding per leaf; by default all leaves
            are on this machine's first device.
        """
        shapes = unflatten_dict(
            {x: jax.ShapeDtypeStruct(shape, np.float32) for x, (_, shape) in self.tensors.items()},
            sep="/",
        )
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = place(shapes) if place else jax.tree.map(lambda _: one, shapes)
        places, params = flatten_dict(places, sep="/"), {}
        for name in dict.fromkeys(name for name, _ in self.tensors.values()):
            with safe_open(self.folder / name, framework="numpy") as file:
                for path in (path for path, (own, _) in self.tensors.items() if own == name):
                    array = np.asarray(file.get_tensor(path)).astype(np.float32)
                    params[path] = jax.device_put(array, places[path])
        return unflatten_dict(params, sep="/")


def read_export(folder: str | os.PathLike) -> Exported:
    """Check what `memjax export` wrote: sizes, checksums, and tensors against the config.

    Raises:
      ExportError: a file is absent, damaged, of another format, larger or smaller than was written,
        or does not fit the config.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, file in manifest.files.items():
        check_size(folder / name, file["bytes"], REMEDY, ExportError)
    verify(folder, manifest.files, REMEDY, ExportError)
    tokenizer = _tokenizer(folder, manifest) if manifest.tokenizer else None
    where = _locate(folder, manifest)
    shapes = _model_shapes(manifest, folder)
    _require_same({name: shape for name, (_, shape) in where.items()}, shapes, folder)
    return Exported(manifest, tokenizer, folder, where)


def model_shapes(config: Config, stage: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a stage's model by path; nothing is computed."""
    module = build(config, config.stages[stage])
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), example(module, config))["params"])
    return shapes_of(tree)


def shapes_of(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tree of parameters by path."""
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}


def _model_shapes(manifest: Manifest, folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / MANIFEST
    shapes, why = attempt(lambda: model_shapes(manifest.config, manifest.stage))
    ExportError.require(
        shapes is not None, f"{path}: its config describes no model that can be built ({why})"
    )
    return shapes


def _tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    path = folder / manifest.tokenizer_file
    try:
        tokenizer = load_tokenizer(path)
    except TokenizerError as error:
        raise ExportError(str(error)) from error
    ExportError.require(
        tokenizer.fingerprint == manifest.tokenizer,
        f"{path}: tokenizer {tokenizer.fingerprint}, expected {manifest.tokenizer[:40]}",
    )
    vocab_size = manifest.config.data.vocab_size
    ExportError.require(
        tokenizer.vocabulary <= vocab_size,
        f"{path}: has {tokenizer.vocabulary} entries, and the model {vocab_size}: they are not of"
        " one run",
    )
    return tokenizer


def _locate(folder: Path, manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return file and shape of every tensor, compared with the index if there is one."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in manifest.weights:
        path = folder / name
        try:
            with safe_open(path, framework="numpy") as file:
                for tensor in sorted(file.keys()):
                    part = file.get_slice(tensor)
                    where = f"{path}: tensor {_short(tensor)}"
                    if tensor in found:
                        raise ExportError(f"{where} lies in {found[tensor][0]} as well")
                    ExportError.require(
                        part.get_dtype() == DTYPES[manifest.dtype],
                        f"{where} is {part.get_dtype()}, and weights are {manifest.dtype}",
                    )
                    found[tensor] = name, tuple(part.get_shape())
        except SafetensorError as error:
            raise ExportError(f"{path}: is no safetensors file ({str(error)[:120]})") from error
    if manifest.weights != [WHOLE]:
        _require_index(folder / INDEX, {tensor: name for tensor, (name, _) in found.items()})
    return found


def _require_index(path: Path, found: Mapping[str, str]) -> None:
    """Raise ExportError unless the index lists the file of every tensor.

    Other readers need it; nothing is opened for it here.
    """
    listed = read_json(path, ExportError, {"weight_map": {str: str}}, REMEDY)["weight_map"]
    for tensor in sorted(listed.keys() | found.keys()):
        ExportError.require(
            listed.get(tensor) == found.get(tensor),
            f"{path}: tensor {_short(tensor)} in {_short(listed.get(tensor))}, expected"
            f" {_short(found.get(tensor))}. {REMEDY}",
        )


def _require_same(found: Shapes, shapes: Shapes, folder: Path) -> None:
    for kind, names in (
        ("lacks", shapes.keys() - found.keys()),
        ("has, beside those of the model,", found.keys() - shapes.keys()),
    ):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        ExportError.require(
            not names,
            f"{folder}: the export {kind} tensor"
            f" {', '.join(map(_short, sorted(names)[:_SHOWN]))}{more}; weights and config are of"
            " different models",
        )
    for name, shape in shapes.items():
        ExportError.require(
            found[name] == shape,
            f"{folder}: tensor {_short(name)} is of shape {list(found[name])}, and by the config it"
            f" is {list(shape)}; weights and config are of different models",
        )


def _short(name: Any) -> str:
    return repr(name)[:100]
