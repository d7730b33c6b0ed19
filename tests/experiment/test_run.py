"""A whole small run in real processes: what it writes, and that a killed one ends bitwise where an
undisturbed one does."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from memjax.checkpoints import load_params
from memjax.inference import load
from memjax.testing import tiny_config, write_config, write_corpus
from memjax.training.status import read_status, shares

pytestmark = pytest.mark.slow

STAGES = ("autoencoder", "combined")


def command(folder: Path, workdir: str, *flags: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "memjax.cli.main",
        "train",
        f"--config={folder / 'tiny.py'}",
        f"--workdir={folder / workdir}",
        *flags,
    ]


def train(folder: Path, workdir: str, *flags: str) -> str:
    done = subprocess.run(
        command(folder, workdir, *flags), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of two stages with microbatches, and `undisturbed`, a finished run of it."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_config(
        write_corpus(folder / "corpus.jsonl"), steps=40, controls=(), checkpoint_every=10
    )
    stages = {name: config.stages[name] for name in STAGES}
    stages["combined"] = type(stages["combined"])(
        **(vars(stages["combined"]) | {"grad_accum_steps": 2})
    )
    config = type(config)(**(vars(config) | {"stages": stages}))
    write_config(folder / "tiny.py", config)
    train(folder, "undisturbed")
    return folder


def wait_for_step(process: subprocess.Popen, metrics: Path, step: int) -> None:
    """Returns when the stage has logged `step`."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and any(line.get("step", 0) >= step for line in lines(metrics)):
            return
        time.sleep(0.02)
    raise AssertionError(
        f"{metrics} never reached step {step}; the process ended with {process.poll()}"
    )


def lines(metrics: Path) -> list[dict]:
    found = []
    for line in metrics.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # The line a kill cut short.
    return found


def losses(workdir: Path, stage: str) -> dict[tuple[int, str], dict[str, float]]:
    """The last line of every (step, split), without what depends on the clock."""
    found = lines(workdir / "stages" / stage / "metrics.jsonl")
    return {
        (line["step"], line["split"]): {k: v for k, v in line.items() if "second" not in k}
        for line in found
    }


def assert_same_run(one: Path, other: Path) -> None:
    for stage in STAGES:
        ours, theirs = (
            load_params(workdir / "stages" / stage / "checkpoints") for workdir in (one, other)
        )
        assert ours[1]["step"] == theirs[1]["step"] == 40
        jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
        a, b = losses(one, stage), losses(other, stage)
        assert a.keys() == b.keys() and len(a) >= 40
        assert a == b
    results = [json.loads((workdir / "results.json").read_text()) for workdir in (one, other)]
    assert results[0]["models"] == results[1]["models"]
    assert results[0]["passages"] == results[1]["passages"]


