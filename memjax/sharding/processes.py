"""Several processes as one program: connecting them, and agreeing on values."""

import contextlib
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from os import _exit
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from memjax.errors import MemjaxError
from memjax.sharding import coordination
from memjax.sharding.roll_call import meet

DEAD_AFTER = float(os.environ.get("MEMJAX_DEAD_AFTER_SECONDS", "60"))
"""Seconds without a heartbeat after which a process counts as dead."""
SLOW_AFTER = float(os.environ.get("MEMJAX_SLOW_AFTER_SECONDS", "20"))
"""Seconds of waiting, for data or for other processes, after which a process is reported."""
_CONNECT_WITHIN = float(os.environ.get("MEMJAX_CONNECT_SECONDS", "300"))
"""Seconds of waiting for the other processes to connect, after which a process ends."""
_ALONE = ("should be defined", "must be called before")
"""JAX's reasons, without these variables, to leave a process alone: it detects no cluster, or its
devices are in use."""
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_CLUSTERS = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    *("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)
"""Variables from which JAX learns of other processes where those are not given."""


class ProcessesError(MemjaxError):
    """The processes of a program cannot connect, or differ; the message names which."""

    status = 1


def connect(log: Callable[[str], None] = print) -> None:
    """Connect the processes of this program before JAX initialises devices.

    Nothing happens if they are connected, or if this process is alone.

    On Cloud TPU, GKE and Slurm, JAX discovers the other processes. Elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A
    process ends if the others do not connect within five minutes (MEMJAX_CONNECT_SECONDS).

    Args:
      log: called with a message if the others are late, and another one at the end.

    Raises:
      ProcessesError: some of the three variables are missing or wrong, or the port is in use.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    missing = [name for name in _VARIABLES if name not in given]
    ProcessesError.require(
        not given or not missing,
        f"{', '.join(missing)}: not set, expected a value besides {', '.join(given)}. Several"
        " processes need all three variables, one process none",
    )
    # JAX's service counts the steps of a stage and loses notices if the stage ends before all
    # processes receive them. `ProcessMonitor` replaces it.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX ends a process without a message of ours, so its timeouts must be the longer ones.
    join = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=int(2 * _CONNECT_WITHIN) + 10,
        heartbeat_timeout_seconds=int(2 * DEAD_AFTER) + 10,
    )
    known = given or {name: os.environ[name] for name in _CLUSTERS if name in os.environ}
    source = ", ".join(f"{name}={value}" for name, value in known.items()) or "the environment"
    with _reports(log, source):
        try:
            if not given:
                join()
            elif int(given["JAX_NUM_PROCESSES"]) > 1:
                address, count, number = given.values()
                place = address, int(count), int(number)
                if int(number) < int(count):  # Otherwise JAX refuses it.
                    meet(*place, coordination.reserve(*place))
                join(*place)
        except (ValueError, RuntimeError, OSError) as error:
            if not given and any(reason in str(error) for reason in _ALONE):
                return
            raise ProcessesError(
                f"the processes cannot connect ({error}), got {source}. Check these values: process"
                " 0 needs a free port of its machine, and every process its own number"
            ) from error


@contextlib.contextmanager
def _reports(log: Callable[[str], None], source: str) -> Iterator[None]:
    """Report after a while that this process waits, and end it when it has waited too long.

    JAX waits in C++, where no exception can reach it.
    """

    def waits() -> None:
        log(f"{coordination.place()} waits for the others to connect: {source}")

    def end() -> None:
        log(
            f"{coordination.place()} ends: the others did not connect within"
            f" {_CONNECT_WITHIN:.0f} s, got {source}. Start all of them, with the same values but"
            " for their number, or unset these variables to run one process alone"
        )
        sys.stdout.flush()
        _exit(ProcessesError.status)

    timers = [threading.Timer(SLOW_AFTER, waits), threading.Timer(_CONNECT_WITHIN, end)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def first_process() -> bool:
    """Return whether this is process 0, which writes the shared files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(value: Any) -> Any:
    """Return process 0's number or truth value on every process.

    This is a collective: all processes must call it.
    """
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def require_equal(value: str, what: str) -> None:
    """Check that a text is the same on all processes.

    Raises:
      ProcessesError: a process has another text; raised on all processes.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    everyone = multihost_utils.process_allgather(digest)
    different = [i for i, theirs in enumerate(everyone) if (theirs != everyone[0]).any()]
    ProcessesError.require(
        not different,
        f"{what}: process {', '.join(map(str, different))} has another value than process 0,"
        " expected the same on all processes",
    )
