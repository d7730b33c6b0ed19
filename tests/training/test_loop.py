"""What ends a stage early, what it reads, and what it refuses to start from."""

import dataclasses
import errno
import io
import itertools
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath
from rich.console import Console
from tensorboardX.record_writer import RecordWriter

from memjax.checkpoints import CheckpointError, load_params
from memjax.config import Config, ConfigError, Optimizer, to_json
from memjax.data import TrainBatches, prepare
from memjax.performance.bench.profile import tpu_compiler_loaded
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.training import loop
from memjax.training.compiled_steps import StageSteps
from memjax.training.flops import model_flops
from memjax.training.init_state import Run, check_origin, data_offset, init_train_state
from memjax.training.loop import NonFiniteError, train_stage
from memjax.training.status import Status, read_status


def run_of(config: Config, workdir: Path) -> Run:
    return Run(
        config, workdir, prepare(config.data, workdir / "data"), Reporter(Console(quiet=True))
    )


def changed(config: Config, stage: str, **changes: object) -> Config:
    stages = dict(config.stages) | {stage: dataclasses.replace(config.stages[stage], **changes)}
    return dataclasses.replace(config, stages=stages)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")
    return tiny_config(corpus, optimizer=Optimizer(clip_norm=0.0))


def test_a_loss_that_is_not_finite_stops_the_run_with_step_term_and_last_good_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    config = changed(
        config, "autoencoder", learning_rate=1e16, warmup_steps=0, lr_schedule="constant"
    )
    config = dataclasses.replace(config, checkpoint_every=1, log_every=4, evaluators={})
    with pytest.raises(NonFiniteError) as caught:
        train_stage(run_of(config, tmp_path), "autoencoder")
    said = str(caught.value)
    step = int(
        re.search(
            r"stage autoencoder, step (\d+): the (reconstruction loss|gradient or the update) is"
            r" not finite",
            said,
        )[1]
    )
    assert step > 1
    assert f"the last good checkpoint is step {step - 1} in {tmp_path}" in said
    assert "config.stages.autoencoder.learning_rate" in said
    assert load_params(tmp_path / "stages" / "autoencoder" / "checkpoints")[1]["step"] == step - 1


def test_stages_read_on_after_those_whose_whole_model_they_carry_on() -> None:
    config = tiny_config("unused", steps=10)
    stages = dict(config.stages)
    stages["more"] = dataclasses.replace(
        stages["combined"], init_from="combined", init_part="", batch_size=4
    )
    stages["yet_more"] = dataclasses.replace(stages["more"], init_from="more")
    config = dataclasses.replace(config, stages=stages)
    rows = {name: data_offset(config, stage) for name, stage in stages.items()}
    assert rows == {
        "autoencoder": 0,
        "combined": 0,
        "causal_control": 0,
        "no_memory": 0,
        "more": 80,
        "yet_more": 120,
    }


@pytest.mark.slow
def test_a_stage_of_another_workdir_begins_with_the_same_rows_unless_the_seed_differs(
    config: Config, tmp_path: Path
) -> None:
    name = "causal_control"
    config = changed(config, name, steps=2)
    train_stage(run_of(config, tmp_path), name)
    config = changed(config, name, init_from=f"{tmp_path}/stages/{name}")
    logs = []
    for seed in (config.seed, config.seed + 1):
        said = io.StringIO()
        run = dataclasses.replace(
            run_of(dataclasses.replace(config, seed=seed), tmp_path),
            reporter=Reporter(Console(file=said, soft_wrap=True)),
        )
        steps = StageSteps(run.config, name, run.mesh, run.ids)
        init_train_state(run, name, steps.module, steps.optimizer)
        logs.append(said.getvalue())
    rows = 2 * config.stages[name].batch_size
    assert logs == [
        f"{tmp_path}/stages/{name}: trained on rows 0 to {rows - 1} of the order of config.seed=0,"
        " with which this stage begins again. Set another config.seed for another order\n",
        "",
    ]
    first, other = (TrainBatches(run.data.train, 8, seed).batch(0)["tokens"] for seed in (0, 1))
    assert not (first == other).all()


