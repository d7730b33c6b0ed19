"""The status of a run: time by its use, reasons of stops, and that it never ends a run."""

import contextlib
import json
import threading
from pathlib import Path

import jax
import pytest
from etils import epath

from memjax.checkpoints import CheckpointError
from memjax.files import write_text
from memjax.training import status as module
from memjax.training.loop import Preempted
from memjax.training.status import (
    EVALUATION,
    EVERY,
    SAVES,
    Progress,
    Session,
    Shares,
    Status,
    StatusError,
    read_status,
    shares,
    status_json,
)


class Clock:
    """Unix time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def status_of(folder: Path, clock: Clock, said: list[str] | None = None) -> Status:
    return Status(epath.Path(folder), (said if said is not None else []).append, clock)


def killed(folder: Path, clock: Clock, step: int, seconds: float, tokens: int = 0) -> None:
    """A session that trains `a` from `step` for ten steps and ends without a word."""
    status = status_of(folder, clock)
    status.__enter__()
    status.begin_stage("a", step, 100)
    finish_writing()
    clock.now += max(seconds, EVERY)
    status.stepped("a", step + 10, tokens, seconds)
    finish_writing()


def finish_writing() -> None:
    for thread in threading.enumerate():
        if thread.name == "memjax-status":
            thread.join()


def test_speed_and_mfu_are_those_of_steps(tmp_path: Path, clock: Clock) -> None:
    with status_of(tmp_path, clock) as status:
        status.begin_stage("a", 5, 25, peak_seconds=0.5)
        status.stepped("a", 10, 300, 6.0)
        status.stepped("a", 25, 900, 14.0)
    (session,) = read_status(tmp_path)
    progress = session.stages["a"]
    assert progress == Progress(5, 25, 25, 25, seconds=20.0, tokens=1200, peak_seconds=0.5)
    assert progress.tokens_per_second == 60.0
    assert progress.mfu == 0.5
    assert (session.state, session.processes, session.devices) == ("finished", 1, 1)
    assert session.device_kind == "cpu"
    written = json.loads((tmp_path / "status.json").read_text())
    assert written["sessions"][0]["stages"]["a"]["mfu"] == 0.5
    assert Progress(5, 5, 5, 25).mfu is None


def test_steps_that_a_later_session_repeats_do_not_count(tmp_path: Path, clock: Clock) -> None:
    """Steps 1 to 10 in 40 s, of which 4 are saved; 100 s nothing; 5 to 14 in 30 s, then again."""
    killed(tmp_path, clock, 0, 40.0)
    clock.now += 100.0
    killed(tmp_path, clock, 4, 30.0)
    with status_of(tmp_path, clock) as status:
        status.begin_stage("a", 4, 100)
        clock.now += 10.0
        status.stepped("a", 6, 0, 6.0)
    sessions = read_status(tmp_path)
    assert [session.state for session in sessions] == ["killed", "killed", "finished"]
    assert sessions[0].reason == "without a last write, while training a"
    assert [session.stages["a"].kept for session in sessions] == [4, 4, 6]
    used = shares(sessions)
    assert used == Shares(counted=22.0, lost=54.0, apart={}, starting=4.0, between=100.0)
    assert used.total == 180.0 and used.goodput == pytest.approx(22 / 180)


def test_a_stage_from_its_beginning_loses_all_earlier_steps(tmp_path: Path, clock: Clock) -> None:
    killed(tmp_path, clock, 0, 40.0)
    killed(tmp_path, clock, 0, 40.0)
    first, second = read_status(tmp_path)
    assert (first.stages["a"].counted, second.stages["a"].counted) == (0.0, 40.0)


def test_an_evaluation_after_the_end_costs_no_goodput(tmp_path: Path, clock: Clock) -> None:
    for _ in range(2):
        with status_of(tmp_path, clock) as status:
            status.begin_stage("a", 0, 10)
            clock.now += 10.0
            status.stepped("a", 10, 0, 5.0)
        clock.now += 1e6
    assert shares(read_status(tmp_path)).total == 10.0


def test_time_apart_from_steps_is_counted_by_kind(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "monotonic", clock)
    with status_of(tmp_path, clock) as status:
        for kind, seconds in [(SAVES, 1.0), (EVALUATION, 2.0), (SAVES, 3.0)]:
            with status.timing(kind):
                clock.now += seconds
        with contextlib.suppress(KeyError), status.timing(SAVES):
            clock.now += 4.0
            raise KeyError
        assert status.apart == 10.0
        status.saved()
    (session,) = read_status(tmp_path)
    assert session.apart == {"saves": 8.0, "evaluation": 2.0} and session.saves == 1
    assert shares([session]).starting == 0.0


ENDS = {
    "signal": (
        Preempted("a: stopped by signal 15; step 3 is saved", 15),
        ("stopped", "SIGTERM: a: stopped by signal 15; step 3 is saved"),
    ),
    "Ctrl-C": (KeyboardInterrupt(), ("stopped", "Ctrl-C")),
    "an error of ours": (CheckpointError("x: gone"), ("failed", "x: gone")),
    "a full disk": (
        OSError(28, "No space left on device", "x"),
        (
            "failed",
            "x: No space left on device, expected room for it. Free space and run the same command"
            " again",
        ),
    ),
    "another": (IndexError("one\ntwo"), ("failed", r"IndexError: one\ntwo")),
}


@pytest.mark.parametrize(("error", "end"), ENDS.values(), ids=ENDS.keys())
def test_an_error_is_the_reason_of_a_stop(
    tmp_path: Path, clock: Clock, error: BaseException, end: tuple[str, str]
) -> None:
    with pytest.raises(type(error)), status_of(tmp_path, clock):
        raise error
    (session,) = read_status(tmp_path)
    assert (session.state, session.reason) == end


@pytest.mark.parametrize(("status", "state"), [(1, "failed"), (143, "stopped")])
def test_what_a_monitor_ends_has_its_reason(
    tmp_path: Path, clock: Clock, status: int, state: str
) -> None:
    run = status_of(tmp_path, clock)
    run.cut_off("before it began", status)
    run.__enter__()
    run.cut_off("process 1 is gone", status)
    (session,) = read_status(tmp_path)
    assert (session.state, session.reason) == (state, "process 1 is gone")


def test_it_is_written_rarely_and_at_saves_and_new_activities(tmp_path: Path, clock: Clock) -> None:
    status = status_of(tmp_path, clock)

    def last() -> int:
        finish_writing()
        return read_status(tmp_path)[0].stages["a"].last

    status.__enter__()
    assert read_status(tmp_path)[0].reason == "preparing data"
    status.begin_stage("a", 0, 100)
    assert last() == 0
    for step in (1, 2):
        clock.now += EVERY - 1
        status.stepped("a", step, 0, 1.0)
        assert last() == {1: 0, 2: 2}[step]
    for step, write in [(3, status.saved), (4, lambda: status.doing("evaluating"))]:
        status.stepped("a", step, 0, 1.0)
        assert last() < step
        write()
        assert last() == step


def test_a_write_that_fails_or_hangs_ends_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    with status_of(tmp_path / "file" / "folder", clock, said) as status:
        status.doing("evaluating")
        finish_writing()
    (line,) = said
    assert line.startswith(f"{tmp_path / 'file' / 'folder' / 'status.json'}: the status cannot be")
    assert line.endswith("The run continues")
    answered = threading.Event()
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr(module, "write_text", lambda path, text: answered.wait(20))
    with status_of(tmp_path, clock) as status:
        status.doing("evaluating")
    answered.set()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no JSON"),
        ('{"format": 2, "sessions": []}', "format: 2, expected 1"),
        ('{"format": 1, "sessions": [{}]}', "sessions.0: no began, expected it there"),
    ],
)
def test_a_damaged_file_is_named_and_replaced(
    tmp_path: Path, clock: Clock, text: str, why: str
) -> None:
    path, said = tmp_path / "status.json", []
    write_text(path, text)
    with pytest.raises(StatusError, match=f"^{path}: {why}"):
        read_status(tmp_path)
    with status_of(tmp_path, clock, said):
        pass
    assert len(said) == 1 and said[0].startswith(f"{path}: {why}")
    assert said[0].endswith("A new file replaces it")
    assert len(read_status(tmp_path)) == 1


def test_without_a_file_there_is_none() -> None:
    with pytest.raises(StatusError, match=r"^/nowhere/status.json: no such file, expected JSON"):
        read_status("/nowhere")


def test_another_process_writes_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with status_of(tmp_path, clock) as status:
        status.begin_stage("a", 0, 100)
        status.stepped("a", 1, 0, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_clocks_that_differ_give_no_negative_times() -> None:
    early, late = (Session(began, began + 5.0, 1, 1, "cpu", "killed") for began in (1e9, 1e9 - 100))
    assert shares([early, late]) == Shares(0.0, 0.0, {}, starting=10.0, between=0.0)
    assert status_json([])["goodput"] == 0.0
