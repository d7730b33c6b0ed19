"""Checkpoints of one stage, by Orbax: asynchronous, atomic, readable without their program.

A checkpoint is three items: `params` (all parameters, frozen ones too), `optimizer` (its state and
the step) and `meta` (JSON: resolved config, stage, data position, tokenizer fingerprint, seconds
trained, numbers on held-out rows, format version). A model is used by reading `params` and `meta`
alone (reading.py). Beside them lie the checksums of their files (checksums.py).
"""

import contextlib
import errno
import functools
import itertools
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from memjax.checkpoints.checksums import SEALED, seal, verify
from memjax.checkpoints.reading import (
    FORMAT_VERSION,
    ITEMS,
    CheckpointError,
    absolute,
    attempt,
    read_meta,
    reason,
    score,
)
from memjax.errors import MemjaxError
from memjax.files import explain, listing, read_json, writing

_LOG = logging.getLogger("memjax")
# Orbax logs the traceback of every thread of a save that fails, and raises the error as well; the
# writes that it abandons then complain when they are collected.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(
        lambda log: not (log.exc_info and "orbax" in f"{log.pathname} {log.getMessage()}")
    )


class Checkpoints:
    """The checkpoints in one folder: the latest `keep`, and the best one besides.

    All processes call the same methods.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 2,
        report: Callable[[str], None] = _LOG.warning,
        best: str = "",
        failed: Callable[[str], None] = lambda why: None,
    ):
        """Open or make `folder`; removes and reports saves that a kill cut short.

        Args:
          folder: on disk or in a bucket (`gs://bucket/folder`).
          keep: number of latest checkpoints that stay.
          report: logs, in the first process, the damage in the folder.
          best: number on held-out rows, as config.checkpoint_best, by which one more stays; empty
            for none.
          failed: called in a thread with the reason of a save that failed. Of several processes it
            must end this one: the others wait for the save, and the next call for them.
        """
        self.folder = absolute(folder)
        self._report, self._failed = report, failed
        self._barrier, self._thread = ocp.multihost.get_barrier_sync_fn(), threading.get_ident()
        self._score = functools.partial(score, best)
        # The others come to the folder when Orbax lets them, after the first.
        if jax.process_index() == 0:
            self._set_aside_unfinished(math.inf if best else keep)
        stay: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if best:
            stay.append(
                policies.BestN(
                    get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            async_options=ocp.options.AsyncOptions(
                barrier_sync_fn=self._meet, post_finalization_callback=self._seal
            ),
            preservation_policy=policies.AnyPreservationPolicy(stay),
            best_fn=self._score,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)
        self._best = self._best_there()
        self._hook = sys.unraisablehook
        sys.unraisablehook = _except_abandoned(self._hook)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The last of `steps`."""
        return max(self.steps(), default=None)

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these held-out numbers are better than those of every checkpoint there."""
        return self._score(metrics) > self._best

    def save(self, step: int, params: Any, optimizer: Any, meta: Mapping[str, Any]) -> None:
        """Start a save, unless the step has one.

        Arrays are copied before it returns, so they may be donated.

        `meta["metrics"]`, where there are any, are the numbers on held-out rows after this step.

        Raises:
          OSError, CheckpointError: the save before it failed, or this one cannot start.
        """
        if step in self.steps():
            return
        metrics = meta.get("metrics", {})
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            meta=ocp.args.JsonSave(
                {**meta, "format_version": FORMAT_VERSION, "step": step, SEALED: True}
            ),
        )
        with self._saving():
            self._manager.save(step, args=items, metrics=metrics)
        self._best = max(self._best, self._score(metrics))

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
          OSError, CheckpointError: it failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and end all threads; raises as `wait`."""
        try:
            with self._saving():
                self._manager.close()
        finally:
            sys.unraisablehook = self._hook

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restore_latest(
        self, params: Any, optimizer: Any
    ) -> tuple[int, Any, Any, dict[str, Any]] | None:
        """Return the last whole checkpoint as (step, params, optimizer, meta), or None.

        A checkpoint that cannot be read is renamed to `damaged-STEP` and reported, and the one
        before it is tried.

        Args:
          params: abstract tree (shapes, dtypes, shardings) to restore onto.
          optimizer: abstract tree of the optimizer's state and the step.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            # In this order: where one process finds damage, the others need not read.
            meta, why = attempt(functools.partial(_verified_meta, path))
            found = None
            if not (why := _why_anywhere(why)):
                found, why = attempt(functools.partial(_read, path, params, optimizer))
                why = _why_anywhere(why)
            if found is None or why:
                damaged.append((step, why))
                continue
            for bad, why in damaged:
                self._set_aside(bad, why, f"resuming from step {step}")
            return step, *found, meta
        if len(damaged) > 1:
            # Several at once have another cause than one save: a full disk, a changed program.
            # Nothing is moved.
            step, why = damaged[0]
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints can be read; that of step {step}: {why}"
            )
        for bad, why in damaged:
            self._set_aside(bad, why, "it is the only one: training this stage from its beginning")
        return None

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Raise the failure of a save, which may be of an earlier call, with the folder's name."""
        try:
            with writing(self.folder):
                yield
        except (MemjaxError, OSError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: a save failed ({reason(error)}). Run the same command again to"
                " resume from the one before it"
            ) from error

    def _meet(self, key: str, timeout_ms: int) -> None:
        """Wait for the other processes; in Orbax's thread with its error if a save failed here."""
        if threading.get_ident() != self._thread and (error := sys.exc_info()[1]):
            try:
                with self._saving():
                    raise error
            except OSError as known:
                self._failed(explain(known))
            except MemjaxError as known:
                self._failed(str(known))
        self._barrier(key=key, timeout_ms=timeout_ms)

    def _seal(self) -> None:
        """Read the metadata of the save that is about to count, and write its checksums."""
        path = next(
            path
            for path in listing(self.folder)
            if path.name.partition(".")[0].isdigit() and ocp.path.step.is_path_temporary(path)
        )
        for item in ITEMS[:2]:
            ocp.StandardCheckpointHandler().metadata(path / item)
        seal(path)

    def _best_there(self) -> float:
        """Score of the best checkpoint, -inf if there is none."""
        step = self._manager.best_step()
        return -math.inf if step is None else self._score(self._manager.metrics(step))

    def _set_aside(self, step: int, why: str, remedy: str) -> None:
        path = self.folder / str(step)
        if jax.process_index() == 0:
            self._report(
                f"{path}: this checkpoint is damaged ({why}); kept as {_move_aside(path).name},"
                f" {remedy}"
            )
        multihost_utils.sync_global_devices(f"set aside {path}")
        self._manager.reload()
        self._best = self._best_there()

    def _set_aside_unfinished(self, keep: float) -> None:
        """Remove saves that a kill cut short, which Orbax never counts as checkpoints, and what it
        left of checkpoints before the last `keep`, which were being removed.
        """
        whole = 0
        by_step = sorted(listing(self.folder), key=lambda path: (len(path.name), path.name))
        for path in reversed(by_step):
            # On disk a finished save is renamed; in a bucket, which cannot rename, a mark is put
            # into it.
            temporary = ocp.path.step.is_path_temporary(path)
            if not (temporary or path.name.isdigit()):
                continue
            lacks = "" if temporary else _lacks(path)
            if not (temporary or lacks):
                whole += 1
            elif temporary or whole >= keep:
                _remove(path)
                step = re.match(r"\d+", path.name)
                self._report(
                    f"{self.folder}: the save of step {step.group() if step else path.name} was"
                    " cut short; removed, the one before it counts"
                    if temporary
                    else f"{path}: the removal of this checkpoint was cut short; removed"
                )
            else:
                self._report(
                    f"{path}: this checkpoint lacks {lacks}; kept as {_move_aside(path).name}, the"
                    " one before it counts"
                )


