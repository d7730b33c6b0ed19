"""What ends a stage early, what it reads, and what it refuses to start from."""

import dataclasses
import re
from pathlib import Path

import pytest
from rich.console import Console

from memjax.checkpoints import CheckpointError, load_params
from memjax.config import Config, ConfigError, Optimizer
from memjax.data import prepare
from memjax.testing import tiny_config, write_corpus
from memjax.training import NonFiniteError, Reporter, Run, train_stage
from memjax.training.start import first_row


def run_of(config: Config, workdir: Path) -> Run:
    return Run(config, workdir, prepare(config.data, workdir / "data"), Reporter(Console(quiet=True)))


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
    config = changed(config, "autoencoder", learning_rate=1e16, warmup_steps=0, decay="constant")
    config = dataclasses.replace(config, checkpoint_every=1, log_every=4)
    with pytest.raises(NonFiniteError) as caught:
        train_stage(run_of(config, tmp_path), "autoencoder")
    said = str(caught.value)
    step = int(
        re.search(r"stage autoencoder, step (\d+): the (reconstruction loss|gradient or the update) is not finite", said)[1]
    )
    assert step > 1
    assert f"the last good checkpoint is step {step - 1} in {tmp_path}" in said
    assert "config.stages.autoencoder.learning_rate" in said
    assert load_params(tmp_path / "stages" / "autoencoder" / "checkpoints")[1]["step"] == step - 1


def test_stages_read_on_after_those_whose_whole_model_they_carry_on() -> None:
    config = tiny_config("unused", steps=10)
    stages = dict(config.stages)
    stages["more"] = dataclasses.replace(stages["combined"], init_from="combined", init_part="", rows=4)
    stages["yet_more"] = dataclasses.replace(stages["more"], init_from="more")
    config = dataclasses.replace(config, stages=stages)
    rows = {name: first_row(config, stage) for name, stage in stages.items()}
    assert rows == {"autoencoder": 0, "combined": 0, "causal_control": 0, "no_memory": 0, "more": 80, "yet_more": 120}


def test_rows_that_do_not_divide_over_devices_and_microbatches_are_refused(config: Config, tmp_path: Path) -> None:
    config = changed(config, "autoencoder", rows=9, microbatches=2)
    with pytest.raises(ConfigError, match=r"config\.stages\.autoencoder\.rows=9 must be a multiple of 2"):
        train_stage(run_of(config, tmp_path), "autoencoder")


def test_a_stage_needs_the_checkpoint_it_starts_from(config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="stages/autoencoder/checkpoints: no checkpoint here"):
        train_stage(run_of(config, tmp_path), "combined")
