"""Killed with SIGKILL and started again, a stage ends bitwise where it ends undisturbed; killed
within a save, it loses nothing."""

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from memjax.checkpoints import Checkpoints
from memjax.checkpoints.reading import absolute, finished_steps, load_arrays
from memjax.config import Optimizer, usual_evaluators
from memjax.testing import tiny_config, write_config, write_corpus

STAGES = ("trainable", "frozen", "microbatches")


def kill_after(folder: Path, workdir: str, stage: str, step: int) -> None:
    """Runs `memjax train` and kills it as soon as the stage's checkpoint of the step is there;
    again where a busy machine lets the kill come after another save."""
    for _ in range(5):
        if kill_at(folder, workdir, stage, step):
            return
        shutil.rmtree(folder / workdir / "stages" / stage)
    raise AssertionError("every kill came too late")


def kill_at(folder: Path, workdir: str, stage: str, step: int) -> bool:
    """Whether the kill came before another save."""
    args = ["train", f"--config={folder / 'tiny.py'}", f"--workdir={folder / workdir}"]
    command = [sys.executable, "-m", "memjax.cli.main", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints = folder / workdir / "stages" / stage / "checkpoints"
    deadline = time.monotonic() + 300
    while not (checkpoints / str(step)).exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, f"{checkpoints} never came to step {step}"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return max(finished_steps(absolute(checkpoints))) == step


@pytest.fixture(scope="module")
def runs_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[tuple[str, ...]], tuple[Path, Path]]:
    """Makes the runs of some stages once: pytest makes a fixture again for every case."""
    return functools.cache(lambda names: make_runs(tmp_path_factory.mktemp("killed"), names))


@pytest.fixture
def runs(request: pytest.FixtureRequest, runs_of: Callable[..., Any]) -> tuple[Path, Path]:
    """The workdirs of a run of some stages that was left alone for all of its training, and of one
    that was killed in each of them."""
    return runs_of(request.param)


def make_runs(folder: Path, names: tuple[str, ...]) -> tuple[Path, Path]:
    corpus = write_corpus(folder / "corpus.jsonl", documents=30)
    config = tiny_config(
        corpus,
        optimizer=Optimizer(),
        checkpoint_every=10,
        evaluators=usual_evaluators(every=1, examples=16),
        controls=(),
    )
    combined = dataclasses.replace(config.stages["combined"], steps=20)
    trainable = dataclasses.replace(combined, init_from="", init_part="", trainable=((".*", True),))
    stages = {
        "causal": dataclasses.replace(
            config.stages["causal_control"], family="causal_lm", steps=20
        ),
        "trainable": trainable,
        "frozen": dataclasses.replace(combined, init_from="trainable"),
        "microbatches": dataclasses.replace(trainable, grad_accum_steps=2),
    }
    config = dataclasses.replace(
        config, stages={name: stages[name] for name in names}, curriculum=names
    )
    write_config(folder / "tiny.py", config)
    kill_after(folder, "undisturbed", names[-1], 20)
    for stage in names:
        kill_after(folder, "killed", stage, 10)
    kill_after(folder, "killed", names[-1], 20)
    return folder / "undisturbed", folder / "killed"


def lines(workdir: Path, stage: str) -> list[dict[str, Any]]:
    """What a stage wrote, without what the clock says."""
    found = []
    for text in (workdir / "stages" / stage / "metrics.jsonl").read_text().splitlines():
        try:
            found.append(
                {key: value for key, value in json.loads(text).items() if "second" not in key}
            )
        except json.JSONDecodeError:
            continue  # What a kill cut short, and the empty line after it.
    return found


@pytest.mark.quick_cases(slow=("causal",))
@pytest.mark.parametrize(
    ("runs", "stage"),
    [(("causal",), "causal"), *((STAGES, stage) for stage in STAGES)],
    ids=["causal", *STAGES],
    indirect=["runs"],
)
def test_ten_steps_a_kill_and_ten_steps_are_bitwise_twenty_steps(
    runs: tuple[Path, Path], stage: str
) -> None:
    undisturbed, killed = (lines(workdir, stage) for workdir in runs)
    steps = [line["step"] for line in killed if line["split"] == "train"]
    assert [steps.count(step) for step in range(1, 11)] == [1] * 10, "it went on from step 10"
    last = [
        {(line["step"], line["split"]): line for line in found} for found in (undisturbed, killed)
    ]
    assert sorted(last[0]) == [
        (step, split) for step in range(1, 21) for split in ("train", "validation")
    ]
    assert last[0] == last[1]
    for item in ("params", "optimizer"):
        one, other = (
            load_arrays(absolute(workdir / "stages" / stage / "checkpoints" / "20" / item))
            for workdir in runs
        )
        assert len(jax.tree.leaves(one)) > (10 if stage == "causal" else 20)
        jax.tree.map(np.testing.assert_array_equal, one, other)


SAVE = """
import sys
import jax, jax.numpy as jnp
from memjax.checkpoints import Checkpoints

params = {"kernel": jax.random.normal(jax.random.key(0), (5000, 5000))}
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    start = checkpoints.latest() or 0
    for step in range(start + 1, start + 1000):
        print(step, flush=True)
        checkpoints.save(step, {"kernel": params["kernel"] + step}, {"step": jnp.int32(step)}, {})
        checkpoints.wait()
"""
TEMPORARY = "*.orbax-checkpoint-tmp*"


def kill_within_a_save(folder: Path) -> tuple[int, list[Path]]:
    """Saves 100 MB step after step in a process that is killed within its second save; the step
    saved last and what the save left."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first, second = int(process.stdout.readline()), int(process.stdout.readline())
    assert second == first + 1
    deadline = time.monotonic() + 300
    while not (left := list(folder.glob(TEMPORARY))):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = list(folder.glob(TEMPORARY))
    return max(finished_steps(absolute(folder))), left


@pytest.mark.night
def test_a_kill_within_a_save_loses_nothing_that_was_saved_before(tmp_path: Path) -> None:
    for _ in range(10):
        step, left = kill_within_a_save(tmp_path)
        if left:
            break
    assert left, "every save was over before the kill came"
    said: list[str] = []
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kernel = jax.ShapeDtypeStruct((5000, 5000), np.float32, sharding=place)
    with Checkpoints(tmp_path, keep=1, report=said.append) as checkpoints:
        found = checkpoints.restore_latest(
            {"kernel": kernel}, {"step": jax.ShapeDtypeStruct((), np.int32, sharding=place)}
        )
    assert found is not None and found[0] == step and int(found[2]["step"]) == step
    drawn = jax.random.normal(jax.random.key(0), (5000, 5000))
    np.testing.assert_array_equal(found[1]["kernel"], drawn + step)
    cut = left[0].name.split(".")[0]
    assert int(cut) == step + 1
    assert said == [
        f"{tmp_path}: the save of step {cut} was cut short; removed, the one before it counts"
    ]
    assert not list(tmp_path.glob(TEMPORARY))
    assert finished_steps(absolute(tmp_path)) == [step]