def _remove(path: epath.Path) -> None:
    """Remove a folder; writers of a save that failed in this process may end meanwhile."""
    deleter = ocp.path.deleter.PathDeleter(path.parent)
    for patience in (0.1, 0.3, 1.0, 3.0):
        try:
            deleter.delete(path)
        except OSError as error:
            # A file went, or came, between the listing of a folder and its removal.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
        if not path.exists():
            return
        time.sleep(patience)
    deleter.delete(path)


def _except_abandoned(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `sys.unraisablehook` without the complaints of TensorStore about writes that Orbax
    abandons when one has failed.
    """
    return lambda said: str(said.exc_value) == "Event loop is closed" or hook(said)


def _verified_meta(path: epath.Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint; each process verifies the files that it wrote."""
    meta = read_meta(path)
    verify(path, reader=jax.process_index(), readers=jax.process_count())
    return meta


def _read(path: epath.Path, params: Any, optimizer: Any) -> tuple[Any, Any]:
    """Return the arrays of a checkpoint. Orbax's manager would wait for processes that failed."""
    handler = ocp.StandardCheckpointHandler()
    return (
        handler.restore(path / "params", args=ocp.args.StandardRestore(params)),
        handler.restore(path / "optimizer", args=ocp.args.StandardRestore(optimizer)),
    )


def _why_anywhere(why: str) -> str:
    """Return why any process failed, the same on all of them; empty if none did."""
    if jax.process_count() == 1:
        return why
    everyone = multihost_utils.process_allgather(
        np.frombuffer(why.encode()[:200].ljust(200), np.uint8)
    )
    texts = [bytes(text).decode(errors="ignore").strip() for text in everyone]
    return next((f"in process {i}: {text}" for i, text in enumerate(texts) if text), "")


def _lacks(path: epath.Path) -> str:
    """Return the missing parts that a checkpoint needs to be opened."""
    missing = [item for item in ITEMS if not (path / item).is_dir()]
    if missing:
        return ", ".join(missing)
    # Orbax reads the marks and numbers of all checkpoints when it opens their folder, and fails if
    # it cannot.
    mark, closed = path / "_CHECKPOINT_METADATA", ocp.path.step.Metadata(int(path.name), path)
    if attempt(lambda: (read_json(mark, CheckpointError), closed.commit_timestamp))[1]:
        return "its closing mark"
    metrics = path / "metrics" / "metrics"
    _, why = attempt(lambda: metrics.exists() and read_json(metrics, CheckpointError))
    return "metrics that can be read" if why else ""


def _move_aside(path: epath.Path) -> epath.Path:
    """Rename a checkpoint so that it no longer counts; earlier renamed ones stay."""
    names = itertools.chain(
        [f"damaged-{path.name}"], (f"damaged-{path.name}-{n}" for n in itertools.count(2))
    )
    name = next(name for name in names if not (path.parent / name).exists())
    return path.rename(path.parent / name)
