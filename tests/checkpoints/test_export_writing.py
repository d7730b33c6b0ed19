"""Exports: what is in the folder, that it is the same model to the last bit, and what cannot be
exported.

Shapes: rows [B, C, L] of chunks.
"""

import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import memjax
from memjax.checkpoints import CheckpointError
from memjax.checkpoints.export_manifest import ExportError
from memjax.checkpoints.export_reading import read_export
from memjax.checkpoints.export_writing import split_shards
from memjax.config import from_json
from memjax.experiment.export import export
from memjax.objectives import load_config


def logits(loaded, quick):
    module = loaded.module
    shape = (
        (2, 32)
        if type(module).__name__ == "CausalLM"
        else (2, 4, 8)
        if hasattr(module, "chunks")
        else (2, 8)
    )
    tokens = np.random.default_rng(0).integers(6, 320, shape)
    return quick(module.apply)({"params": loaded.params}, tokens)


@pytest.mark.quick_cases("combined")
@pytest.mark.parametrize("stage", ["autoencoder", "combined", "causal_control"])
def test_an_export_is_the_same_model_to_the_last_bit(made, tmp_path, stage, quick):
    manifest = export(made, tmp_path / "out", stage)
    ours, theirs = memjax.load(tmp_path / "out"), memjax.load(made, stage)
    assert type(ours.module) is type(theirs.module) and ours.module == theirs.module
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    found = logits(ours, quick)
    np.testing.assert_array_equal(found, logits(theirs, quick))
    assert np.ptp(found) > 0.1
    text = "a memory holds what the chunk said"
    assert ours.tokenizer is not None and theirs.tokenizer is not None
    np.testing.assert_array_equal(ours.tokenizer.encode(text), theirs.tokenizer.encode(text))
    assert manifest.step == 8 and manifest.stage == stage
    assert manifest.parameters == sum(x.size for x in jax.tree.leaves(theirs.params))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_is_what_others_read(made, tmp_path):
    export(made, tmp_path / "out")
    folder = tmp_path / "out"
    names = ["config.json", "model.safetensors", "tokenizer.model"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        *names[:2],
        "reconstructor",
        names[2],
    ]
    assert sorted(path.name for path in (folder / "reconstructor").iterdir()) == names
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1
    tensors = load_file(folder / "model.safetensors")
    params = memjax.load(made).params
    np.testing.assert_array_equal(
        tensors["encoder/embed/embedding"], params["encoder"]["embed"]["embedding"]
    )
    assert len(tensors) == len(jax.tree.leaves(params))
    said = json.loads((folder / "config.json").read_text())
    assert (said["library_name"], said["format_version"], said["stage"], said["step"]) == (
        "memjax",
        1,
        "combined",
        8,
    )
    assert load_config(said["config"]) == from_json((made / "config.json").read_text())
    assert said["files"]["tokenizer.model"]["sha256"].startswith(said["tokenizer"])


