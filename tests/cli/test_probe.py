"""`memjax probe`: stages and files side by side, and what it says where something does not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.cli.probe import run
from memjax.config import Optimizer, to_json
from memjax.data import RowsError, prepare
from memjax.instruments.encoders import open_encoder, vectors_of
from memjax.instruments.probe import ProbeError
from memjax.instruments.texts import held_out
from memjax.instruments.vectors import VectorsError, save_vectors
from memjax.models import build, example
from memjax.testing import tiny_config, write_corpus

SMALL = ("--width=16", "--layers=1", "--heads=2", "--steps=10", "--batch=16", "--evaluate_every=5", "--limit=100")


@pytest.fixture(scope="module")
def stage(tmp_path_factory, draw) -> str:
    """A stage of drawn weights in a workdir whose data is there."""
    folder = tmp_path_factory.mktemp("probe")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), optimizer=Optimizer())
    config = dataclasses.replace(config, stages={"ae": config.stages["autoencoder"]}, curriculum=("ae",), controls=())
    data = prepare(config.data, folder / "data", lambda _: None)
    module = build(config, config.stages["ae"])
    params = draw(module, example(module, config))["params"]
    meta = {"stage": "ae", "config": to_json(config), "tokenizer": data.tokenizer.fingerprint, "next_row": 0, "seconds": 0.0}
    with Checkpoints(folder / "stages" / "ae" / "checkpoints") as checkpoints:
        checkpoints.save(4, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(4)}, meta)
    return str(folder / "stages" / "ae")


@pytest.fixture(scope="module")
def file(stage, tmp_path_factory) -> str:
    """Vectors of that stage's training texts."""
    encoder = open_encoder(stage)
    assert encoder.tokenizer is not None
    path = tmp_path_factory.mktemp("vectors") / "ae.arrayrecord"
    save_vectors(path, vectors_of(encoder, held_out(encoder.data, 8, 60, encoder.tokenizer, "train")))
    return str(path)


def test_a_stage_and_a_file_are_probed_alike(stage, file, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "probe.json"
    assert run(["probe", f"--encoder={stage},{file}", "--seeds=1", "--held_out_limit=40", *SMALL, f"--out={out}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one_shot probe" in said and "random_tokens" in said and "Still learning after 10 steps" in said
    of_stage, of_file = json.loads(out.read_text())["results"]
    assert (of_stage["encoder"], of_file["encoder"]) == (stage, file)
    assert list(of_stage["controls"]) == ["constant", "untrained", "shuffled", "random_tokens"]
    assert list(of_file["controls"]) == ["constant", "shuffled"]
    assert (of_stage["train_texts"], of_stage["held_out_texts"]) == (100, 40)
    assert (of_file["train_texts"], of_file["held_out_texts"]) == (54, 6), "the last tenth is held out"
    for result in (of_stage, of_file):
        assert (result["vocabulary"], result["length"], result["shape"]) == (320, 8, [1, 16])
        assert result["protocol"]["steps"] == 10 and result["protocol"]["learning_rate"] == 3e-3
        assert 0 < result["own"]["nats"]["low"] <= result["own"]["nats"]["value"] <= result["own"]["nats"]["high"]
        assert len(result["own"]["runs"]) == 1 and result["own"]["runs"][0]["curve"][0][0] == 0


def test_another_file_can_be_held_out(file, tmp_path, monkeypatch) -> None:
    """Found equal where it is the file itself, cut where the command would have cut it."""
    monkeypatch.chdir(tmp_path)
    arguments = ["probe", f"--encoder={file}", "--seeds=1", "--controls=shuffled", *SMALL]
    assert run([*arguments, f"--against_file={file}", "--held_out_limit=7"]) == 0
    (result,) = json.loads((tmp_path / "probe.json").read_text())["results"]
    assert (result["train_texts"], result["held_out_texts"]) == (60, 7)
    assert result["bits_a_dimension"] is None, "there is no constant to compare with"


def test_help_says_how_it_is_used(capsys) -> None:
    assert run(["probe", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--against_file=bert_held_out.npz" in said and "--held_out_limit" in said


COMMAND_LINES = {
    "no encoder": ([], "--encoder is missing; for example: memjax probe"),
    "a stray word": (["--encoder=a", "fast"], "'fast' is no flag"),
    "a kind that is none": (["--encoder=a", "--probe=slow"], "probe"),
    "a read-out that is none": (["--encoder=a", "--read_out=-3"], "read_out"),
    "no seeds": (["--encoder=a", "--seeds=0"], "seeds"),
    "a file against a stage": (["--encoder=a", "--against_file=b.npz"], "--against_file names 1 files, and --encoder 0"),
    "a bucket without data": (["--encoder=gs://b/runs/a/stages/ae"], "--data is missing: a checkpoint in a bucket"),
}


@pytest.mark.parametrize(("args", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line_is_explained(args, message) -> None:
    with pytest.raises(flags.Error, match=message):
        run(["probe", *args])


def test_what_does_not_fit_is_named(stage, file, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"absent/checkpoints: no checkpoint here"):
        run(["probe", f"--encoder={tmp_path / 'absent'}"])
    with pytest.raises(VectorsError, match=r"absent\.npz: no such file"):
        run(["probe", f"--encoder={tmp_path / 'absent.npz'}"])
    with pytest.raises(ProbeError, match="heads=16 do not divide width=40"):
        run(["probe", f"--encoder={stage}", "--width=40"])
    with pytest.raises(ProbeError, match="'untrained' runs the encoder"):
        run(["probe", f"--encoder={file}", "--controls=untrained"])
    np.savez(tmp_path / "one.npz", vectors=np.ones((1, 16)), tokens=np.ones((1, 8), int))
    with pytest.raises(VectorsError, match=r"one\.npz: holds 1 texts"):
        run(["probe", f"--encoder={tmp_path / 'one.npz'}"])
    np.savez(tmp_path / "wide.npz", vectors=np.ones((9, 17)), tokens=np.ones((9, 8), int))
    with pytest.raises(
        VectorsError, match=r"wide\.npz: vectors and width \(K, E\) \(1, 17\), while .*ae\.arrayrecord has \(1, 16\)"
    ):
        run(["probe", f"--encoder={file}", f"--against_file={tmp_path / 'wide.npz'}"])


def test_data_of_another_tokenizer_is_refused(stage, tmp_path) -> None:
    config = tiny_config(write_corpus(tmp_path / "other.jsonl", seed=5))
    prepare(config.data, tmp_path / "data", lambda _: None)
    with pytest.raises(RowsError, match=r"data: made by tokenizer \w+, while .*stages/ae was trained with \w+; give --data"):
        run(["probe", f"--encoder={stage}", f"--data={tmp_path / 'data'}"])
