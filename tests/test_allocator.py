"""The allocator: a command uses the pages again that it freed, unless its programs are large."""

import subprocess
import sys

import pytest

from memjax.allocator import LARGEST_KEPT

ROUNDS, PAGES = 5, 80_000
COMMAND = f"""
import resource, sys, threading
from types import SimpleNamespace
from memjax.allocator import suit
from memjax.cli import inspect
from memjax.cli.main import main

def fill():
    for _ in range({ROUNDS}):
        b"1" * ({PAGES} * 4096)

def run(given):
    memory = SimpleNamespace(temp_size_in_bytes=int(given.path))
    program = SimpleNamespace(memory_analysis=lambda: memory)
    assert suit(program) is program
    thread = threading.Thread(target=fill)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

inspect.run = run
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(("temporaries", "made"), [(LARGEST_KEPT, 1), (LARGEST_KEPT + 1, ROUNDS)])
def test_pages_that_a_thread_freed_are_used_again(temporaries: int, made: int) -> None:
    """The kernel makes the pages of a block once, or at each of its allocations.

    The command's own threads must not have allocated before: arenas of threads return large blocks.
    """
    command = [sys.executable, "-c", COMMAND, "inspect", str(temporaries)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 * made < int(found.stdout) / PAGES < made + 0.5, found.stderr
