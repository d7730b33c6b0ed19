"""Several real processes are one run: they compute what one does, read each its own rows, stop
together, and name the one that is gone."""

import concurrent.futures
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from memjax.checkpoints import load_params
from memjax.config import Optimizer, usual_evaluators
from memjax.data import TrainBatches, evenly_spaced
from memjax.evaluation.evaluators import held_out, validation
from memjax.sharding import ProcessesError, ProcessMonitor, connect, process_monitor
from memjax.testing import tiny_config, write_config, write_corpus
from memjax.training.status import read_status, shares

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
STEPS, ROWS, STOPPED_AT = 14, 8, 3
SPLIT = "--config.mesh.data=1", "--config.mesh.fsdp=-1"
"""Parameters split over all devices."""
READ_AHEAD = 24
"""Batches that are read before they are asked for, at most."""
CLOCK = {"tokens_per_second", "seconds", "checkpoint_seconds", "loader_seconds"}
DEAD_AFTER = "6"
VARIABLES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
FULL = 20_000
"""Bytes, above those of all files that are written in training but a checkpoint's."""
END_OF_STAGE = 11
"""What follows the meetings of a stage (process.py)."""


class Ended(NamedTuple):
    """How a process ended and what it said."""

    status: int
    said: str
    pid: int


def together(
    folder: Path,
    script: str,
    args: list[list[str]],
    devices: int = 1,
    hung: int | None = None,
    **environment: str,
) -> list[Ended]:
    """Runs a script in as many processes as there are lists of arguments, each with some devices,
    and waits for all but the one that hangs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    started = []
    for process, own in enumerate(args):
        joined = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(len(args)),
            "JAX_PROCESS_ID": str(process),
        }
        command = [sys.executable, str(HERE / script), *own]
        started.append(
            subprocess.Popen(
                command,
                env=shared | joined | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    with concurrent.futures.ThreadPoolExecutor(len(started)) as readers:
        said = [readers.submit(process.communicate) for process in started]
        try:
            for process, output in enumerate(said):
                if process != hung:
                    output.result(timeout=300)
        finally:
            for process in started:
                process.kill()
    return [
        Ended(process.returncode, output.result()[0], process.pid)
        for process, output in zip(started, said, strict=True)
    ]


def train(
    folder: Path,
    workdir: str,
    devices: int,
    plans: list[dict[int, dict]],
    flags: tuple[str, ...] = (),
    **environment: str,
) -> list[Ended]:
    """`memjax train` in as many processes as there are plans of what happens to them."""
    args = []
    for process, plan in enumerate(plans):
        plan = json.dumps(plan | {"record": str(folder / f"{workdir}-rows-{process}")})
        args.append(
            [
                plan,
                "train",
                f"--config={folder / 'tiny.py'}",
                f"--workdir={folder / workdir}",
                *flags,
            ]
        )
    return together(folder, "process.py", args, devices, **environment)


def all_done(ended: list[Ended]) -> list[Ended]:
    for process in ended:
        assert process.status == 0, process.said[-3000:]
        assert "Traceback" not in process.said and " ends: " not in process.said
    return ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a config of one stage."""
    folder = tmp_path_factory.mktemp("processes")
    config = tiny_config(
        write_corpus(folder / "corpus.jsonl", documents=120),
        optimizer=Optimizer(),
        checkpoint_every=5,
        evaluators=usual_evaluators(every=7, examples=48),
        controls=(),
    )
    only = dataclasses.replace(config.stages["causal_control"], batch_size=ROWS, steps=STEPS)
    config = dataclasses.replace(config, stages={"only": only}, curriculum=("only",))
    write_config(folder / "tiny.py", config)
    return folder


