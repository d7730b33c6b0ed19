"""A signal stops a process whose data do not come."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from memjax.sharding import ProcessMonitor


@pytest.mark.parametrize("comes", [False, True])
def test_a_signal_ends_the_wait_for_a_batch_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    ended, said, sent = threading.Event(), [], []

    def end(pid: int, number: int) -> None:
        sent.append((pid, number))
        ended.set()

    def batches() -> Iterator[int]:
        signal.raise_signal(signal.SIGTERM)
        yield comes or ended.wait(20)

    monkeypatch.setattr(os, "kill", end)
    monitor = ProcessMonitor(said.append, slow_after=0.05)
    with monitor.stop_requests():
        assert monitor.next(batches())[0]
        assert monitor.stop_here() == signal.SIGTERM
        ended.wait(0.2)
    assert sent == ([] if comes else [(os.getpid(), signal.SIGTERM)])
    assert len(said) == len(sent)
    assert not said or said[0].startswith("stopped by signal 15 within 0 s of waiting for a batch.")