def test_shards_and_their_index(made, tmp_path):
    assert split_shards({"b": 4, "a": 3, "c": 9, "d": 1, "e": 6}, 7) == [
        ["a", "b"],
        ["c"],
        ["d", "e"],
    ]
    manifest = export(made, tmp_path / "out", shard_bytes=20_000)
    folder = tmp_path / "out"
    assert (
        len(manifest.weights) > 2
        and manifest.weights[1] == f"model-00002-of-0000{len(manifest.weights)}.safetensors"
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(manifest.weights)
    assert index["metadata"]["total_size"] == 4 * manifest.parameters
    largest = max(memjax.load(made).params["embed"]["embedding"].nbytes, 20_000)
    assert all(
        file["bytes"] < largest + 4096
        for name, file in manifest.files.items()
        if name != "tokenizer.model"
    )
    jax.tree.map(
        np.testing.assert_array_equal, memjax.load(folder).params, memjax.load(made).params
    )


def test_bfloat16_is_half_as_large_and_rounded(made, tmp_path):
    manifest = export(made, tmp_path / "out", dtype="bfloat16")
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert len(raw) == 8 + struct.unpack("<Q", raw[:8])[0] + 2 * manifest.parameters
    ours, theirs = memjax.load(tmp_path / "out").params, memjax.load(made).params

    def compare(a, b):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32))

    jax.tree.map(compare, ours, theirs)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def test_parameters_and_meta_are_those_of_the_checkpoint(made, tmp_path):
    export(made / "stages" / "autoencoder", tmp_path / "out")
    exported = read_export(tmp_path / "out")
    manifest, params = exported.manifest, exported.read()
    assert manifest.stage == "autoencoder" and manifest.step == 8
    assert manifest.config == from_json((made / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, params, memjax.load(made, "autoencoder").params)


def card(folder):
    """(front matter, body)."""
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_says_what_it_is_and_how_good(made, tmp_path):
    export(made, tmp_path / "tiny model", license_id="apache-2.0")
    front, body = card(tmp_path / "tiny model")
    assert front["license"] == "apache-2.0" and front["library_name"] == "memjax"
    assert front["pipeline_tag"] == "text-generation" and front["tags"] == [
        "memjax",
        "jax",
        "flax",
        "memory-model",
    ]
    assert "| next token, nats per token | 4.062 (4.000 to 4.125) |" in body
    assert "| copy, share of tokens right | 50.0% |" in body and "copy\\_tokens" not in body
    assert "| free running, share of chunks without an error | 25.0% |" in body
    assert "| autoencoder | autoencoder | reconstruction × 1 | 8 | 8 | – | – |" in body
    taken = (
        "| combined | memory\\_model | copy × 1, next\\_token × 1 | 8 | 8 | encoder of"
        " autoencoder | ^encoder/ |"
    )
    assert taken in body.replace("next\\_token × 1, copy × 1", "copy × 1, next\\_token × 1")
    assert (
        "| memory of a chunk | 1 × 16 numbers |" in body and "| vocabulary | 320 tokens |" in body
    )
    parameters = sum(x.size for x in jax.tree.leaves(memjax.load(made).params))
    assert f"{parameters:,}\nparameters" in body
    assert str(made) not in body, "a card does not say where a run lay"
    assert "trained on corpus.jsonl alone" in body and "rounded" not in body


def test_the_card_without_an_evaluation_has_what_was_logged(workdir, tmp_path):
    export(workdir, tmp_path / "out", "autoencoder", "bfloat16")
    front, body = card(tmp_path / "out")
    assert (
        "pipeline_tag" not in front
        and front["license"] == "unknown"
        and "autoencoder" in front["tags"]
    )
    assert (
        "| reconstruction, nats per token | 4.500 |" in body
        and "| reconstruction, share of tokens right | 12.5% |" in body
    )
    assert "Weights are rounded to bfloat16" in body
    # Numbers of another step are of another model.
    results = json.loads((workdir / "results.json").read_text())
    results["stages"]["combined"]["steps"] = 4
    (workdir / "results.json").write_text(json.dumps(results))
    export(workdir, tmp_path / "other")
    assert "Nothing was measured of this step" in card(tmp_path / "other")[1]


def test_the_lines_of_the_card_run(made, tmp_path, monkeypatch):
    export(made, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", card(tmp_path / "out")[1], re.DOTALL)
    assert code is not None and len(code[1].splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code[1], names)
    assert names["memories"].leaves["vectors"].shape[1:] == (1, 16)
    assert names["memories"].count == len(names["memories"].leaves["vectors"]) > 0


def test_what_cannot_be_exported(made, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ExportError, match="is there already"):
        export(made, tmp_path / "taken")
    with pytest.raises(OSError, match="an address, expected a path on this machine"):
        export(made, "gs://bucket/out")
    assert (tmp_path / "taken" / "file").read_text() == "mine"
    with pytest.raises(
        ExportError, match="dtype='int8': weights are written as float32 or bfloat16"
    ):
        export(made, tmp_path / "out", dtype="int8")
    with pytest.raises(
        CheckpointError,
        match="stage 'absent' has no checkpoint, expected one of autoencoder, causal_control, comb",
    ):
        export(made, tmp_path / "out", "absent")
    with pytest.raises(
        CheckpointError, match="nothing: not found, expected a workdir, the folder of a stage"
    ):
        export(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_an_export_is_exported_in_another_form(made, tmp_path):
    """To bfloat16, and back to float32 without another loss."""
    export(made, tmp_path / "whole")
    export(tmp_path / "whole", tmp_path / "half", dtype="bfloat16")
    export(tmp_path / "half", tmp_path / "again")
    half, again = memjax.load(tmp_path / "half"), memjax.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, half.params, again.params)
    assert half.config == again.config and again.step == 8
