"""Files of published weights to folders that memjax loads, and back byte for byte."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import memjax
from memjax.checkpoints import CheckpointError, Checkpoints, load_params
from memjax.config import from_json, to_json
from memjax.interop.reference import forward
from memjax.interop.reference.folder import (
    FolderError,
    export_checkpoint,
    import_checkpoint,
    read_state_dict,
)
from memjax.interop.reference.spec import to_config
from memjax.interop.reference.weights import StateDictError


@pytest.mark.quick_cases(
    "autoencoder_transformer_unroll_bottleneck.a",
    "llama_lm.a",
    "memory_mixer_heads_bottleneck.a",
    "oracle_mixer_embedding.a",
    "recurrent_memory_mixer.a",
    slow=(
        "autoencoder_mixer_bottleneck.w",
        "autoencoder_mixer_repeat_k1.a",
        "memory_transformer_none.a",
        "memory_transformer_variable.a",
        "mixer_lm_kernel4.a",
        "oracle_transformer_add.a",
        "probe_transformer_bridge.a",
        "transfixer_transformer_to_mixer.a",
    ),
)
def test_the_file_comes_back_byte_for_byte(case_name, golden, tmp_path):
    case = golden(case_name)
    found = import_checkpoint(case.state, case.spec_file, tmp_path / "imported")
    assert export_checkpoint(tmp_path / "imported", tmp_path / "out.safetensors") == len(
        case.tensors
    )
    assert (tmp_path / "out.safetensors").read_bytes() == case.state.read_bytes()
    unused = tmp_path / "imported" / "unused.safetensors"
    assert unused.exists() == bool(found.unused)
    assert (
        found.parameters + sum(case.tensors[name].size for name in found.unused)
        == case.spec["params"]
    )


@pytest.fixture(scope="module")
def case(golden):
    return golden("memory_transformer_none.a")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "model"
    import_checkpoint(case.state, case.spec_file, folder)
    return folder


def test_the_folder_is_a_workdir_of_one_stage_at_step_0(case, imported):
    config = from_json((imported / "config.json").read_text())
    assert config == to_config(case.spec)
    assert json.loads((imported / "reference.json").read_text()) == case.spec
    unused = load_file(imported / "unused.safetensors")
    assert sorted(unused) == [
        "decoder.embed_tokens.weight",
        "decoder_proj.bias",
        "decoder_proj.weight",
        "wte.weight",
    ]
    assert len({path.stat().st_mode for path in imported.glob("*.*")}) == 1
    _, meta = load_params(imported / "stages" / "reference" / "checkpoints")
    known = {"stage": "reference", "step": 0, "tokenizer": "", "next_row": 0, "seconds": 0.0}
    known |= {"sealed": True}
    assert meta == known | {"config": to_json(config), "format_version": 1}


def test_load_gives_the_model_without_tokenizer(case, imported, quick):
    model = memjax.load(imported)
    assert model.tokenizer is None and model.step == 0
    logits = quick(lambda params, x: forward(model.module, {"params": params}, x, case.spec))(
        model.params, case.tokens
    )
    np.testing.assert_allclose(logits, case.logits, atol=2e-5)


def saved(path, tensors):
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, ml_dtypes.bfloat16], ids=["F64", "F16", "BF16"]
)
def test_other_floats_become_float32(dtype, golden, tmp_path):
    case = golden("mixer_lm_flat.a")
    state = saved(
        tmp_path / "state.safetensors", {name: x.astype(dtype) for name, x in case.tensors.items()}
    )
    found = import_checkpoint(state, case.spec_file, tmp_path / "imported")
    assert found.converted == len(case.tensors)
    export_checkpoint(tmp_path / "imported", tmp_path / "out.safetensors")
    for name, tensor in load_file(tmp_path / "out.safetensors").items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, case.tensors[name].astype(dtype).astype(np.float32))


def test_a_weight_of_integers_is_refused_and_nothing_is_written(golden, tmp_path):
    case = golden("mixer_lm_flat.a")
    case.tensors["wte.weight"] = case.tensors["wte.weight"].astype(np.int32)
    state = saved(tmp_path / "state.safetensors", case.tensors)
    with pytest.raises(
        StateDictError, match=r"state\.safetensors: tensor 'wte\.weight' is of type I32"
    ):
        import_checkpoint(state, case.spec_file, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_a_folder_that_holds_something_is_left_alone(case, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="is there already"):
        import_checkpoint(case.state, case.spec_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_that_is_there_is_not_written_over(imported, tmp_path, monkeypatch):
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(FolderError, match="is there already"):
        export_checkpoint(imported, tmp_path / "out.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FolderError, match="is there already"):
        export_checkpoint(imported, "~/out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "mine"


# A stage that trained on


def trained_on(imported, folder, **settings):
    """A stage's folder whose parameters are twice the imported ones, of a model with other
    settings."""
    params, meta = load_params(imported / "stages" / "reference" / "checkpoints")
    config = from_json(meta["config"])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **settings))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        doubled = jax.tree.map(lambda x: 2 * x, params)
        checkpoints.save(
            3, doubled, {"step": jnp.int32(3)}, meta | {"config": to_json(config), "stage": "more"}
        )
    return folder


def test_a_stage_elsewhere_that_trained_the_model_on_is_exported(case, imported, tmp_path):
    stage = trained_on(
        imported, tmp_path / "run" / "stages" / "more", dtype="bfloat16", remat="nothing_saveable"
    )
    export_checkpoint(imported, tmp_path / "out.safetensors", str(stage))
    unused = load_file(imported / "unused.safetensors")
    for name, tensor in load_file(tmp_path / "out.safetensors").items():
        assert np.array_equal(tensor, case.tensors[name] * (1 if name in unused else 2))


def test_a_stage_whose_parameters_mean_something_else_is_refused(imported, tmp_path):
    """Heads leave no trace in shapes."""
    heads = dataclasses.replace(memjax.load(imported).module.config.decoder, heads=2)
    trained_on(imported, tmp_path / "more", decoder=heads)
    with pytest.raises(
        StateDictError,
        match=r"trained with config\.model\.decoder=.*heads=2.*the spec's model has .*heads=4",
    ):
        export_checkpoint(imported, tmp_path / "out.safetensors", f"{tmp_path}/more")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_stage_that_is_not_there_is_named(imported, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"stage 'later' has no checkpoint, expected one of reference"
    ):
        export_checkpoint(imported, tmp_path / "out.safetensors", "later")


def test_weights_that_are_no_file(put_no_file, tmp_path):
    with pytest.raises(StateDictError, match=r"state\.safetensors cannot be read"):
        read_state_dict(put_no_file(tmp_path / "state.safetensors"))
