"""Several processes as one program: how they find each other, and how they agree."""

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

DEAD_AFTER = float(os.environ.get("MEMJAX_DEAD_AFTER_SECONDS", "60"))
"""Seconds without a sign of life after which a process counts as dead."""
SLOW_AFTER = float(os.environ.get("MEMJAX_SLOW_AFTER_SECONDS", "20"))
"""Seconds of waiting, for its data or for the others at the start, after which a process is reported."""
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class ProcessesError(RuntimeError):
    """The processes of a program cannot find each other, or differ; the message names which."""


def connect(say: Callable[[str], None] = print) -> None:
    """Joins the processes of this program, before JAX looks for devices; alone it does nothing.

    On Cloud TPU, GKE and Slurm, JAX finds the others itself. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are. `say` is told when the others let wait for themselves; after five minutes
    without them JAX ends the process.

    Raises:
      ProcessesError: some of the three variables are missing or wrong.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    missing = [name for name in _VARIABLES if name not in given]
    if given and missing:
        raise ProcessesError(
            f"{', '.join(given)} is set and {', '.join(missing)} is not; several processes need all three, one process none"
        )
    # It counts the steps of a stage, and its notices are lost where the stage ends before all have it; `Watch` has its own.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX ends a process without a word on which other is dead: it must not be the first to find that.
    join = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=int(2 * DEAD_AFTER) + 10)
    try:
        if not given:
            _join_what_is_found(join)
            return
        address, count, number = (given[name] for name in _VARIABLES)
        if int(count) > 1:
            late = threading.Timer(
                SLOW_AFTER, say, [f"process {number} of {count} waits for the others; 0 is to be at {address}"]
            )
            late.daemon = True
            late.start()
            try:
                join(address, int(count), int(number))
            finally:
                late.cancel()
    except (ValueError, RuntimeError) as error:
        raise ProcessesError(f"the processes do not come together ({error}); given were {given or 'no variables'}") from error


def _join_what_is_found(join: Callable[[], None]) -> None:
    """Joins whatever cluster JAX recognises, if it does and is not at work alone already."""
    try:
        join()
    except (ValueError, RuntimeError) as error:
        if not any(reason in str(error) for reason in ("should be defined", "must be called before")):
            raise


def first_process() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(value: Any) -> Any:
    """What the first process says of a number or a truth value, on every process; a collective, so all must ask."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def require_equal(value: str, what: str) -> None:
    """Raises ProcessesError, on all processes, if a text is not the same on every one."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    everyone = multihost_utils.process_allgather(digest)
    different = [i for i, theirs in enumerate(everyone) if (theirs != everyone[0]).any()]
    if different:
        raise ProcessesError(
            f"{what} of process {', '.join(map(str, different))} is not that of process 0; all processes need the same"
        )
