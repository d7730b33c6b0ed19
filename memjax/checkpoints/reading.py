"""Finished checkpoints, read without the program, the mesh or the devices that wrote them."""

import gc
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath

from memjax.checkpoints.checksums import verify
from memjax.config import Config, ConfigError
from memjax.errors import MemjaxError
from memjax.files import listing, parse_json, paths, read_json, require_shape
from memjax.layers.lora import merge_lora
from memjax.objectives import load_config

_LOG = logging.getLogger("memjax")
FORMAT_VERSION = 1
MODEL = ("params/", "meta/")
"""Beginnings of the paths of files that a model is read from."""
_SHAPE = {
    **dict.fromkeys(("stage?", "config?", "tokenizer?"), str),
    "step": int,
    "next_row?": int,
    "seconds?": float,
    "metrics?": dict,
}
"""The shape of the metadata."""
ITEMS = ("params", "optimizer", "meta")
"""The items of a checkpoint, one folder each."""

Step = int | Literal["best"] | None
"""A checkpoint of a stage: that of a step, the best one that was kept, or the last."""


class CheckpointError(MemjaxError):
    """A checkpoint is absent, damaged or of another model; the message names the folder."""


class FormatError(CheckpointError):
    """A checkpoint is of another memjax: whole, but not to be read."""


