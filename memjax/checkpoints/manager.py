"""Checkpoints of one stage, by Orbax: asynchronous, atomic, and readable without the program that wrote them.

A checkpoint is three items: `params` (all parameters, frozen ones too), `optimizer` (its state and the step) and `meta`
(JSON: resolved config, stage, data position, tokenizer fingerprint, seconds trained, numbers on held-out rows, format version). A
model is used by reading `params` and `meta` alone (reading.py).
"""

import functools
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from memjax.checkpoints.reading import FORMAT_VERSION, ITEMS, CheckpointError, absolute, attempt, checked, score

_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder: the latest `keep`, and the best one apart. With several processes all call the same methods."""

    def __init__(self, folder: str | os.PathLike, keep: int = 2, report: Callable[[str], None] = _LOG.warning, best: str = ""):
        """Opens or makes `folder`; what a killed save left there is removed, and `report` is told.

        Args:
          folder: on disk or in a bucket (`gs://bucket/folder`).
          keep: how many of the latest stay.
          report: is told, in the first process, what was wrong with the folder.
          best: number on held-out rows, as config.checkpoint_best, by which one more stays; empty for none.
        """
        self.folder = absolute(folder)
        self._report = report
        self._score = functools.partial(score, best)
        # The others come to the folder when Orbax lets them, after the first.
        if jax.process_index() == 0:
            self._set_aside_unfinished()
        stay: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if best:
            stay.append(policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(stay), best_fn=self._score, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)
        self._best = self._best_there()

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The last of `steps`."""
        return max(self.steps(), default=None)

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether these numbers on held-out rows are better than those of every checkpoint that is kept."""
        return self._score(metrics) > self._best

    def save(self, step: int, params: Any, optimizer: Any, meta: Mapping[str, Any]) -> None:
        """Starts saving. Arrays are copied before it returns, so they may be donated; a step that is there is left alone.

        `meta["metrics"]`, where there are any, are the numbers on held-out rows after this step.
        """
        if step in self.steps():
            return
        metrics = meta.get("metrics", {})
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            meta=ocp.args.JsonSave({**meta, "format_version": FORMAT_VERSION, "step": step}),
        )
        self._manager.save(step, args=items, metrics=metrics)
        self._best = max(self._best, self._score(metrics))

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
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            found, why = attempt(functools.partial(_read, self.folder / str(step), params, optimizer))
            if why := _why_anywhere(why):
                damaged.append((step, why))
                continue
            meta = checked(found[2], self.folder / str(step))
            for bad, why in damaged:
                self._set_aside(bad, why, f"going on from step {step}")
            return step, found[0], found[1], meta
        if len(damaged) > 1:
            # Several at once are no accident of one save: a full disk, a changed program. Nothing is moved.
            step, why = damaged[0]
            raise CheckpointError(f"{self.folder}: none of the checkpoints can be read; that of step {step}: {why}")
        for bad, why in damaged:
            self._set_aside(bad, why, "it is the only one: starting this stage again")
        return None

    def _best_there(self) -> float:
        """Score of the best checkpoint, -inf if there is none."""
        step = self._manager.best_step()
        return -math.inf if step is None else self._score(self._manager.metrics(step))

    def _set_aside(self, step: int, why: str, going_on: str) -> None:
        path = self.folder / str(step)
        if jax.process_index() == 0:
            self._report(f"{path}: this checkpoint is damaged ({why}); kept as {_move_aside(path).name}, {going_on}")
        multihost_utils.sync_global_devices(f"set aside {path}")
        self._manager.reload()
        self._best = self._best_there()

    def _set_aside_unfinished(self) -> None:
        """Removes saves that a kill cut short; Orbax never counts them as checkpoints."""
        for path in sorted(self.folder.iterdir()) if self.folder.exists() else ():
            # On disk a finished save is renamed; in a bucket, which cannot rename, a mark is put into it.
            if ocp.path.step.is_path_temporary(path):
                step = re.match(r"\d+", path.name)
                ocp.path.deleter.PathDeleter(self.folder).delete(path)
                self._report(
                    f"{self.folder}: the save of step {step.group() if step else path.name} was cut short; removed, the one before it"
                    " counts"
                )
            elif path.name.isdigit() and (lacks := _lacks(path)):
                self._report(
                    f"{path}: this checkpoint lacks {lacks}; kept as {_move_aside(path).name}, the one before it counts"
                )


def _read(path: epath.Path, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The items of a checkpoint. The manager would read them too, and then wait for processes that failed to."""
    handler = ocp.StandardCheckpointHandler()
    return (
        handler.restore(path / "params", args=ocp.args.StandardRestore(params)),
        handler.restore(path / "optimizer", args=ocp.args.StandardRestore(optimizer)),
        json.loads((path / "meta" / "metadata").read_text()),
    )


def _why_anywhere(why: str) -> str:
    """Why this process or another failed, which all must know to go on alike; empty if none did."""
    if jax.process_count() == 1:
        return why
    everyone = multihost_utils.process_allgather(np.frombuffer(why.encode()[:200].ljust(200), np.uint8))
    texts = [bytes(text).decode(errors="ignore").strip() for text in everyone]
    return next((f"in process {i}: {text}" for i, text in enumerate(texts) if text), "")


def _lacks(path: epath.Path) -> str:
    """What a checkpoint needs to be opened and has not."""
    missing = [item for item in ITEMS if not (path / item).is_dir()]
    if missing:
        return ", ".join(missing)
    if not (path / "_CHECKPOINT_METADATA").exists():
        return "its closing mark"
    # Orbax reads the numbers of all checkpoints when it opens their folder, and fails if it cannot.
    metrics = path / "metrics" / "metrics"
    _, why = attempt(lambda: metrics.exists() and json.loads(metrics.read_text()))
    return "metrics that can be read" if why else ""


def _move_aside(path: epath.Path) -> epath.Path:
    """Renames a checkpoint so that it counts no more; what was moved before stays."""
    names = itertools.chain([f"damaged-{path.name}"], (f"damaged-{path.name}-{n}" for n in itertools.count(2)))
    name = next(name for name in names if not (path.parent / name).exists())
    return path.rename(path.parent / name)
