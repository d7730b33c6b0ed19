"""`memjax export`: what it says, and what it refuses with one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax
from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.checkpoints.export_manifest import DTYPES as WRITTEN
from memjax.cli import export
from memjax.cli.arguments import UsageError, parse
from memjax.config import to_json
from memjax.experiment.run import claim_workdir
from memjax.models import build, example
from memjax.testing import tiny_config


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
    meta = {
        "stage": "autoencoder",
        "config": to_json(config),
        "tokenizer": "",
        "next_row": 0,
        "seconds": 0.0,
    }
    with Checkpoints(folder / "stages" / "autoencoder" / "checkpoints") as checkpoints:
        checkpoints.save(3, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(3)}, meta)
    return folder


def run(*args):
    export.run(parse(export.ARGUMENTS, list(map(str, args))))


def test_it_writes_a_folder_and_says_how_to_use_it(workdir, tmp_path, capsys):
    out = tmp_path / "model"
    small = ("--dtype=bfloat16", "--shard_gb=1e-5", "--license=mit")
    run(workdir, f"--out={out}", *small)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "stage autoencoder at step 3" in said
        and "parameters in bfloat16" in said
        and "files" in said
    )
    assert f"memjax.load('{out}')" in said
    assert 'license: "mit"' in (out / "README.md").read_text()
    assert "does not say which tokenizer" not in said
    loaded = memjax.load(out)
    assert loaded.tokenizer is None and not (out / "tokenizer.model").exists()
    tokens = np.zeros((1, 8), np.int32) + 7
    assert np.isfinite(
        loaded.module.apply({"params": loaded.params}, tokens, method="encode")
    ).all()


def test_what_it_refuses(workdir, tmp_path):
    out = f"--out={tmp_path / 'model'}"
    for args, match in (
        ([out], "PATH: missing, expected PATH. For example: memjax export"),
        ([workdir], "--out: missing"),
        ([workdir, out, "more"], "'more': unexpected argument"),
        ([workdir, out, "--dtype=int8"], "--dtype: 'int8', expected one of float32, bfloat16"),
        ([workdir, out, "--shard_gb=0"], "--shard_gb: 0, expected a number"),
        ([workdir, out, "--spec=there"], "--spec: given, expected none with --format=memjax"),
        ([workdir, out, "--format=huggingface"], "--spec: missing, expected the Hugging Face"),
        ([workdir, out, "--format=reference", "--license=mit"], "--license: given, expected none"),
    ):
        with pytest.raises(UsageError, match=match):
            run(*args)
    with pytest.raises(OSError, match="an address, expected a path on this machine"):
        run(workdir, "--out=gs://bucket/model")
    with pytest.raises(CheckpointError, match=r"stages/x: no folder of a stage, expected"):
        run(workdir / "stages" / "x", out)
    assert not (tmp_path / "model").exists()


def test_the_flags_name_what_can_be_written():
    assert tuple(WRITTEN) == export.ARGUMENTS.flags["dtype"].choices
