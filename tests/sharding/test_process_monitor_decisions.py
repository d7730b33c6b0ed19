"""What a process monitor decides, from heartbeats of a service that is a dictionary."""

import json
import signal
import threading
import time
from collections.abc import Callable

import jax
import pytest

from memjax.sharding import ProcessMonitor, coordination, process_monitor

BEAT = 0.01


class Service(dict):
    """Values by key, and what the monitor under test said and how it ended."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.statuses: list[int] = []
        self.delays: list[bool] = []
        self.left: list[bool] = []
        self.gone = False

    def read(self, prefix: str) -> list[tuple[str, str]]:
        return [(key, text) for key, text in dict(self).items() if key.startswith(f"{prefix}/")]

    def send(self, process: int, **changes: object) -> None:
        """Send a heartbeat of another process."""
        beat = {"beat": 1, "state": "running", "why": "", "signal": 0, "point": None}
        orders = {"end": "", "agree": False, "stop": None}
        beat |= {"who": f"process {process}", "waiting": 0.0, "orders": orders} | changes
        self[f"memjax/heartbeats/{process}/beat"] = json.dumps(beat)

    def sent(self, process: int) -> dict:
        return json.loads(self.get(f"memjax/heartbeats/{process}/beat", "{}"))

    def wait_for_beats(self) -> None:
        """Wait until the monitor under test, in process 0, has sent three more."""
        number = self.sent(0).get("beat", 0)
        until(lambda: self.sent(0).get("beat", 0) > number + 3)

    def monitor(self, dead_after: float = 60.0) -> ProcessMonitor:
        return ProcessMonitor(self.said.append, dead_after, slow_after=1.0)


@pytest.fixture
def service(monkeypatch) -> Service:
    made = Service()
    monkeypatch.setattr(coordination, "read", made.read)
    monkeypatch.setattr(coordination, "write", made.__setitem__)
    monkeypatch.setattr(coordination, "is_gone", lambda timeout: made.gone)
    monkeypatch.setattr(coordination, "delay_abort", made.delays.append)
    monkeypatch.setattr(coordination, "skip_shutdown_barrier", lambda: made.left.append(True))
    monkeypatch.setattr(process_monitor, "_exit", made.statuses.append)
    monkeypatch.setattr(process_monitor, "BEAT", BEAT)
    monkeypatch.setattr(process_monitor, "_LOST", 5 * BEAT)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    return made


@pytest.fixture
def second(service, monkeypatch) -> Service:
    """The service, where the monitor under test is process 1."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    service.send(0)
    return service


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(BEAT / 2)


def test_a_process_without_heartbeats_counts_as_dead(service):
    with service.monitor(dead_after=5 * BEAT):
        until(lambda: service.statuses)
    assert service.statuses[0] == 1
    assert (
        "process 0 ends: process 1 has sent no heartbeat for 0 s and counts as" in service.said[0]
    )
    assert service.delays == [True, False]


def test_a_failure_ends_the_others_and_names_its_cause(service):
    service.send(1, state="failed", why="ValueError: broken")
    with service.monitor():
        until(lambda: service.statuses)
    assert "process 0 ends: process 1 failed: ValueError: broken. Run the same" in service.said[0]


def test_a_process_that_waits_for_data_is_named_once_each_time(service):
    service.send(1, waiting=2.0)
    with service.monitor():
        until(lambda: service.said)
        assert service.said[0].startswith("process 1 has waited 2 s for its next batch")
        service.wait_for_beats()
        assert len(service.said) == 1
        service.send(1, beat=2)
        service.wait_for_beats()
        service.send(1, beat=3, waiting=3.0)
        until(lambda: len(service.said) == 2)
    assert not service.statuses


def test_all_processes_stop_at_the_first_point_that_none_has_passed(service):
    with service.monitor() as monitor:
        assert not monitor.stop_here()
        service.send(1, signal=int(signal.SIGTERM))  # From now on a stop point waits for process 1.
        until(lambda: service.sent(0).get("point") is not None)
        service.send(1, beat=2, signal=int(signal.SIGTERM), point=3)
        until(lambda: service.sent(0)["orders"]["stop"])
        assert service.sent(0)["orders"]["stop"] == [4, signal.SIGTERM]
        assert [monitor.stop_here() for _ in range(3)] == [0, 0, signal.SIGTERM]
    assert not service.statuses and service.sent(0)["state"] == "finished"


def test_the_others_follow_the_orders_of_process_0(second):
    with second.monitor() as monitor:
        assert not monitor.stop_here()
        second.send(0, beat=2, orders={"end": "", "agree": True, "stop": None})
        until(lambda: second.sent(1).get("point") == 1)
        second.send(0, beat=3, orders={"end": "", "agree": True, "stop": [2, 15]})
        assert monitor.stop_here() == 15
        second.send(0, beat=4, orders={"end": "process 7 is lost", "agree": False, "stop": None})
        until(lambda: second.statuses)
    assert "process 1 ends: process 7 is lost. Run the same command" in second.said[0]


def test_a_failure_of_process_0_ends_the_others(second):
    second.send(0, beat=2, state="failed", why="OSError: full")
    with second.monitor():
        until(lambda: second.statuses)
    assert "process 1 ends: process 0 failed: OSError: full. Run" in second.said[0]


@pytest.mark.parametrize(
    ("gone", "message"), [(True, "is gone. Run"), (False, "has sent no heartbeat for")]
)
def test_the_others_watch_process_0(second, gone, message):
    second.gone = gone
    with second.monitor(dead_after=60.0 if gone else 5 * BEAT):
        until(lambda: second.statuses)
    assert f"process 0, which coordinates the others, {message}" in second.said[0]


@pytest.mark.parametrize("state", ["finished", "failed", "cut off"])
def test_an_error_is_sent_to_the_others(service, state, monkeypatch):
    service.send(1)
    error = ValueError("Gloo connection reset" if state == "cut off" else "first line\nsecond")
    if state == "finished":
        error.signal = signal.SIGTERM
    states = []

    def write(key, text):
        states.append(json.loads(text)["state"])
        service[key] = text

    monkeypatch.setattr(coordination, "write", write)
    with pytest.raises(ValueError, match=str(error)), service.monitor():
        raise error
    assert states[-1] == ("finished" if state == "finished" else "failed")
    assert ("cut off" in states) == (state == "cut off")
    assert service.left == ([] if state == "finished" else [True])
    if state == "failed":
        assert service.sent(0)["why"] == "ValueError: first line"


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_thread_ends_one_of_several_processes(service, processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    service.send(1)
    with service.monitor() as monitor:
        monitor.fail("folder: full")
        sent = service.sent(0)
    if processes == 1:
        assert not service.statuses and not service.said
        return
    assert service.statuses == [1] and (sent["state"], sent["why"]) == ("failed", "folder: full")
    (line,) = service.said
    assert line.startswith("process 0 ends: folder: full. Run the same command on all processes")


def test_a_second_signal_ends_the_process_at_once(service, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    monitor = service.monitor()
    with monitor, monitor.stop_requests():
        signal.raise_signal(signal.SIGINT)
        assert monitor.stop_here() == signal.SIGINT and not service.statuses
        signal.raise_signal(signal.SIGTERM)
    assert service.statuses == [128 + signal.SIGTERM]
    assert "ends: a second signal came, number 15." in service.said[0]


def test_signals_are_left_alone_outside_the_main_thread(service):
    before, inside = signal.getsignal(signal.SIGTERM), []

    def ask() -> None:
        with service.monitor().stop_requests():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert inside == [before]
