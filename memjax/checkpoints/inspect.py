"""The contents of a checkpoint, from its metadata alone.

No array is read, and none of the devices that wrote it is needed.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict

from memjax.checkpoints.checksums import verify
from memjax.checkpoints.reading import (
    ITEMS,
    CheckpointError,
    absolute,
    attempt,
    finished_steps,
    read_meta,
    require_keys,
    trained_stages,
)
from memjax.config import Config, Stage, match_rules, to_json
from memjax.files import parse_json

PLACES = (
    "give a workdir of `memjax train`, a stage's folder in it, that folder's `checkpoints`,"
    " or one step of these"
)
WRITTEN = ("stage", "config", "tokenizer", "seconds", "next_row")
"""Keys of the metadata that training writes, beside step and format."""
_STAGE = re.compile(r"^stages\.[^.]*\.")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a checkpoint."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: tuple[Any, ...] | None
    """Mesh axes of its dimensions when it was written; () is whole on every device, None is on one
    device."""
    trainable: bool = True

    @property
    def count(self) -> int:
        """Number of its entries."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory; on disk it is compressed."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Contents:
    """The metadata of one checkpoint."""

    path: epath.Path
    steps: list[int]
    """Steps that have a checkpoint in the same folder."""
    stages: dict[str, list[int]]
    """Steps that have a checkpoint, by stage, where a workdir was inspected."""
    meta: dict[str, Any]
    config: dict[str, Any]
    """Resolved settings as JSON, also those that are unknown to this memjax."""
    parameters: list[Array]
    optimizer: list[Array]
    mesh: dict[str, int]
    """Devices along each mesh axis when it was written; empty if it was on one device."""

    @property
    def stage(self) -> dict[str, Any]:
        """Settings of the stage that was trained."""
        return self.config["stages"][self.meta["stage"]]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON, for programs."""
        keys = ("step", "stage", "format_version", "tokenizer", "seconds", "next_row")
        return {
            "path": str(self.path),
            **{key: self.meta.get(key) for key in keys},
            "steps": self.steps,
            "stages": self.stages,
            "family": self.stage["family"],
            "objectives": self.stage["objectives"],
            "metrics": self.meta.get("metrics", {}),
            "mesh": self.mesh,
            "parameters": {
                **totals(self.parameters),
                "trainable": totals(array for array in self.parameters if array.trainable),
                "frozen": totals(array for array in self.parameters if not array.trainable),
                "arrays": [
                    _described(array) | {"trainable": array.trainable} for array in self.parameters
                ],
            },
            "optimizer": {
                **totals(self.optimizer),
                "arrays": [_described(array) for array in self.optimizer],
            },
            "changed": changed(self.config),
            "config": self.config,
        }


def inspect_checkpoint(path: str | os.PathLike) -> Contents:
    """Read the metadata of a checkpoint, and no array.

    Args:
      path: a workdir (of its stages the last of the curriculum that has a checkpoint), a stage's
        folder, its `checkpoints` (the last step), or one step; on disk or in a bucket
        (`gs://bucket/folder`).

    Raises:
      CheckpointError: there is none, or its metadata cannot be read.
    """
    path = absolute(path)
    stages = trained_stages(path)
    if stages:
        folder = path / "stages" / _last(path / "stages", stages) / "checkpoints"
    elif path.name.isdigit() and (path / "params").is_dir():
        folder = path.parent
    else:
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = finished_steps(folder)
    step = int(path.name) if folder == path.parent else max(steps, default=None)
    CheckpointError.require(step in steps, f"{path}: no finished checkpoint here; {PLACES}")
    return _contents(folder / str(step), steps, stages)


def totals(arrays: Iterable[Array]) -> dict[str, int]:
    """Return the entries and the bytes of several arrays."""
    arrays = list(arrays)
    return {
        "count": sum(array.count for array in arrays),
        "bytes": sum(array.bytes for array in arrays),
    }


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that differ from their defaults, by their keys on the command line."""
    stage = json.loads(json.dumps(dataclasses.asdict(Stage())))
    usual = flat(json.loads(to_json(Config()))) | flat({"stages": {"": stage}})
    return {
        key: value
        for key, value in flat(config).items()
        if value != usual.get(_STAGE.sub("stages..", key))
    }


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their keys on the command line."""
    return flatten_dict(config, is_leaf=lambda path, _: path[-1:] == ("objectives",), sep=".")


def _last(folder: epath.Path, stages: Mapping[str, list[int]]) -> str:
    """Return the last stage of the curriculum that has a checkpoint, or else any stage."""
    name, steps = next(iter(stages.items()))
    meta = read_meta(folder / name / "checkpoints" / str(max(steps)))
    shape = {"curriculum": [str]}
    found, _ = attempt(lambda: parse_json(meta["config"], folder, CheckpointError, shape))
    order = found["curriculum"] if found else ()
    return next((stage for stage in reversed(order) if stage in stages), name)


def _contents(path: epath.Path, steps: list[int], stages: dict[str, list[int]]) -> Contents:
    meta = read_meta(path)
    require_keys(meta, WRITTEN, path)
    found, why = attempt(lambda: _describe(path))
    CheckpointError.require(
        found is not None, f"{path}: the metadata of its arrays cannot be read ({why})"
    )
    stage = {"family": str, "steps": int, "objectives": {str: float}, "trainable": [[object]]}
    where, shape = (
        f"{path}: the checkpoint cannot be read: config",
        {"stages": {meta["stage"]: stage}},
    )
    config = parse_json(meta["config"], where, CheckpointError, shape)
    key = f"config.stages.{meta['stage']}.trainable"
    rules = tuple(map(tuple, config["stages"][meta["stage"]]["trainable"]))
    parameters, why = attempt(
        lambda: [
            dataclasses.replace(array, trainable=match_rules(rules, array.path, key))
            for array in _arrays(found[0])
        ]
    )
    CheckpointError.require(parameters is not None, f"{path}: {key} cannot be read ({why})")
    return Contents(
        path, steps, stages, meta, config, parameters, _arrays(found[1]), _mesh(found[0])
    )


def _describe(path: epath.Path) -> list[Any]:
    """Return the trees of metadata of parameters and optimizer, verified; no array is read."""
    items, parts = ITEMS[:2], ("_", "array_metadatas/", "d/", "manifest")
    verify(path, ("meta/", *(f"{item}/{part}" for item in items for part in parts)))
    return [ocp.StandardCheckpointHandler().metadata(path / item).tree for item in items]


def _arrays(tree: Any) -> list[Array]:
    """Return the metadata of a tree's arrays that Orbax keeps."""
    arrays = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        spec = getattr(leaf.sharding, "partition_spec", None)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        arrays.append(
            Array(
                name, tuple(leaf.shape), np.dtype(leaf.dtype), None if spec is None else tuple(spec)
            )
        )
    return arrays


def _mesh(tree: Any) -> dict[str, int]:
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf.sharding, "partition_spec"):
            return dict(zip(leaf.sharding.axis_names, map(int, leaf.sharding.shape), strict=True))
    return {}


def _described(array: Array) -> dict[str, Any]:
    return {
        "path": array.path,
        "shape": array.shape,
        "dtype": str(array.dtype),
        "bytes": array.bytes,
        "sharding": array.sharding,
    }
