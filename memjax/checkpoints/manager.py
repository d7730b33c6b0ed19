"""Checkpoints of one stage, by Orbax: asynchronous, atomic, and readable without the program that wrote them.

A checkpoint is three items: `params` (all parameters, frozen ones too), `optimizer` (its state and the step) and `meta`
(JSON: resolved config, stage, data position, tokenizer fingerprint, seconds trained, format version). A model is used by
reading `params` and `meta` alone.
"""

import gc
import itertools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

FORMAT_VERSION = 1
_LOG = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is absent, damaged or of another model; the message names the folder."""


class Checkpoints:
    """The checkpoints in one folder, oldest deleted beyond `keep`."""

    def __init__(self, folder: str | os.PathLike, keep: int = 2, report: Callable[[str], None] = _LOG.warning):
        """Opens or makes `folder`; what a killed save left there is removed, and `report` is told."""
        self.folder = Path(folder).absolute()
        self._report = report
        self._set_aside_unfinished()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("params", "optimizer", "meta"))

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The last of `steps`."""
        return max(self.steps(), default=None)

    def save(self, step: int, params: Any, optimizer: Any, meta: Mapping[str, Any]) -> None:
        """Starts saving. Arrays are copied before it returns, so they may be donated; a step that is there is left alone."""
        if step in self.steps():
            return
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            meta=ocp.args.JsonSave({**meta, "format_version": FORMAT_VERSION, "step": step}),
        )
        self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restore_latest(self, params: Any, optimizer: Any) -> tuple[int, Any, Any, dict[str, Any]] | None:
        """The last whole checkpoint as (step, params, optimizer, meta), or None.

        Args:
          params: abstract tree (shapes, dtypes, shardings) to restore onto.
          optimizer: the same of the optimizer's state and the step.

        A checkpoint that cannot be read is renamed to `damaged-STEP`, reported, and the one before it is tried.
        """
        read = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
            meta=ocp.args.JsonRestore(),
        )
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            found, why = _attempt(lambda step=step: self._manager.restore(step, args=read))
            if found is None:
                damaged.append((step, why))
                continue
            meta = _checked(found.meta, self.folder / str(step))
            for bad, why in damaged:
                self._set_aside(bad, why, f"going on from step {step}")
            return step, found.params, found.optimizer, meta
        if len(damaged) > 1:
            # Several at once are no accident of one save: a full disk, a changed program. Nothing is moved.
            step, why = damaged[0]
            raise CheckpointError(f"{self.folder}: none of the checkpoints can be read; that of step {step}: {why}")
        for bad, why in damaged:
            self._set_aside(bad, why, "it is the only one: starting this stage again")
        return None

    def _set_aside(self, step: int, why: str, going_on: str) -> None:
        kept = _move_aside(self.folder / str(step))
        self._manager.reload()
        self._report(f"{self.folder / str(step)}: this checkpoint is damaged ({why}); kept as {kept.name}, {going_on}")

    def _set_aside_unfinished(self) -> None:
        """Removes saves that a kill cut short; Orbax never counts them as checkpoints."""
        for path in sorted(self.folder.glob("*orbax-checkpoint-tmp*")):
            step = re.match(r"\d+", path.name)
            self._report(
                f"{self.folder}: the save of step {step.group() if step else path.name} was cut short; removed, the one before it counts"
            )
            shutil.rmtree(path, ignore_errors=True)
        for path in sorted(p for p in self.folder.glob("*") if p.name.isdigit()):
            missing = [item for item in ("params", "optimizer", "meta") if not (path / item).is_dir()]
            if missing or not (path / "_CHECKPOINT_METADATA").exists():
                damaged = _move_aside(path)
                what = f"lacks {', '.join(missing)}" if missing else "lacks its closing mark"
                self._report(f"{path}: this checkpoint {what}; kept as {damaged.name}, the one before it counts")


def _move_aside(path: Path) -> Path:
    """Renames a checkpoint so that it counts no more; what was moved before stays."""
    names = itertools.chain([f"damaged-{path.name}"], (f"damaged-{path.name}-{n}" for n in itertools.count(2)))
    name = next(name for name in names if not (path.parent / name).exists())
    return path.rename(path.parent / name)


def _attempt(read: Callable[[], Any]) -> tuple[Any, str]:
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


def _checked(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: checkpoint of format {version}, while this memjax reads format {FORMAT_VERSION}")
    return meta


def load_params(folder: str | os.PathLike, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and meta of a checkpoint folder's last (or given) step, on this machine's first device.

    Needs neither the module nor the mesh that wrote them.

    Raises:
      CheckpointError: there is none, or it cannot be read.
    """
    folder = Path(folder).absolute()
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"{folder}: no checkpoint{'' if step is None else f' of step {step}'} here (steps there: {there})"
        )
    path = folder / str(steps[-1] if step is None else step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        handler = ocp.StandardCheckpointHandler()
        tree = handler.metadata(path / "params").tree
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
        params = handler.restore(path / "params", args=ocp.args.StandardRestore(abstract))
        return params, json.loads((path / "meta" / "metadata").read_text())

    found, why = _attempt(read)
    if found is None:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({why})")
    params, meta = found
    return params, _checked(meta, path)
