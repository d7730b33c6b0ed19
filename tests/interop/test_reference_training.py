"""Runs that start from imported weights, and runs that start as the published code does."""

import dataclasses
import io
import json
import zlib

import jax
import numpy as np
import optax
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from memjax import objectives
from memjax.checkpoints import CheckpointError, load_params
from memjax.config import Stage
from memjax.data import TrainBatches, prepare
from memjax.experiment.preflight import check_stages
from memjax.interop.reference.folder import export_checkpoint, import_checkpoint
from memjax.interop.reference.spec import to_config
from memjax.interop.reference.weights import export_state_dict
from memjax.models import build, example
from memjax.models.initialize import reference_init
from memjax.progress import Reporter
from memjax.testing import tiny_config, tiny_model, write_corpus
from memjax.training.init_state import Run, init_train_state
from memjax.training.loop import train_stage

SMALL = {"vocab": 320, "dim": 16, "layers": 1}
LLAMA = SMALL | {"kind": "causal_lm", "heads": 2, "context": 32}
AUTOENCODER = SMALL | {"kind": "autoencoder", "mixer": True, "heads": 2, "context": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny run's config and its prepared data."""
    folder = tmp_path_factory.mktemp("data")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"))
    return config, prepare(config.data, folder / "data")


@pytest.fixture(scope="module")
def imported(tmp_path_factory, draw):
    """Imports random weights of a spec; gives the folder, the tensors and the state dict's file."""

    def make(spec):
        folder = tmp_path_factory.mktemp("imported")
        config = to_config(spec)
        module = build(config, config.stages["reference"])
        tensors = export_state_dict(draw(module, example(module, config)), spec)
        save_file(tensors, folder / "state.safetensors")
        (folder / "spec.json").write_text(json.dumps(spec))
        import_checkpoint(folder / "state.safetensors", folder / "spec.json", folder / "model")
        return folder / "model"

    return make


def run_of(data, workdir, model, **stage):
    """A run of one stage, `only`, and what it has said."""
    config, prepared = data
    only = Stage(batch_size=8, steps=2, warmup_steps=0, learning_rate=1e-2, **stage)
    config = dataclasses.replace(
        config, model=model, stages={"only": only}, curriculum=("only",), controls=(), log_every=1
    )
    said = io.StringIO()
    run = Run(config, workdir, prepared, Reporter(Console(file=said, soft_wrap=True)))
    check_stages(config, run.mesh)
    return run, said


def params_of(run):
    return load_params(run.folder("only") / "checkpoints")[0]


def source_of(folder):
    return load_params(folder / "stages" / "reference" / "checkpoints")[0]


def first_params(run):
    """What the stage starts from."""
    stage = run.config.stages["only"]
    return init_train_state(run, "only", build(run.config, stage), optax.sgd(1.0)).params


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_run_goes_on_from_imported_weights_and_they_leave_under_their_names(
    data, imported, tmp_path, quick
):
    folder = imported(LLAMA)
    settings = {
        "family": "causal_lm",
        "objectives": {"next_token": 1.0},
        "init_from": f"{folder}/stages/reference",
    }
    run, said = run_of(data, tmp_path / "run", to_config(LLAMA).model, **settings)
    train_stage(run, "only")
    assert f"{folder}/stages/reference: no tokenizer is named there" in said.getvalue()
    # The first loss is that of the imported model on the first batch.
    stage, source = run.config.stages["only"], source_of(folder)
    module = build(run.config, stage)
    tokens = TrainBatches(run.data.train, stage.batch_size, run.config.seed).batch(0)["tokens"]
    scores = quick(
        lambda tokens: objectives.score(
            module, {"params": source}, tokens, ["next_token"], run.ids
        )["next_token"]
    )
    term = objectives.total(scores(tokens))
    first = json.loads((run.folder("only") / "metrics.jsonl").read_text().splitlines()[0])
    assert first["split"] == "train" and first["loss"] == pytest.approx(
        float(term.nats / term.count), abs=1e-5
    )
    # What came of it is exported, and imported again.
    export_checkpoint(folder, tmp_path / "out.safetensors", str(run.folder("only")))
    import_checkpoint(tmp_path / "out.safetensors", folder / "reference.json", tmp_path / "again")
    same(source_of(tmp_path / "again"), params_of(run))
    assert all(
        np.any(x != y)
        for x, y in zip(jax.tree.leaves(params_of(run)), jax.tree.leaves(source), strict=True)
    )


@pytest.mark.slow
def test_an_imported_encoder_seeds_a_memory_model(data, imported, tmp_path):
    folder = imported(AUTOENCODER)
    published = to_config(AUTOENCODER).model
    model = tiny_model(encoder=published.encoder, compat=published.compat)
    seeded = {
        "init_from": f"{folder}/stages/reference",
        "init_part": "encoder",
        "objectives": {"copy": 1.0},
    }
    run, _ = run_of(data, tmp_path / "run", model, **seeded)
    params = first_params(run)
    same(params["encoder"], source_of(folder)["encoder"])
    assert params.keys() > {"embed", "backbone", "head"}


@pytest.mark.slow
def test_an_imported_encoder_of_other_heads_is_refused(data, imported, tmp_path):
    folder = imported(AUTOENCODER)
    published = to_config(AUTOENCODER).model
    model = tiny_model(
        encoder=dataclasses.replace(published.encoder, heads=4), compat=published.compat
    )
    seeded = {
        "init_from": f"{folder}/stages/reference",
        "init_part": "encoder",
        "objectives": {"copy": 1.0},
    }
    run, _ = run_of(data, tmp_path / "run", model, **seeded)
    with pytest.raises(CheckpointError, match=r"was trained with config\.model\.encoder=.*heads=2"):
        first_params(run)


@pytest.mark.slow
def test_a_stage_can_start_as_the_published_code_does(data, tmp_path):
    model = dataclasses.replace(to_config(LLAMA).model, compat=("reference_init",))
    run, _ = run_of(
        data, tmp_path / "run", model, family="causal_lm", objectives={"next_token": 1.0}
    )
    params, stage = first_params(run), run.config.stages["only"]
    key = jax.random.fold_in(jax.random.key(run.config.seed), zlib.crc32(b"only"))
    same(params, jax.jit(lambda params: reference_init(params, run.config, stage, key))(params))
    # Of Llama's scale; memjax itself draws the head of a model this wide at 0.25.
    assert np.std(params["head"]["kernel"]) == pytest.approx(0.02, rel=0.05)
