"""`memjax export`: what it says, and what it refuses with one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import memjax
from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.cli.export import DTYPES, run
from memjax.config import to_json
from memjax.exporting import ExportError
from memjax.exporting.manifest import DTYPES as WRITTEN
from memjax.models import build, example
from memjax.testing import tiny_config
from memjax.training.curriculum import claim_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, draw):
    """An autoencoder of drawn weights, without tokenizer, as imported ones are."""
    folder = tmp_path_factory.mktemp("export") / "run"
    config = tiny_config("corpus.jsonl")
    stages = {"autoencoder": config.stages["autoencoder"]}
    config = dataclasses.replace(config, stages=stages, curriculum=("autoencoder",), controls=())
    claim_workdir(config, folder)
    module = build(config, stages["autoencoder"])
    params = draw(module, example(module, config))["params"]
    meta = {"stage": "autoencoder", "config": to_json(config), "tokenizer": "", "next_row": 0, "seconds": 0.0}
    with Checkpoints(folder / "stages" / "autoencoder" / "checkpoints") as checkpoints:
        checkpoints.save(3, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(3)}, meta)
    return folder


def test_it_writes_a_folder_and_says_how_to_use_it(workdir, tmp_path, capsys):
    out = tmp_path / "model"
    assert run(["export", f"--workdir={workdir}", f"--out={out}", "--dtype=bfloat16", "--shard_gb=1e-5", "--license=mit"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "stage autoencoder at step 3" in said and "parameters in bfloat16" in said and "files" in said
    assert f"memjax.load('{out}')" in said
    assert 'license: "mit"' in (out / "README.md").read_text()
    assert "does not say which tokenizer" not in said
    loaded = memjax.load(out)
    assert loaded.tokenizer is None and not (out / "tokenizer.model").exists()
    tokens = np.zeros((1, 8), np.int32) + 7
    assert np.isfinite(loaded.module.apply(loaded.variables, tokens, method="encode")).all()


def test_what_it_refuses(workdir, tmp_path, capsys):
    out = f"--out={tmp_path / 'model'}"
    for args, match in (
        ([out], "--workdir is missing; for example: memjax export"),
        ([f"--workdir={workdir}"], "--out is missing"),
        ([f"--workdir={workdir}", out, "more"], "'more' is no flag"),
        ([f"--workdir={workdir}", out, "--dtype=int8"], "should be one of"),
        ([f"--workdir={workdir}", out, "--shard_gb=0"], "shard_gb"),
    ):
        with pytest.raises(flags.Error, match=match):
            run(["export", *args])
    with pytest.raises(ExportError, match="written to this machine's disk"):
        run(["export", f"--workdir={workdir}", "--out=gs://bucket/model"])
    with pytest.raises(CheckpointError, match="no stage 'x'"):
        run(["export", f"--workdir={workdir}", out, "--stage=x"])
    assert not (tmp_path / "model").exists()
    assert run(["export", "--help"]) == 0 and "--shard_gb" in capsys.readouterr().out


def test_the_flags_name_what_can_be_written():
    assert tuple(WRITTEN) == DTYPES