class Runs(NamedTuple):
    """What the runs of one config said; their workdirs have their names."""

    alone: list[Ended]
    """One process with four devices."""
    stopped: list[Ended]
    """Four with one each, parameters split, of which the second was sent SIGTERM."""
    resumed: list[Ended]
    """Two with one each, parameters whole, in the workdir of those."""
    at: int
    """Step of the checkpoint that was written when they were stopped."""


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    """A slice is preempted, and the run goes on on a smaller one."""
    alone = all_done(train(folder, "alone", 4, [{}], SPLIT))
    slowly = {"pause": 1.0}
    plans = [{STOPPED_AT: dict(slowly)} for _ in range(4)]
    plans[1][STOPPED_AT]["signal"] = signal.SIGTERM
    stopped = train(folder, "resumed", 1, plans, SPLIT)
    steps = sorted(
        int(path.name) for path in checkpoints(folder / "resumed").iterdir() if path.name.isdigit()
    )
    for process in range(4):
        (folder / f"resumed-rows-{process}").rename(folder / f"stopped-rows-{process}")
    resumed = all_done(train(folder, "resumed", 1, [{}, {}]))
    return Runs(alone, stopped, resumed, steps[-1])


def checkpoints(workdir: Path) -> Path:
    return workdir / "stages" / "only" / "checkpoints"


def lines(workdir: Path) -> list[dict[str, Any]]:
    text = (workdir / "stages" / "only" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines() if line]


def metrics(workdir: Path) -> dict[str, dict[str, float]]:
    """The last line of every step and split, without what the clock says."""
    left_out = CLOCK | {"split"}
    return {
        f"{line['step']} {line['split']}": {
            key: value for key, value in line.items() if key not in left_out
        }
        for line in lines(workdir)
    }


def results(workdir: Path) -> dict[str, Any]:
    found = json.loads((workdir / "results.json").read_text())
    return {key: found[key] for key in ("models", "chance", "data", "passages")}


def read(folder: Path, workdir: str, process: int, split: str) -> set[int]:
    """Rows that a process read."""
    lines = (
        line.split() for line in (folder / f"{workdir}-rows-{process}").read_text().splitlines()
    )
    return {int(row) for name, row in lines if name == split}


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Two trees with the same leaves but for rounding; texts are the same."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(one, (str, bool)):
            assert one == other
        else:
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_run_on_another_slice_ends_where_an_undisturbed_one_ends(
    folder: Path, runs: Runs
) -> None:
    alone, resumed = folder / "alone", folder / "resumed"
    assert set(metrics(resumed)) == {f"{step} train" for step in range(1, STEPS + 1)} | {
        "7 validation",
        "14 validation",
    }
    assert_close(metrics(resumed), metrics(alone), 1e-5)
    assert_close(results(resumed), results(alone), 1e-5)
    (ours, meta), (theirs, _) = (load_params(checkpoints(path)) for path in (resumed, alone))
    assert meta["step"] == STEPS
    assert_close(ours, theirs, 1e-5)


@pytest.mark.slow
def test_the_status_has_a_session_for_each_slice(folder: Path, runs: Runs) -> None:
    stopped, resumed = read_status(folder / "resumed")
    assert [(one.processes, one.devices, one.state) for one in (stopped, resumed)] == [
        (4, 4, "stopped"),
        (2, 2, "finished"),
    ]
    assert stopped.reason.startswith(f"SIGTERM: only: stopped by signal 15; step {runs.at} is")
    ranges = [
        (steps.first, steps.last, steps.kept)
        for steps in (stopped.stages["only"], resumed.stages["only"])
    ]
    assert ranges == [(0, runs.at, runs.at), (runs.at, STEPS, STEPS)]
    assert shares([stopped, resumed]).lost == 0


def kernel_line(ended: list[Ended]) -> str:
    """What is said of an array of 16 * 320 numbers of 4 bytes."""
    return next(line for line in ended[0].said.splitlines() if "head/kernel" in line)


