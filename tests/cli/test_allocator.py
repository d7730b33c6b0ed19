"""`keep_freed_memory`: a command uses the pages again that it freed."""

import subprocess
import sys

import pytest

ROUNDS, PAGES = 5, 80_000
COMMAND = f"""
import resource, sys, threading
from memjax.cli import inspect
from memjax.cli.main import main

def fill():
    for _ in range({ROUNDS}):
        b"1" * ({PAGES} * 4096)

def run(given):
    thread = threading.Thread(target=fill)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

inspect.run = run
sys.argv = ["memjax", "inspect", "a path"]
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_pages_that_a_thread_freed_are_used_again():
    """The kernel makes the pages of a block once, not at each of its allocations.

    The command's own threads must not have allocated before: arenas of threads return large blocks.
    """
    found = subprocess.run(
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True
    )
    assert 0.9 * PAGES < int(found.stdout) < 1.5 * PAGES, found.stderr