def load_params(
    folder: str | os.PathLike,
    step: Step = None,
    place: Callable[[Any], Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return parameters and metadata of one checkpoint, on any machine.

    Adapters that were trained (memjax/layers/lora.py) are added to the matrices they stand beside.

    Args:
      folder: where the checkpoints are, on disk or in a bucket (`gs://bucket/folder`).
      step: which one; by default the last, and `best` by the number that config.checkpoint_best
        names.
      place: from the tree of shapes and dtypes to a layout for every leaf; by default all are on
        this machine's first device.

    Raises:
      CheckpointError: there is none, or it cannot be read.
    """
    folder = absolute(folder)
    path = folder / str(_chosen(folder, step))
    meta = read_meta(path)
    _verify_model(path)
    return read_params(path, place), meta


def _verify_model(path: epath.Path) -> None:
    """Raise CheckpointError unless the model of a checkpoint is what was written."""
    _, why = attempt(lambda: verify(path, MODEL))
    CheckpointError.require(not why, f"{path}: the checkpoint cannot be read ({why})")


def read_params(path: epath.Path, place: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """Return the parameters of the checkpoint `path`, whose files are verified; see `load_params`.

    Raises:
      CheckpointError: they cannot be read.
    """
    params, why = attempt(lambda: load_arrays(path / "params", place))
    CheckpointError.require(params is not None, f"{path}: the checkpoint cannot be read ({why})")
    return merge_lora(params)


def load_sound(
    folder: str | os.PathLike, step: Step = None
) -> tuple[epath.Path, dict[str, Any], Config]:
    """Return path, metadata and config of a checkpoint whose model is what was written.

    Parameters and metadata are verified.

    Args:
      folder: as in `load_params`.
      step: which one; by default the last that is not damaged. Later ones are logged.

    Raises:
      CheckpointError: there is none.
    """
    folder = absolute(folder)
    last = _chosen(folder, step)
    damaged: dict[epath.Path, CheckpointError] = {}
    for number in reversed(finished_steps(folder)) if step is None else (last,):
        path = folder / str(number)
        try:
            meta = read_meta(path)
            require_keys(meta, ("stage", "config", "tokenizer"), path)
            config = read_config(meta["config"], folder)
            _verify_model(path)
        except CheckpointError as error:
            damaged[path] = error
            continue
        for error in damaged.values():
            _LOG.warning("%s; that of step %d is used", error, number)
        return path, meta, config
    raise next(iter(damaged.values()))


def read_config(
    stored: str | Mapping[str, Any],
    where: str | os.PathLike,
    error: type[CheckpointError] = CheckpointError,
) -> Config:
    """Return the config that was stored with weights, checked.

    Every config but that of the command line is parsed here.

    Args:
      stored: JSON, or what it holds.
      where: the file, for messages.
      error: the class of errors to raise.

    Raises:
      CheckpointError: it is no JSON, or a setting is not one that this memjax has or allows.
    """
    try:
        return load_config(stored)
    except ConfigError as caught:
        raise error(f"{where}: its config cannot be used ({caught})") from caught
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as caught:
        raise error(
            f"{where}: its config cannot be read ({type(caught).__name__}); the file is damaged"
        ) from caught


def load_arrays(path: epath.Path, place: Callable[[Any], Any] | None = None) -> Any:
    """Return the arrays of `params` or `optimizer` of a checkpoint as a tree."""
    handler = ocp.StandardCheckpointHandler()
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), handler.metadata(path).tree
    )
    if place:
        wanted = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            wanted,
            place(wanted),
        )
    return handler.restore(path, args=ocp.args.StandardRestore(wanted))


def read_meta(path: epath.Path) -> dict[str, Any]:
    """Return the metadata of the checkpoint `path`.

    Raises:
      CheckpointError: it cannot be read, or is of another format.
    """
    meta, why = attempt(lambda: read_json(path / "meta" / "metadata", CheckpointError))
    CheckpointError.require(not why, f"{path}: the checkpoint cannot be read ({why})")
    version = meta.get("format_version")
    FormatError.require(
        version == FORMAT_VERSION,
        f"{path}: checkpoint of format {version}, while this memjax reads format {FORMAT_VERSION}",
    )
    require_shape(meta, _SHAPE, f"{path}: the checkpoint cannot be read", CheckpointError)
    CheckpointError.require(
        meta.get("step") == int(path.name),
        f"{path}: the checkpoint cannot be read (its step is {meta.get('step')}, expected"
        f" {path.name})",
    )
    return meta


def require_keys(meta: Mapping[str, Any], keys: Iterable[str], path: epath.Path) -> None:
    """Raise CheckpointError if the metadata of the checkpoint `path` lack any of `keys`."""
    missing = [key for key in keys if key not in meta]
    CheckpointError.require(
        not missing,
        f"{path}: metadata without {', '.join(missing)}, expected those of `memjax train`",
    )


def absolute(folder: str | os.PathLike) -> epath.Path:
    """Return the absolute path of a folder on disk or in a bucket.

    Raises:
      CheckpointError: it is in a bucket and what reads buckets is not installed.
    """
    return paths.absolute(folder, CheckpointError)


def finished_steps(folder: epath.Path) -> list[int]:
    """Return the steps that have a finished checkpoint in `folder`, in ascending order."""
    return sorted(
        int(path.name)
        for path in listing(folder)
        if path.name.isdigit() and ocp.path.step.is_path_finalized(path)
    )


def trained_stages(workdir: epath.Path) -> dict[str, list[int]]:
    """Return the steps that have a checkpoint, for every stage of a workdir that has one."""
    folder = workdir / "stages"
    names = sorted(path.name for path in listing(folder))
    steps = {name: finished_steps(folder / name / "checkpoints") for name in names}
    return {name: there for name, there in steps.items() if there}


def score(name: str, metrics: Mapping[str, float] | None) -> float:
    """Return the metric `name`, signed so that higher is better; -inf if it is missing.

    Args:
      name: as config.checkpoint_best; accuracies are best high, nats low.
      metrics: the numbers, or None.
    """
    value = (metrics or {}).get(name, math.nan)
    if type(value) not in (int, float) or math.isnan(value):
        return -math.inf
    return value if name.endswith("/accuracy") else -value


def _chosen(folder: epath.Path, step: Step) -> int:
    steps = finished_steps(folder)
    there = ", ".join(map(str, steps)) or "none"
    of_step = f" of step {step}" if isinstance(step, int) else ""
    CheckpointError.require(
        step in steps if isinstance(step, int) else steps,
        f"{folder}: no checkpoint{of_step} here (steps there: {there})",
    )
    if step != "best":
        return steps[-1] if step is None else step
    metas = {number: read_meta(folder / str(number)) for number in steps}
    require_keys(metas[steps[-1]], ("config",), folder / str(steps[-1]))
    config = parse_json(metas[steps[-1]]["config"], folder, CheckpointError)
    name = str(config.get("checkpoint_best"))
    scores = {number: score(name, meta.get("metrics")) for number, meta in metas.items()}
    CheckpointError.require(
        max(scores.values()) > -math.inf,
        f"{folder}: none of the checkpoints ({there}) is known to be best;"
        " that takes a run with config.checkpoint_best set to a number on held-out rows, such as"
        " next_token/nats",
    )
    # Of equals the last, as in what is kept.
    return max(steps, key=lambda number: (scores[number], number))


def reason(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its class."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of `read` and "", or None and the reason of its failure.

    Raises:
      FormatError: the checkpoint is of another memjax.
    """
    try:
        return read(), ""
    except FormatError:
        raise
    except Exception as error:
        why = reason(error)
    # Orbax abandons its other reads, and each complains when it is collected: they are collected
    # here, unheard.
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    disabled, log.disabled, sys.unraisablehook = log.disabled, True, lambda _: None
    try:
        gc.collect()
    finally:
        log.disabled, sys.unraisablehook = disabled, hook
    return None, why