@pytest.mark.night
@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_started_again_it_ends_bitwise_the_same(place: Path, stage: str) -> None:
    name = f"killed_in_{stage}"
    process = subprocess.Popen(
        command(place, name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_step(process, place / name / "stages" / stage / "metrics.jsonl", 23)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (place / name / "results.json").exists()
    said = train(place, name)
    assert f"{stage}: resuming from step" in said
    assert_same_run(place / "undisturbed", place / name)


class Stopped(NamedTuple):
    """A run that was sent SIGTERM in its last stage, in two workdirs, `stopped` and `moved`; its
    corpus is `moved.jsonl`."""

    status: int
    said: str
    flags: tuple[str, ...]


@pytest.fixture(scope="module")
def stopped(place: Path) -> Stopped:
    corpus = place / "moved.jsonl"
    shutil.copy(place / "corpus.jsonl", corpus)
    flags = (f"--config.data.corpus={corpus}",)
    process = subprocess.Popen(
        command(place, "stopped", *flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, place / "stopped" / "stages" / "combined" / "metrics.jsonl", 11)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    shutil.copytree(place / "stopped", place / "moved")
    return Stopped(process.returncode, said, flags)


def test_asked_to_stop_it_saves_the_step_and_says_how_to_go_on(
    place: Path, stopped: Stopped
) -> None:
    assert stopped.status == 128 + signal.SIGTERM
    assert "is saved. Run the same command to resume" in " ".join(stopped.said.split())
    saved = load_params(place / "stopped" / "stages" / "combined" / "checkpoints")[1]["step"]
    assert 11 <= saved < 40
    said = train(place, "stopped", *stopped.flags)
    assert f"combined: resuming from step {saved}" in said
    first, second = read_status(place / "stopped")
    assert (first.state, second.state) == ("stopped", "finished")
    assert first.reason.startswith(f"SIGTERM: combined: stopped by signal 15; step {saved} is")
    assert set(first.stages) == set(STAGES) and set(second.stages) == {"combined"}
    ranges = [(s.stages["combined"].first, s.stages["combined"].last) for s in (first, second)]
    assert ranges == [(0, saved), (saved, 40)]
    assert first.stages["combined"].kept == saved, "no step was lost"
    assert first.saves >= 4 and first.apart.keys() == {"saves", "compilation", "evaluation"}
    used = shares([first, second])
    assert used.lost == 0 and 0 < used.goodput < 1 and used.between > 0
    assert used.starting > 0 and all(seconds > 0 for seconds in used.apart.values())
    assert_same_run(place / "undisturbed", place / "stopped")


def test_it_resumes_without_its_corpus_and_with_another_split_of_batches(
    place: Path, stopped: Stopped
) -> None:
    (place / "moved.jsonl").unlink()
    flags = ("--config.model.remat=nothing_saveable", "--config.log_every=5")
    flags += ("--config.stages.combined.grad_accum_steps=1",)
    said = train(place, "moved", *stopped.flags, *flags)
    assert f"The rows in {place / 'moved' / 'data'} are used as they are" in said
    assert "config.stages.combined.grad_accum_steps: 1 now, 2 there" in said
    assert "combined: resuming from step" in said
    ours, theirs = (
        load_params(place / run / "stages" / "combined" / "checkpoints")[0]
        for run in ("moved", "undisturbed")
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), ours, theirs)


def test_a_finished_run_is_only_evaluated_again(place: Path) -> None:
    before = {
        p: p.stat().st_mtime_ns
        for p in (place / "undisturbed" / "stages").rglob("*")
        if p.is_file()
    }
    left = place / "undisturbed" / ".seconds.1-0a.tmp"
    left.write_text("from a killed process")
    said = train(place, "undisturbed")
    assert not left.exists()
    assert (
        "autoencoder: all 40 steps are done" in said and "combined: all 40 steps are done" in said
    )
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_frozen_encoder_is_the_autoencoders_to_the_last_bit(place: Path) -> None:
    workdir = place / "undisturbed"
    autoencoder, combined = load(workdir, "autoencoder"), load(workdir)
    ours, theirs = combined.params["encoder"], autoencoder.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    tokens = np.random.default_rng(1).integers(6, 320, (2, 4, 8))
    memories = combined.module.apply({"params": combined.params}, tokens, method="encode")
    again = autoencoder.module.apply(
        {"params": autoencoder.params}, tokens.reshape(8, 8), method="encode"
    )
    np.testing.assert_array_equal(np.asarray(memories).reshape(again.shape), again)


def test_stages_read_on_where_the_ones_before_them_stopped(place: Path) -> None:
    ends = [
        load_params(place / "undisturbed" / "stages" / stage / "checkpoints")[1]["next_row"]
        for stage in STAGES
    ]
    # The encoder alone was taken: the combined stage starts at the first row.
    assert ends == [320, 320]


SMALL = [
    *(
        "copy_accuracy",
        "copy_accuracy_causal_control",
        "copy_accuracy_no_memory",
        "autoencoder_accuracy",
        "next_token_nats",
    ),
    *(
        "next_token_nats_causal_control",
        "free_running_exact_chunks",
        "tokens_per_second",
        "seconds_total",
    ),
]


@pytest.mark.slow
def test_the_small_quickstart_does_everything_the_large_one_does(tmp_path: Path) -> None:
    """Two stages, a control, evaluation and report, from the embedded corpus, by the command
    people type."""
    root = Path(__file__).parents[2]
    args = [
        "train",
        f"--config={root / 'configs' / 'quickstart.py'}:small",
        f"--workdir={tmp_path / 'run'}",
        # Fewer held-out chunks: recall is measured among 16, 64 and 256 of them.
        "--config.data.validation_share=0.01",
        "--config.data.sequence_length=256",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "memjax.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"COLUMNS": "160"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for key in SMALL:
        assert isinstance(results[key], float) and math.isfinite(results[key]), key
    for name in ("combined", "causal_control"):
        assert name in done.stdout
        model = results["models"][name]
        assert 0 < model["next_token_nats"] < math.log(400) + 0.5
        assert len(model["copy_accuracy_by_position"]) == 16
    assert (
        results["models"]["combined"]["autoencoder_accuracy"]
        == results["models"]["autoencoder"]["autoencoder_accuracy"]
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<html" in page and "data:image/png;base64," in page
    assert len(list((tmp_path / "run" / "plots").glob("*.png"))) >= 4
    for stage in (*results["curriculum"], *results["controls"]):
        split = {
            line["split"] for line in lines(tmp_path / "run" / "stages" / stage / "metrics.jsonl")
        }
        assert split == {"train", "validation"}, stage
        assert list((tmp_path / "run" / "stages" / stage / "tensorboard").glob("events*")), stage
    both = lines(tmp_path / "run" / "stages" / "combined" / "metrics.jsonl")[0]
    assert {"next_token/nats", "recall/nats", "loss"} <= both.keys(), (
        "the two terms are logged apart"
    )
