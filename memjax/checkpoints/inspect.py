"""What a checkpoint holds, told from its metadata alone: no array is read, and none of the devices that wrote it is needed."""

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

from memjax.checkpoints.reading import CheckpointError, absolute, attempt, finished_steps, read_meta
from memjax.config import Config, Stage, match_rules, to_json

PLACES = "give a workdir of `memjax train`, a stage's folder in it, that folder's `checkpoints`, or one step of these"
SAID = ("stage", "config", "tokenizer", "seconds", "next_row")
"""What training says of a checkpoint beside its step and format."""
_STAGE = re.compile(r"^stages\.[^.]*\.")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a checkpoint."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: tuple[Any, ...] | None
    """Mesh axes of its dimensions when it was written, () for whole on every device; None if it was on one device."""
    trainable: bool = True

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory; on disk it is compressed."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Contents:
    """What one checkpoint is and holds."""

    path: epath.Path
    steps: list[int]
    """Steps that have a checkpoint in the same folder."""
    stages: dict[str, list[int]]
    """The same of every stage of the run, if a run was asked about."""
    meta: dict[str, Any]
    config: dict[str, Any]
    """Resolved settings as JSON has them; those that this memjax does not know too."""
    parameters: list[Array]
    optimizer: list[Array]
    mesh: dict[str, int]
    """Devices along each mesh axis when it was written; empty if it was on one device."""

    @property
    def stage(self) -> dict[str, Any]:
        """Settings of the stage that was trained."""
        return self.config["stages"][self.meta["stage"]]

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        meta = self.meta
        told = {key: meta.get(key) for key in ("step", "stage", "format_version", "tokenizer", "seconds", "next_row")}
        kinds = {
            "trainable": [array for array in self.parameters if array.trainable],
            "frozen": [array for array in self.parameters if not array.trainable],
        }
        return {
            "path": str(self.path),
            **told,
            "steps": self.steps,
            "stages": self.stages,
            "family": self.stage["family"],
            "objectives": self.stage["objectives"],
            "metrics": meta.get("metrics", {}),
            "mesh": self.mesh,
            "parameters": {
                **totals(self.parameters),
                **{kind: totals(arrays) for kind, arrays in kinds.items()},
                "arrays": [_described(array) | {"trainable": array.trainable} for array in self.parameters],
            },
            "optimizer": {**totals(self.optimizer), "arrays": [_described(array) for array in self.optimizer]},
            "changed": changed(self.config),
            "config": self.config,
        }


def inspect_checkpoint(path: str | os.PathLike) -> Contents:
    """Reads what there is to know about a checkpoint without its arrays.

    Args:
      path: a workdir (of its stages the last of the curriculum that has a checkpoint), a stage's folder, its `checkpoints` (the last step),
        or one step; on disk or in a bucket (`gs://bucket/folder`).

    Raises:
      CheckpointError: there is none, or its metadata cannot be read.
    """
    path = absolute(path)
    stages = _stages(path)
    if stages:
        folder = path / "stages" / _last(path / "stages", stages) / "checkpoints"
    elif path.name.isdigit() and (path / "params").is_dir():
        folder = path.parent
    else:
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = finished_steps(folder)
    step = int(path.name) if folder == path.parent else max(steps, default=None)
    if step not in steps:
        raise CheckpointError(f"{path}: no finished checkpoint here; {PLACES}")
    return _contents(folder / str(step), steps, stages)


def totals(arrays: Iterable[Array]) -> dict[str, int]:
    """Numbers and bytes of several arrays."""
    arrays = list(arrays)
    return {"count": sum(array.count for array in arrays), "bytes": sum(array.bytes for array in arrays)}


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not what they are by default, by their keys on the command line."""
    stage = json.loads(json.dumps(dataclasses.asdict(Stage())))
    usual = flat(json.loads(to_json(Config()))) | flat({"stages": {"": stage}})
    return {key: value for key, value in flat(config).items() if value != usual.get(_STAGE.sub("stages..", key))}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their keys on the command line."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        settings |= flat(value, f"{key}.") if isinstance(value, Mapping) and name != "objectives" else {key: value}
    return settings


def _stages(workdir: epath.Path) -> dict[str, list[int]]:
    """Steps that have a checkpoint, of every stage of a workdir that has some; nothing if it is no workdir."""
    folder = workdir / "stages"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    steps = {name: finished_steps(folder / name / "checkpoints") for name in names}
    return {name: there for name, there in steps.items() if there}


def _last(folder: epath.Path, stages: Mapping[str, list[int]]) -> str:
    """The last stage of the curriculum that has a checkpoint, as `memjax.load` takes it; any other if it has none."""
    name, steps = next(iter(stages.items()))
    meta = read_meta(folder / name / "checkpoints" / str(max(steps)))
    curriculum = json.loads(meta.get("config", "{}")).get("curriculum", ())
    return next((stage for stage in reversed(curriculum) if stage in stages), name)


def _contents(path: epath.Path, steps: list[int], stages: dict[str, list[int]]) -> Contents:
    meta = read_meta(path)
    missing = [key for key in SAID if key not in meta]
    if missing:
        raise CheckpointError(f"{path} does not say its {', '.join(missing)}; checkpoints that `memjax train` writes do")
    handler = ocp.StandardCheckpointHandler()
    found, why = attempt(lambda: [handler.metadata(path / item).tree for item in ("params", "optimizer")])
    if found is None:
        raise CheckpointError(f"{path}: what the checkpoint holds cannot be read ({why})")
    config = json.loads(meta["config"])
    rules = tuple((pattern, value) for pattern, value in config["stages"][meta["stage"]]["trainable"])
    parameters = [
        dataclasses.replace(array, trainable=match_rules(rules, array.path, f"config.stages.{meta['stage']}.trainable"))
        for array in _arrays(found[0])
    ]
    return Contents(path, steps, stages, meta, config, parameters, _arrays(found[1]), _mesh(found[0]))


def _arrays(tree: Any) -> list[Array]:
    """Metadata that Orbax keeps of a tree's arrays, by path."""
    arrays = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        spec = getattr(leaf.sharding, "partition_spec", None)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        arrays.append(Array(name, tuple(leaf.shape), np.dtype(leaf.dtype), None if spec is None else tuple(spec)))
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