def test_rows_that_do_not_divide_over_devices_and_microbatches_are_refused(
    config: Config, tmp_path: Path
) -> None:
    config = changed(config, "autoencoder", batch_size=9, grad_accum_steps=2)
    with pytest.raises(
        ConfigError,
        match=r"config\.stages\.autoencoder\.batch_size: got 9, expected a multiple of 2",
    ):
        train_stage(run_of(config, tmp_path), "autoencoder")


def test_a_stage_needs_the_checkpoint_it_starts_from(config: Config, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"init_from=.autoencoder.: .*/stages/autoencoder: not found"
    ):
        train_stage(run_of(config, tmp_path), "combined")


@pytest.mark.parametrize(("key", "value"), [("next_row", 128), ("stage", "no_memory")])
def test_a_checkpoint_of_another_place_in_the_order_is_refused(
    config: Config, key: str, value: object
) -> None:
    tokenizer = types.SimpleNamespace(fingerprint="ab")
    run: Any = types.SimpleNamespace(config=config, data=types.SimpleNamespace(tokenizer=tokenizer))
    meta = {
        "config": to_json(config),
        "tokenizer": "ab",
        "stage": "autoencoder",
        "step": 8,
        "next_row": 64,
    }
    check_origin(run, "autoencoder", meta, "folder/8")
    with pytest.raises(CheckpointError, match=rf"^folder/8: {key} '?{value}'?, expected "):
        check_origin(run, "autoencoder", meta | {key: value}, "folder/8")


