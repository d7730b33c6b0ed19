"""One of several processes to which things happen: run by test_processes.py.

    python process.py PLAN train --config=... --workdir=...
    python process.py PLAN

The first is `memjax train`, the second only meets the others again and again. PLAN is JSON:
`record` names a file for the numbers of the rows that are read, and a number is a batch, or a
meeting or the end of a stage of them, before which something happens: `sleep` (seconds), `pause`
(seconds from there on), `until` (a path is there), `signal` (to itself), `error`, `full` (bytes
that a file may have from there on, as on a full disk).
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from memjax.cli.main import main
from memjax.data.rows import Rows
from memjax.sharding import ProcessMonitor, agreed, connect
from memjax.training.loop import Preempted

MEETINGS = 10
"""Of a stage."""


def record(path: Path) -> None:
    """Notes every row that is read, and of which split."""
    read = Rows.read

    def recorded(rows: Rows, indices: list[int]) -> object:
        split = next(iter(rows.info["files"])).partition("-")[0]
        with path.open("a") as file:
            file.write("".join(f"{split} {index}\n" for index in indices))
        return read(rows, indices)

    Rows.read = recorded


def happenings(plan: dict) -> Callable[[], None]:
    """Called before every batch or meeting, lets happen what is planned there."""
    number, pause = 0, 0.0

    def happen() -> None:
        nonlocal number, pause
        number += 1
        what = plan.get(str(number), {})
        pause = what.get("pause", pause)
        time.sleep(pause + what.get("sleep", 0.0))
        while not Path(what.get("until", "/")).exists():
            time.sleep(0.1)
        if "signal" in what:
            os.kill(os.getpid(), what["signal"])
        if "full" in what:
            resource.setrlimit(resource.RLIMIT_FSIZE, (what["full"], resource.RLIM_INFINITY))
        if "error" in what:
            raise OSError(what["error"])

    return happen


def disturb(happen: Callable[[], None]) -> None:
    """Lets it happen where the loop waits for its data."""
    take = ProcessMonitor.next

    def late(batches: object) -> object:
        happen()
        yield next(batches)

    ProcessMonitor.next = lambda watch, batches: take(watch, late(batches))


def meet(happen: Callable[[], None]) -> None:
    """Meets the others in two stages, in which all may be asked to stop, and then on."""
    connect()
    with ProcessMonitor(lambda text: print(text, flush=True)) as watch:
        for stage in (1, 2):
            with watch.stop_requests():
                for number in range(MEETINGS):
                    happen()
                    assert agreed(number) == number
                    if asked := watch.stop_here():
                        raise Preempted(f"stopped in stage {stage} after meeting {number}", asked)
                happen()
        for number in range(MEETINGS):
            happen()
            assert agreed(number) == number


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    if "record" in plan:
        record(Path(plan["record"]))
    if sys.argv[2:]:
        disturb(happenings(plan))
        sys.exit(main(sys.argv[2:]))
    try:
        meet(happenings(plan))
    except Preempted as interrupted:
        print(interrupted)
        sys.exit(128 + interrupted.signal)