@pytest.mark.slow
def test_parameters_are_split_over_processes_where_the_mesh_says_so(runs: Runs) -> None:
    kernel = kernel_line(runs.stopped)
    assert "fsdp" in kernel and " 5.0 " in kernel
    kernel = kernel_line(runs.resumed)
    assert "fsdp" not in kernel and " 20.0 " in kernel


@pytest.mark.slow
def test_one_asked_to_stop_all_stop_after_the_same_step(runs: Runs) -> None:
    assert STOPPED_AT <= runs.at < STEPS
    for process in runs.stopped:
        assert process.status == 128 + signal.SIGTERM, process.said[-3000:]
        assert f"only: stopped by signal {signal.SIGTERM}; step {runs.at} is saved" in process.said
        assert "Traceback" not in process.said
    assert f"only: resuming from step {runs.at}" in runs.resumed[0].said


class _Numbers:
    """Rows that say which they are."""

    row_tokens = 1

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def read(self, indices: list[int]) -> np.ndarray:
        return np.array(indices, np.int32)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(("workdir", "processes"), [("stopped", 4), ("resumed", 2)])
def test_a_process_reads_its_own_rows_alone(
    folder: Path, runs: Runs, workdir: str, processes: int
) -> None:
    data = results(folder / "alone")["data"]
    rows = data["train_tokens"] // data["row_tokens"]
    assert rows > ROWS * (STEPS + READ_AHEAD), "no row comes twice"
    order = TrainBatches(_Numbers(rows), ROWS, seed=0)
    first, last = (0, runs.at) if workdir == "stopped" else (runs.at, STEPS)
    for process in range(processes):
        own = slice(process * ROWS // processes, (process + 1) * ROWS // processes)
        needed = {
            int(row) for step in range(first, last) for row in order.batch(step)["tokens"][own, 0]
        }
        ahead = {
            int(row)
            for step in range(last, last + READ_AHEAD)
            for row in order.batch(step)["tokens"][own, 0]
        }
        assert needed <= read(folder, workdir, process, "train") <= needed | ahead


@pytest.mark.slow
def test_a_process_evaluates_its_own_rows_alone(folder: Path, runs: Runs) -> None:
    processes = 2
    data = results(folder / "alone")["data"]
    rows = data["validation_tokens"] // data["row_tokens"]
    watched = min(validation.BATCH, rows)
    looks = [(watched, -(-watched // 2) * 2), (48, held_out.BATCH), (48 // 4, 48 // 4)]
    for process in range(processes):
        own = set()
        for limit, batch in looks:
            share = batch // processes
            own |= {
                row
                for i, row in enumerate(evenly_spaced(rows, limit))
                if i % batch // share == process
            }
        assert read(folder, "resumed", process, "validation") == own


@pytest.fixture(scope="module")
def broken(folder: Path) -> list[Ended]:
    """Two processes whose data come late once, and of the second then no more."""
    late = {"sleep": 5.0}
    plans = [{2: late}, {2: late, 4: {"error": "the disk is gone"}}]
    return train(folder, "broken", 2, plans, SPLIT, MEMJAX_SLOW_AFTER_SECONDS="1")


@pytest.mark.slow
def test_a_slow_loader_is_named_and_its_seconds_are_in_the_metrics(
    folder: Path, broken: list[Ended]
) -> None:
    for process, ended in enumerate(broken):
        who = f"process {process} ({socket.gethostname()}, pid {ended.pid})"
        assert re.search(
            rf"{re.escape(who)} has waited \d+ s for its next batch, and the other processes wait",
            broken[0].said,
        )
    waited = {line["step"]: line["loader_seconds"] for line in lines(folder / "broken")}
    assert waited[1] >= 5.0, "a step's numbers are written when the next one is under way"


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_says_where_it_was(
    folder: Path, broken: list[Ended]
) -> None:
    first, second = broken
    assert second.status == 2
    assert "memjax: the disk is gone" in second.said
    assert first.status == 1
    failed = (
        f"process 1 ({socket.gethostname()}, pid {second.pid}) failed: OSError: the disk is gone"
    )
    assert f"process 0 ends: {failed}" in first.said
    (session,) = read_status(folder / "broken")
    assert (session.state, session.reason) == ("failed", failed)
    assert "Traceback" not in first.said + second.said


@pytest.mark.night
def test_where_the_disk_of_one_process_is_full_all_end_and_nothing_is_lost(folder: Path) -> None:
    """First of the second process while it trains, then of the first one after the last step."""
    there = checkpoints(folder / "full")
    for full, batch, last in [(1, 8, 5), (0, STEPS - 5, 10)]:
        plans: list[dict[int, dict]] = [{}, {}]
        plans[full] = {batch: {"until": str(there / str(last)), "full": FULL}}
        ended = train(folder, "full", 2, plans, SPLIT)
        why = f"{there}: File too large, expected room for it. Free space and run the same command"
        who = f"process {full} ({socket.gethostname()}, pid {ended[full].pid})"
        for process, reason in [(full, why), (1 - full, f"{who} failed: {why}")]:
            said = ended[process].said
            assert ended[process].status == 1, said[-3000:]
            assert said.count(f"process {process} ends: {reason}") == said.count(" ends: ") == 1
            assert "Traceback" not in said and "memjax: " not in said
        assert max(int(path.name) for path in there.iterdir() if path.name.isdigit()) == last
        assert load_params(there)[1]["step"] == last
    assert "only: resuming from step 5" in ended[0].said


@pytest.mark.slow
def test_processes_with_different_configs_do_not_start(folder: Path) -> None:
    command = ["{}", "train", f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'different'}"]
    for process in together(folder, "process.py", [command, [*command, "--config.seed=1"]]):
        assert process.status == 1
        assert "the config: process 1 has another value than process 0" in process.said
    assert not (folder / "different").exists()


@pytest.mark.slow
def test_a_request_after_the_last_step_of_a_stage_stops_all_in_the_next(folder: Path) -> None:
    slowly = {"pause": 0.5}
    plans = [{END_OF_STAGE: slowly}, {END_OF_STAGE: slowly | {"signal": signal.SIGINT}}]
    ended = together(folder, "process.py", [[json.dumps(plan)] for plan in plans])
    (said, other) = (process.said.splitlines()[-1] for process in ended)
    assert said == other
    assert said.startswith("stopped in stage 2 after meeting ")
    assert [process.status for process in ended] == [128 + signal.SIGINT] * 2


@pytest.mark.quick_cases(slow=("killed",))
@pytest.mark.parametrize(
    ("gone", "when", "number"),
    [(0, 5, signal.SIGKILL), (1, 2 * END_OF_STAGE + 5, signal.SIGTERM)],
    ids=["killed", "asked"],
)
def test_a_process_that_ends_alone_is_named_by_the_others_who_end(
    folder: Path, gone: int, when: int, number: int
) -> None:
    """A request to stop does that where there is no step to save, as in the evaluation of a run."""
    plans: list[dict[int, dict]] = [{when - 1: {"sleep": 2.0}} for _ in range(3)]
    plans[gone][when] = {"signal": number}
    ended = together(
        folder,
        "process.py",
        [[json.dumps(plan)] for plan in plans],
        MEMJAX_DEAD_AFTER_SECONDS=DEAD_AFTER,
    )
    assert ended[gone].status == -number
    for process in (ended[i] for i in range(3) if i != gone):
        assert process.status == 1, process.said
        assert (
            f"ends: process {gone} ({socket.gethostname()}, pid {ended[gone].pid})" in process.said
        )
        assert (
            "Run the same command on all processes to resume from the last checkpoint"
            in process.said
        )


def test_a_process_that_is_asked_twice_ends_at_once_with_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_monitor, "_exit", sys.exit)
    said: list[str] = []
    reasons: list[tuple[str, int]] = []

    def note(why: str, status: int) -> None:
        reasons.append((why, status))

    with ProcessMonitor(said.append, ended=note) as watch, watch.stop_requests():
        signal.raise_signal(signal.SIGTERM)
        assert watch.stop_here() == signal.SIGTERM
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGINT)
    assert ended.value.code == 128 + signal.SIGINT
    (line,) = said
    assert line.startswith("process 0 ends: a second signal came, number 2.")
    assert reasons == [("a second signal came, number 2", 130)]


@pytest.mark.quick_cases(slow=("1",))
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_process_that_hangs_counts_as_dead(folder: Path, frozen: int) -> None:
    """Its connections stay open, so nothing but its silence tells."""
    plans = [["{}"], ["{}"]]
    # Later than its first heartbeat, which says who it is.
    plans[frozen] = [json.dumps({5: {"sleep": 4.0, "signal": signal.SIGSTOP}})]
    ended = together(folder, "process.py", plans, hung=frozen, MEMJAX_DEAD_AFTER_SECONDS=DEAD_AFTER)
    other = ended[1 - frozen]
    assert other.status == 1, other.said
    who = f"process {frozen} ({socket.gethostname()}, pid {ended[frozen].pid})"
    assert f"process {1 - frozen} ends: {who}" in other.said
    assert "has sent no heartbeat for" in other.said
    assert "Check failure stack trace" not in other.said


@pytest.fixture(scope="module")
def agreement(folder: Path) -> list[dict[str, Any]]:
    """What each of four processes said (agreement.py)."""
    ended = all_done(together(folder, "agreement.py", [[str(folder / "damaged")]] * 4))
    return [json.loads(process.said.splitlines()[-1]) for process in ended]


@pytest.mark.slow
def test_processes_agree_and_name_the_one_that_differs(agreement: list[dict[str, Any]]) -> None:
    for process, said in enumerate(agreement):
        assert (said["process"], said["first"]) == (process, process == 0)
        assert (said["number"], said["truth"], said["same"]) == (10.5, True, "")
        assert (
            said["last differs"]
            == "the text: process 3 has another value than process 0, expected the same on all"
            " processes"
        )


@pytest.mark.slow
def test_a_process_holds_the_rows_it_reads(agreement: list[dict[str, Any]]) -> None:
    halves = [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]
    for process, said in enumerate(agreement):
        quarter = [2 * process, 2 * process + 1]
        rows = {"ddp": quarter, "fsdp": quarter, "fsdp_tp": halves[process], "tp": list(range(8))}
        assert said["meshes"] == {
            mesh: {"read": read, "held": read, "sum": 2 * sum(range(8))}
            for mesh, read in rows.items()
        }


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_damaged_for_all(
    agreement: list[dict[str, Any]],
) -> None:
    for process, said in enumerate(agreement):
        assert said["restored"]["step"] == 1
        assert {"1", "damaged-2"} <= set(said["restored"]["there"])
        assert "2" not in said["restored"]["there"]
        assert bool(said["restored"]["said"]) == (process == 0)
    (report,) = agreement[0]["restored"]["said"]
    assert "2: this checkpoint is damaged (in process 3: " in report
    assert "kept as damaged-2, resuming from step 1" in report


CONNECT = """
import sys
from memjax.sharding import ProcessesError, connect
try:
    connect(lambda text: print(text, flush=True))
    print("connected")
except ProcessesError as error:
    print(error)
    sys.exit(error.status)
"""
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "2",
}


def at(address: str, number: int, count: int = 2) -> dict[str, str]:
    return dict(zip(VARIABLES, (address, str(count), str(number)), strict=True))


def connecting(
    place: dict[str, str], slow: float = 0.1, within: float = 600, code: str = CONNECT
) -> subprocess.Popen:
    """Starts a process that connects; its standard error has what C++ says."""
    ours = {"PYTHONPATH": str(ROOT), "MEMJAX_SLOW_AFTER_SECONDS": str(slow)}
    ours["MEMJAX_CONNECT_SECONDS"] = str(within)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={name: x for name, x in os.environ.items() if name[:6] != "SLURM_"} | ours | place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.quick_cases("slurm")
@pytest.mark.parametrize("place", [SLURM, at("127.0.0.1:1", 1)], ids=["slurm", "variables"])
def test_a_process_says_whom_it_waits_for_and_ends_with_a_line(place: dict[str, str]) -> None:
    process = connecting(place, within=1)
    said, beside = process.communicate(timeout=120)
    assert process.returncode == 1
    number, count = ("2", "4") if place is SLURM else ("1", "2")
    waits, ends = said.splitlines()
    assert waits.startswith(f"process {number} of {count} (process 0 is at ")
    assert " waits for the others to connect: " in waits
    assert " ends: the others did not connect within 1 s, got " in ends and "Start all of" in ends
    for name, value in place.items():
        assert f"{name}={value}" in waits and f"{name}={value}" in ends
    assert "Check failure stack trace" not in beside


@pytest.mark.slow
def test_without_the_variables_a_process_is_alone() -> None:
    """As the message says."""
    process = connecting({}, slow=600)
    said, _ = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "connected\n")


