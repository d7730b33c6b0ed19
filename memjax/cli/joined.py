"""Commands that several processes run together."""

import contextlib
import json
from argparse import Namespace
from collections.abc import Iterator

from memjax.progress import SILENT, Reporter


@contextlib.contextmanager
def joined(given: Namespace, stderr: bool = False) -> Iterator[Reporter]:
    """Connect the processes of a command, which divide its work in the block.

    Yields:
      A reporter, which shows nothing in processes other than the first.

    Args:
      given: words and flags, the same in all processes.
      stderr: whether messages go to standard error.

    Raises:
      ProcessesError: the processes cannot connect, or have other words or flags.
    """
    # These import JAX: after the flags are checked.
    from memjax.sharding import ProcessMonitor, connect, first_process, require_equal, sharing

    reporter = Reporter(stderr=stderr)
    connect(reporter.log)
    with ProcessMonitor(reporter.log), sharing():
        require_equal(json.dumps(vars(given), default=str), "the command")
        yield reporter if first_process() else SILENT