@pytest.mark.slow
def test_a_disk_that_refuses_ends_the_stage_with_the_name_of_the_file(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not hang, as a writer whose thread has died."""
    written, write = itertools.count(), RecordWriter.write

    def refuse(self: RecordWriter, data: bytes) -> None:
        if next(written) == 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", refuse)
    config = dataclasses.replace(config, evaluators={})
    place = tmp_path / "stages" / "autoencoder"
    with pytest.raises(OSError, match=f"No space left on device: '{place}/tensorboard'"):
        train_stage(run_of(config, tmp_path), "autoencoder")
    saved = load_params(place / "checkpoints")[1]["step"]
    assert 0 < saved < 8


# Waiting for the device


class Watched:
    """A jitted train step between whose first and last call the device is watched."""

    def __init__(self, step: Callable[..., Any], steps: int, log: list[tuple[str, int]]):
        self.step, self.steps, self.log = step, steps, log
        self.count = 0
        self.steps_of: dict[int, int] = {}
        self.metrics: list[Any] = []

    def lower(self, *arguments: Any) -> Any:
        """Lowers the step; what that compiles to is watched in its place."""
        lowered = self.step.lower(*arguments)

        def compile_() -> Any:
            self.step = lowered.compile()
            return self

        return types.SimpleNamespace(compile=compile_)

    def memory_analysis(self) -> Any:
        return self.step.memory_analysis()

    def __call__(self, state: Any, batch: Any) -> Any:
        self.count += 1
        # What ends a stage, its evaluation and its last checkpoint, may wait.
        guard = "disallow" if self.count < self.steps else "allow"
        jax.config.update("jax_transfer_guard", guard)
        state, metrics = self.step(state, batch)
        self.log.append(("dispatch", self.count))
        self.metrics.append(metrics)
        self.steps_of[id(metrics)] = self.count
        return state, metrics


@pytest.fixture(scope="module")
def watched(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """What a stage of eight steps dispatches to the device and reads from it, in order."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return watch(config, tmp_path_factory.mktemp("watched"), monkeypatch)


def watch(config: Config, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs the stage and watches it."""
    steps, log, made = 8, [], []
    config = dataclasses.replace(changed(config, "autoencoder", steps=steps), log_every=3)
    config = dataclasses.replace(config, checkpoint_every=100)
    jit_train_step, device_get = StageSteps.jit_train_step, jax.device_get
    array_type: Any = type(jax.numpy.zeros(()))
    methods = {
        name: getattr(array_type, name)
        for name in ("__array__", "__float__", "__int__", "__bool__", "item")
    }

    def jit(stage_steps: StageSteps) -> Watched:
        made.append(Watched(jit_train_step(stage_steps), steps, log))
        return made[0]

    def get(tree: Any) -> Any:
        if step := made[0].steps_of.get(id(tree)):
            log.append(("read", step))
        with monkeypatch.context() as reading:
            for name, method in methods.items():
                reading.setattr(array_type, name, method)
            return device_get(tree)

    def refuse_reads(name: str) -> Any:
        def method(array: Any, *args: Any, **kwargs: Any) -> Any:
            assert not (made and 0 < made[0].count < steps), (
                f"{name} of an array of shape {array.shape} waits for the device"
            )
            return methods[name](array, *args, **kwargs)

        return method

    for name in methods:
        monkeypatch.setattr(array_type, name, refuse_reads(name))
    monkeypatch.setattr(StageSteps, "jit_train_step", jit)
    monkeypatch.setattr(jax, "device_get", get)
    run = run_of(config, workdir)
    try:
        train_stage(run, "autoencoder")
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    return log


def test_between_logs_nothing_is_moved_to_or_from_the_device(
    watched: list[tuple[str, int]],
) -> None:
    """The guard sees what Python values an operation brings to the device. On a CPU it does not see
    reads, so that every read has to be of the metrics of a step."""
    assert [step for what, step in watched if what == "dispatch"] == [*range(1, 9)]


def test_metrics_of_a_step_are_read_when_the_next_one_is_under_way(
    watched: list[tuple[str, int]],
) -> None:
    assert sorted(step for what, step in watched if what == "read") == [*range(1, 9)]
    for place, (what, step) in enumerate(watched):
        assert what == "dispatch" or step == 8 or ("dispatch", step + 1) in watched[:place]


# Status


def test_mfu_is_that_of_the_peak_of_the_devices(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda kind: {"cpu": 1e9}[kind])
    config = dataclasses.replace(changed(config, "autoencoder", steps=3), checkpoint_every=100)
    run = dataclasses.replace(run_of(config, tmp_path), status=Status(epath.Path(tmp_path)))
    with run.status as status:
        train_stage(run, "autoencoder")
    assert status.apart > 0
    (session,) = read_status(tmp_path)
    progress = session.stages["autoencoder"]
    assert (progress.first, progress.last, progress.total) == (0, 3, 3)
    assert progress.tokens == run.tokens("autoencoder", 3)
    flops = model_flops(config, config.stages["autoencoder"]).total
    assert progress.mfu == pytest.approx(3 * flops / progress.seconds / 1e9)
    assert session.saves == 1 and set(session.apart) == {"saves", "compilation"}


# Profiles


@pytest.mark.quick_cases(slow=("of two",))
@pytest.mark.parametrize(
    ("window", "traced"),
    [((2, 3), {2, 3}), ((5, 99), {5, 6}), ((7, 9), set())],
    ids=["of two", "that a stage ends", "after its end"],
)
def test_a_profile_holds_the_steps_of_its_window(
    config: Config, tmp_path: Path, window: tuple[int, int], traced: set[int]
) -> None:
    # JAX's profiler faults where another test has loaded the TPU compiler: a process of its own.
    if tpu_compiler_loaded():
        name = f"{__file__}::test_a_profile_holds_the_steps_of_its_window"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        assert subprocess.run(command, cwd=Path(__file__).parents[2], timeout=600).returncode == 0
        return
    config = changed(config, "autoencoder", steps=6)
    config = dataclasses.replace(config, checkpoint_every=100)
    train_stage(dataclasses.replace(run_of(config, tmp_path), profile=window), "autoencoder")
    files = [*(tmp_path / "stages" / "autoencoder").rglob("*.xplane.pb")]
    assert len(files) == bool(traced)
    for file in files:
        assert file.is_relative_to(tmp_path / "stages" / "autoencoder" / "profile")
        events = [
            dict(event.stats)
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        assert {stats["step_num"] for stats in events} == traced