@pytest.mark.slow
def test_two_processes_with_one_number_are_told_and_the_first_stays() -> None:
    address = free_address()
    with connecting(at(address, 1)) as first:
        try:
            assert first.stdout and "waits for the others" in first.stdout.readline()
            ends_with_a_line(at(address, 1), "Address already in use")
            assert first.poll() is None
        finally:
            first.kill()


@pytest.mark.slow
def test_a_number_that_another_machine_has_is_told_and_the_others_connect() -> None:
    address = free_address()
    # Numbers are reserved on a machine by names that it has for sockets.
    of_no_name = "import os, socket\nsocket.socket.bind = lambda *_: None\n"
    apart = CONNECT.replace("try:\n", f"{of_no_name}try:\n", 1)
    with connecting(at(address, 0, 3), slow=600) as zero, connecting(at(address, 1, 3)) as one:
        assert one.stdout and "waits for the others" in one.stdout.readline()
        ends_with_a_line(at(address, 1, 3), f"process 1 is {socket.gethostname()}, pid", apart)
        ends_with_a_line(at(address, 0, 3), "process 0 is ", apart)
        ends_with_a_line(at(address, 2, 4), "process 0 waits for 3 processes", apart)
        with connecting(at(address, 2, 3), slow=600) as two:
            assert {each.communicate(timeout=120)[0] for each in (zero, one, two)} == {
                "connected\n"
            }


