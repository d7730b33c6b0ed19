"""The best checkpoint by a number on held-out rows stays beside the latest, and is never mistaken
for the one to go on from."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from memjax.checkpoints import CheckpointError, Checkpoints, load_params
from memjax.config import Config, Optimizer, usual_evaluators
from memjax.data import prepare
from memjax.evaluation.evaluators import open_evaluators
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.training.init_state import Run
from memjax.training.loop import train_stage

PARAMS, OPTIMIZER = {"head": {"bias": jnp.ones(7)}}, {"step": jnp.int32(0)}
NATS, ACCURACY = "next_token/nats", "copy/accuracy"


def save(
    checkpoints: Checkpoints, step: int, metrics: dict[str, float] | None, best: str = NATS
) -> list[int]:
    """Saves parameters that say their step, and returns what there is then."""
    params = jax.tree.map(lambda x: x * step, PARAMS)
    meta = {"config": json.dumps({"checkpoint_best": best})} | (
        {} if metrics is None else {"metrics": metrics}
    )
    checkpoints.save(step, params, OPTIMIZER, meta)
    checkpoints.wait()
    return checkpoints.steps()


def restored_step(folder: Path, best: str) -> int:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), t)
        for t in (PARAMS, OPTIMIZER)
    ]
    with Checkpoints(folder, keep=1, best=best) as checkpoints:
        found = checkpoints.restore_latest(*wanted)
    assert found is not None
    assert float(found[1]["head"]["bias"][0]) == found[0]
    return found[0]


def test_of_nats_the_lowest_stays_until_a_lower_one_comes(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2, best=NATS) as checkpoints:
        nats = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 3.2, 6: 2.5, 7: 2.8, 8: 2.9}
        there = [
            save(checkpoints, step, {NATS: value, ACCURACY: value}) for step, value in nats.items()
        ]
    assert there == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7], [6, 7, 8]]


def test_of_accuracies_the_highest_stays_and_of_equals_the_last(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, best=ACCURACY) as checkpoints:
        accuracy = {1: 0.2, 2: 0.7, 3: 0.5, 4: 0.7, 5: 0.6}
        there = [
            save(checkpoints, step, {NATS: -value, ACCURACY: value})
            for step, value in accuracy.items()
        ]
    assert there == [[1], [2], [2, 3], [4], [4, 5]]


def test_one_saved_without_an_evaluation_is_neither_best_nor_in_the_way(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, best=NATS) as checkpoints:
        assert save(checkpoints, 1, None) == [1]
        assert save(checkpoints, 2, {}) == [2], "without a number there is no best to keep"
        assert save(checkpoints, 3, {NATS: 4.0}) == [3]
        assert save(checkpoints, 4, None) == [3, 4]
        assert save(checkpoints, 5, {NATS: math.nan}) == [3, 5]
        assert save(checkpoints, 6, {ACCURACY: 1.0}) == [3, 6]
    assert restored_step(tmp_path, NATS) == 6, "the latest, not the best"
    assert load_params(tmp_path)[1]["step"] == 6
    assert load_params(tmp_path, "best")[1]["metrics"] == {NATS: 4.0}


def test_a_process_that_goes_on_knows_what_was_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, best=NATS) as checkpoints:
        assert checkpoints.improves({NATS: 1e9}) and not checkpoints.improves({ACCURACY: 1.0})
        save(checkpoints, 1, {NATS: 3.0})
        save(checkpoints, 2, {NATS: 3.5})
    with Checkpoints(tmp_path, keep=1, best=NATS) as checkpoints:
        assert (
            not checkpoints.improves({NATS: 3.0})
            and not checkpoints.improves({})
            and checkpoints.improves({NATS: 2.99})
        )
        assert save(checkpoints, 3, {NATS: 3.2}) == [1, 3]
        assert save(checkpoints, 4, {NATS: 2.9}) == [4]
        assert not checkpoints.improves({NATS: 2.95})


@pytest.mark.slow
def test_when_the_best_is_damaged_another_can_be(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2, best=NATS) as checkpoints:
        for step, nats in ((1, 3.0), (2, 2.0)):
            save(checkpoints, step, {NATS: nats})
    (tmp_path / "2" / "params" / "manifest.ocdbt").unlink()
    assert restored_step(tmp_path, NATS) == 1
    with Checkpoints(tmp_path, keep=2, best=NATS) as checkpoints:
        assert checkpoints.improves({NATS: 2.5}) and not checkpoints.improves({NATS: 3.0})


def test_without_a_number_to_go_by_nothing_is_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert not checkpoints.improves({NATS: 0.0})
        assert [save(checkpoints, step, {NATS: float(step)}, best="") for step in (1, 2)] == [
            [1],
            [2],
        ]
    with pytest.raises(
        CheckpointError,
        match=r"none of the checkpoints \(2\) is known to be best; .*config.checkpoint_best",
    ):
        load_params(tmp_path, "best")
    with Checkpoints(tmp_path / "other", keep=1) as checkpoints:
        checkpoints.save(1, PARAMS, OPTIMIZER, {})
    with pytest.raises(CheckpointError, match="other/1: metadata without config, expected"):
        load_params(tmp_path / "other", "best")
    with Checkpoints(tmp_path, keep=1, best=NATS) as checkpoints:
        assert save(checkpoints, 3, {NATS: 2.5}) == [2, 3], (
            "asked for later, it counts what was seen before"
        )
    assert load_params(tmp_path, "best")[1]["step"] == 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents=30)
    saving = {"checkpoint_every": 1000, "checkpoints_kept": 1, "log_every": 4}
    evaluators = usual_evaluators(every=2)
    config = tiny_config(corpus, optimizer=Optimizer(), evaluators=evaluators, **saving)
    # A rate at which what is learned is lost again.
    stage = dataclasses.replace(
        config.stages["autoencoder"],
        steps=8,
        learning_rate=1.0,
        warmup_steps=0,
        lr_schedule="constant",
    )
    return dataclasses.replace(config, stages={**config.stages, "autoencoder": stage})


def train(config: Config, workdir: Path) -> tuple[dict[int, float], list[dict]]:
    """Trains the autoencoder; nats on held-out rows by step, and the lines of training."""
    data = prepare(config.data, workdir / "data")
    run = Run(config, workdir, data, Reporter(Console(quiet=True)))
    train_stage(run, "autoencoder", open_evaluators(run, "autoencoder", training=True))
    lines = [
        json.loads(line)
        for line in (workdir / "stages" / "autoencoder" / "metrics.jsonl").read_text().splitlines()
    ]
    looks = {
        line["step"]: line["reconstruction/nats"] for line in lines if line["split"] == "validation"
    }
    return looks, [line for line in lines if line["split"] == "train"]


@pytest.mark.slow
def test_training_saves_an_evaluation_that_is_best_and_says_how_long_it_stood_still(
    config: Config, tmp_path: Path
) -> None:
    looks, lines = train(
        dataclasses.replace(config, checkpoint_best="reconstruction/nats"), tmp_path
    )
    best = min(looks, key=lambda step: looks[step])
    assert list(looks) == [2, 4, 6, 8]
    folder = tmp_path / "stages" / "autoencoder" / "checkpoints"
    assert sorted(int(path.name) for path in folder.iterdir()) == sorted({best, 8})
    meta = load_params(folder, "best")[1]
    assert meta["step"] == best and meta["metrics"]["reconstruction/nats"] == looks[best]
    assert load_params(folder)[1]["metrics"]["reconstruction/nats"] == looks[8]
    improved = [
        step
        for step in looks
        if looks[step] < min([looks[s] for s in looks if s < step], default=math.inf)
    ]
    assert improved[0] == 2 and improved[-1] == best
    # A save is told of in the next line, which is written before the next save or look.
    told = [line["step"] for line in lines if line.get("checkpoint_seconds", 0.0) > 0.0]
    assert len(told) == len({*improved} - {8}) and all(
        line > save for line, save in zip(told, improved, strict=False)
    )


@pytest.mark.slow
def test_minutes_save_in_between(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, evaluators=usual_evaluators(every=4))
    looks, _ = train(
        dataclasses.replace(config, checkpoint_minutes=1e-9, checkpoints_kept=100, log_every=2),
        tmp_path,
    )
    folder = tmp_path / "stages" / "autoencoder" / "checkpoints"
    assert sorted(int(path.name) for path in folder.iterdir()) == [2, 4, 6, 8], (
        "looked at the clock where numbers are written"
    )
    known = {
        step: load_params(folder, step)[1]["metrics"].get("reconstruction/nats")
        for step in (2, 4, 6, 8)
    }
    assert known == {2: None, 4: looks[4], 6: None, 8: looks[8]}
