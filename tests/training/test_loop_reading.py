"""What a stage does about rows that cannot be read, and that it trains on the batches of the order
whether or not they are placed ahead."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from memjax.checkpoints import load_params
from memjax.config import Config, Optimizer
from memjax.data import RowsError, TrainBatches, prepare
from memjax.progress import Reporter
from memjax.sharding import put_batch
from memjax.testing import tiny_config, write_corpus
from memjax.training.init_state import Run
from memjax.training.loop import train_stage

STEPS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents=60)
    config = tiny_config(
        corpus,
        optimizer=Optimizer(),
        steps=STEPS,
        log_every=1,
        checkpoint_every=100,
    )
    return dataclasses.replace(
        config,
        stages={"only": dataclasses.replace(config.stages["causal_control"])},
        curriculum=("only",),
    )


def run_of(config: Config, workdir: Path) -> Run:
    return Run(
        config,
        workdir,
        prepare(config.data, workdir / "data", workers=1),
        Reporter(Console(quiet=True)),
    )


def lines(workdir: Path) -> list[dict]:
    text = (workdir / "stages" / "only" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == "train"]


def damage(run: Run, row: int) -> None:
    """Changes a byte of a row on disk."""
    file = run.data.train.folder / next(iter(run.data.train.info["files"]))
    raw, stored = bytearray(file.read_bytes()), run.data.train[row].astype("<u2").tobytes()
    assert raw.count(stored) == 1
    raw[raw.find(stored) + 3] ^= 1
    file.write_bytes(raw)


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which nothing is damaged."""
    workdir = tmp_path_factory.mktemp("whole")
    train_stage(run_of(config, workdir), "only")
    return workdir


@pytest.mark.slow
def test_a_stage_counts_rows_it_cannot_read_and_goes_on(
    config: Config, whole: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, skip_damaged=True))
    run = run_of(config, tmp_path)
    rows = config.stages["only"].batch_size
    row = find(run, TrainBatches(run.data.train, rows, config.seed).batch(1)["tokens"][0])
    damage(run, row)
    train_stage(run_of(config, tmp_path), "only")
    found, usual = lines(tmp_path), lines(whole)
    assert found[-1]["rows_skipped"] >= 1
    assert not any("rows_skipped" in line for line in usual)
    assert found[0]["loss"] == usual[0]["loss"]
    assert found[1]["loss"] != usual[1]["loss"], "step 2 is of another row"


def find(run: Run, tokens: np.ndarray) -> int:
    """The number of a row."""
    return next(row for row in range(len(run.data.train)) if (run.data.train[row] == tokens).all())


@pytest.mark.slow
def test_a_row_that_cannot_be_read_ends_the_stage_and_is_named(
    config: Config, tmp_path: Path
) -> None:
    run = run_of(config, tmp_path)
    rows = config.stages["only"].batch_size
    row = find(run, TrainBatches(run.data.train, rows, config.seed).batch(2)["tokens"][0])
    damage(run, row)
    with pytest.raises(
        RowsError, match=rf"train-\d+-of-\d+\.arrayrecord: record {row} cannot be read"
    ):
        train_stage(run_of(config, tmp_path), "only")
    assert [line["step"] for line in lines(tmp_path)] == [1], "step 2 was under way"


@pytest.mark.slow
def test_batches_that_are_placed_ahead_train_as_those_that_are_not(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(batches: TrainBatches, step: int, threads: int = 4, place: object = None) -> object:
        class Plain:
            def __next__(self) -> object:
                nonlocal step
                step += 1
                return place(batches.batch(step - 1))

            def close(self) -> None:
                pass

        return Plain()

    monkeypatch.setattr(TrainBatches, "from_step", at_once)
    train_stage(run_of(config, tmp_path), "only")
    ahead, plain = (
        load_params(folder / "stages" / "only" / "checkpoints")[0] for folder in (whole, tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, ahead, plain)
    assert [line["loss"] for line in lines(whole)] == [line["loss"] for line in lines(tmp_path)]


def test_batches_are_placed_over_the_mesh_as_they_were(config: Config, tmp_path: Path) -> None:
    run = run_of(config, tmp_path)
    order = TrainBatches(run.data.train, 8, 0)
    batches = order.from_step(3, place=lambda batch: put_batch(batch, run.mesh, 8)["tokens"])
    for step in range(3, 6):
        placed, wanted = next(batches), put_batch(order.batch(step), run.mesh, 8)["tokens"]
        assert isinstance(placed, jax.Array) and placed.sharding == wanted.sharding
        np.testing.assert_array_equal(placed, wanted)
    batches.close()
