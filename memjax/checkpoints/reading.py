"""Finished checkpoints, read without the program, the mesh or the devices that wrote them."""

import gc
import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath

from memjax.layers.lora import merge_lora

FORMAT_VERSION = 1
ITEMS = ("params", "optimizer", "meta")
"""What a checkpoint is made of, a folder each."""


class CheckpointError(ValueError):
    """A checkpoint is absent, damaged or of another model; the message names the folder."""


def load_params(
    folder: str | os.PathLike, step: int | Literal["best"] | None = None, place: Callable[[Any], Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and meta of one checkpoint; needs neither the module nor the mesh that wrote them.

    Adapters that were trained (memjax/layers/lora.py) are added to the matrices they stand beside.

    Args:
      folder: where the checkpoints are, on disk or in a bucket (`gs://bucket/folder`).
      step: which one; by default the last, and `best` by the number that config.checkpoint_best names.
      place: from the tree of shapes and dtypes to a layout for every leaf; by default all are on this machine's first device.

    Raises:
      CheckpointError: there is none, or it cannot be read.
    """
    folder = absolute(folder)
    path = folder / str(_chosen(folder, step))
    params, why = attempt(lambda: load_arrays(path / "params", place))
    if params is None:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({why})")
    return merge_lora(params), read_meta(path)


def load_arrays(path: epath.Path, place: Callable[[Any], Any] | None = None) -> Any:
    """The arrays of one item of a checkpoint, `params` or `optimizer`, as a tree of dictionaries and lists."""
    handler = ocp.StandardCheckpointHandler()
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), handler.metadata(path).tree)
    if place:
        wanted = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), wanted, place(wanted))
    return handler.restore(path, args=ocp.args.StandardRestore(wanted))


def read_meta(path: epath.Path) -> dict[str, Any]:
    """What the checkpoint `path` says of itself.

    Raises:
      CheckpointError: it cannot be read, or is of another format.
    """
    meta, why = attempt(lambda: json.loads((path / "meta" / "metadata").read_text()))
    if meta is None:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({why})")
    return checked(meta, path)


def checked(meta: dict[str, Any], path: epath.Path) -> dict[str, Any]:
    """`meta` if it is of the format that is read here; CheckpointError if not."""
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: checkpoint of format {version}, while this memjax reads format {FORMAT_VERSION}")
    return meta


def absolute(folder: str | os.PathLike) -> epath.Path:
    """The folder, on disk or in a bucket, whatever the working directory is.

    Raises:
      CheckpointError: it is in a bucket and what reads buckets is not installed.
    """
    path = epath.Path(folder)
    if str(path).startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise CheckpointError(f"{path}: buckets are read and written by the package gcsfs; pip install 'memjax[gcs]'")
    # A bucket's path counts as absolute, and yet `absolute()` would put the working directory before it.
    return path if path.is_absolute() else path.absolute()


def finished_steps(folder: epath.Path) -> list[int]:
    """Steps that have a finished checkpoint in `folder`, ascending."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdigit() and ocp.path.step.is_path_finalized(path))


def score(name: str, metrics: Mapping[str, float] | None) -> float:
    """How good numbers on held-out rows are by the one called `name`: more is better, -inf is not known.

    Args:
      name: as config.checkpoint_best; accuracies are best high, nats low.
      metrics: the numbers, or None.
    """
    value = (metrics or {}).get(name, math.nan)
    value = value if name.endswith("/accuracy") else -value
    return -math.inf if math.isnan(value) else value


def _chosen(folder: epath.Path, step: int | Literal["best"] | None) -> int:
    steps = finished_steps(folder)
    if not steps or (isinstance(step, int) and step not in steps):
        there = ", ".join(map(str, steps)) or "none"
        of_step = f" of step {step}" if isinstance(step, int) else ""
        raise CheckpointError(f"{folder}: no checkpoint{of_step} here (steps there: {there})")
    if step != "best":
        return steps[-1] if step is None else step
    metas = {number: read_meta(folder / str(number)) for number in steps}
    name = json.loads(metas[steps[-1]]["config"])["checkpoint_best"]
    scores = {number: score(name, meta.get("metrics")) for number, meta in metas.items()}
    if max(scores.values()) == -math.inf:
        raise CheckpointError(
            f"{folder}: none of the checkpoints ({', '.join(map(str, steps))}) is known to be best; that takes a run with"
            " config.checkpoint_best set to a number on held-out rows, such as next_token/nats"
        )
    # Of equals the last, as in what is kept.
    return max(steps, key=lambda number: (scores[number], number))


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """What `read` returns and "", or None and why it failed."""
    try:
        return read(), ""
    except Exception as error:
        text = str(error).strip()
        why = text.splitlines()[0][:200] if text else type(error).__name__
    # Orbax abandons its other reads, and each complains when it is collected: they are collected here, unheard.
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    disabled, log.disabled, sys.unraisablehook = log.disabled, True, lambda _: None
    try:
        gc.collect()
    finally:
        log.disabled, sys.unraisablehook = disabled, hook
    return None, why