@pytest.mark.quick_cases("everywhere")
@pytest.mark.parametrize("bound", [True, False], ids=["there", "everywhere"])
def test_a_port_in_use_is_named(bound: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        place = {"JAX_COORDINATOR_BIND_ADDRESS": address} if bound else {}
        ends_with_a_line(at(address, 0) | place, "Address already in use")


@pytest.mark.slow
def test_a_number_beyond_the_last_is_named() -> None:
    ends_with_a_line(at("127.0.0.1:1", 2), "with process_id < num_processes")


def ends_with_a_line(place: dict[str, str], why: str, code: str = CONNECT) -> None:
    process = connecting(place, slow=600, code=code)
    said, beside = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.startswith("the processes cannot connect (") and len(said.splitlines()) == 1
    assert why in said and f"JAX_COORDINATOR_ADDRESS={place['JAX_COORDINATOR_ADDRESS']}" in said
    assert "Check these values: process 0 needs a free port of its machine" in said
    assert "Traceback" not in said + beside


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"JAX_PROCESS_ID": "1"},
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES: not set, expected a value besides"
            " JAX_PROCESS_ID",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "the processes cannot connect",
        ),
    ],
)
def test_what_says_where_the_others_are_must_be_whole(
    given: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessesError, match=message):
        connect()
