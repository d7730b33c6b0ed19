"""`memjax.load` and `open_stage`: a workdir, a stage's folder, an export, imported weights and a
Hugging Face folder, and one message per mistake."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import memjax
from memjax import released
from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.store_records import StoreError
from memjax.experiment.export import export
from memjax.interop.stage import open_stage
from memjax.testing import WORDS

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.module == theirs.module and type(ours.module) is type(theirs.module)
    assert ours.config == theirs.config
    assert (ours.stage, ours.step) == (theirs.stage, theirs.step)
    assert ours.tokenizer.fingerprint == theirs.tokenizer.fingerprint
    return True


def test_a_workdir_gives_its_last_stage_or_the_one_that_is_named(made):
    last = memjax.load(made)
    assert type(last.module).__name__ == "MemoryModel"
    params = load_params(made / "stages/combined/checkpoints")[0]
    jax.tree.map(np.testing.assert_array_equal, last.params, params)
    assert type(memjax.load(str(made), "autoencoder").module).__name__ == "Autoencoder"
    assert same(memjax.load(made, "combined"), last)
    with pytest.raises(
        CheckpointError,
        match="stage 'other' has no checkpoint, expected one of autoencoder, causal_control, comb",
    ):
        memjax.load(made, "other")


def test_a_stages_folder_gives_that_stage_wherever_one_stands(made, monkeypatch):
    folder = made / "stages" / "autoencoder"
    assert same(memjax.load(folder), memjax.load(made, "autoencoder"))
    assert same(memjax.load(folder, "autoencoder"), memjax.load(made, "autoencoder"))
    monkeypatch.chdir(folder.parent)
    assert same(memjax.load("autoencoder"), memjax.load(made, "autoencoder"))
    found = open_stage(folder)
    assert (found.name, found.step, found.config.name) == ("autoencoder", 8, "tiny")
    assert found.data == made / "data" and found.settings.family == "autoencoder"
    with pytest.raises(
        CheckpointError, match=r"stage autoencoder, expected combined\. Leave the stage out"
    ):
        memjax.load(folder, "combined")


def test_an_export_gives_its_stage(made, tmp_path, monkeypatch):
    export(made, tmp_path / "bucket" / "out")
    assert same(memjax.load(tmp_path / "bucket" / "out"), memjax.load(made))
    assert same(memjax.load(tmp_path / "bucket" / "out", "combined"), memjax.load(made))
    with pytest.raises(CheckpointError, match="stage combined, expected autoencoder"):
        memjax.load(tmp_path / "bucket" / "out", "autoencoder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="an export in a bucket, expected one on this mach"):
        memjax.load("gs://bucket/out")


def test_a_hugging_face_folder_gives_a_causal_language_model():
    model = memjax.load(f"hf:{GOLDEN / 'hf' / 'llama32_gqa_tied'}")
    assert (model.family, model.stage, model.tokenizer) == ("causal_lm", "pretrained", None)
    expected = np.load(GOLDEN / "hf" / "llama32_gqa_tied" / "expected.npz")
    logits = jax.jit(model.module.apply)({"params": model.params}, expected["input_ids"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)
    with pytest.raises(CheckpointError, match="a Hugging Face folder, expected its prefix"):
        memjax.load(GOLDEN / "hf" / "llama32_gqa_tied")
    with pytest.raises(CheckpointError, match=r"absent/config\.json: no such file"):
        memjax.load("hf:absent")


def test_one_message_per_mistake_says_what_to_pass(made, workdir, tmp_path, monkeypatch):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "store").write_text("memories")
    stages = f"{made}/stages"
    every = " or ".join(
        f"{stages}/{name}" for name in ("autoencoder", "causal_control", "combined")
    )
    for path, said in (
        (tmp_path / "absent", "absent: not found, expected a workdir, the folder of a stage"),
        (tmp_path / "nothing", "nothing: holds no model, expected a workdir"),
        (tmp_path / "store", "store: a file, expected .* memjax.open_store opens a store"),
        (made / "checkpoints", f"checkpoints: no folder of a stage, .* Pass {every}"),
        (made / "stages", f"stages: no folder of a stage, .* Pass {every}"),
        (made / "data", f"data: no folder of a stage, .* Pass {every}"),
        (made / "combined", f"combined: no folder of a stage, .* Pass {stages}/combined\\."),
        (made / "stages/combined/checkpoints", f"Pass {stages}/combined\\."),
        (made / "stages/combined/checkpoints/8", f"Pass {stages}/combined\\."),
    ):
        with pytest.raises(CheckpointError, match=said):
            open_stage(path)
    with monkeypatch.context() as patch:
        patch.setattr(released, "names", lambda: ("small",))
        with pytest.raises(CheckpointError, match="an export, the released model small, or hf:"):
            open_stage(tmp_path / "absent")
    (workdir / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: no JSON"):
        open_stage(workdir)
    (workdir / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config.json: no curriculum, .* Pass .*/stages/ST"):
        open_stage(workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"a workdir without config.json. Pass .*/stages/ST"):
        open_stage(workdir)


def test_a_workdir_that_is_not_trained_to_its_end_lists_its_stages(workdir):
    shutil.rmtree(workdir / "stages" / "combined")
    with pytest.raises(
        CheckpointError,
        match="stage 'combined' has no checkpoint, expected one of autoencoder, causal_control",
    ):
        memjax.load(workdir)
    shutil.rmtree(workdir / "stages")
    with pytest.raises(CheckpointError, match="expected a stage that has been trained"):
        memjax.load(workdir)


def test_a_config_of_another_memjax_is_refused_by_its_key(workdir):
    folder = workdir / "stages" / "combined" / "checkpoints" / "8" / "meta" / "metadata"
    meta = json.loads(folder.read_text())
    folder.write_text(json.dumps(meta | {"config": meta["config"].replace("vocab_size", "words")}))
    with pytest.raises(
        CheckpointError, match=r"checkpoints: its config cannot be used \(config.data.words is not"
    ):
        memjax.load(workdir)
    folder.write_text(json.dumps(meta | {"config": meta["config"][:-9]}))
    with pytest.raises(CheckpointError, match=r"its config cannot be used .config: no JSON"):
        memjax.load(workdir)


def test_a_store_opens_by_itself(made, tmp_path):
    model = memjax.load(made, "autoencoder")
    store = model.compress([" ".join(WORDS)], dtype="float32")
    store.save(tmp_path / "store")
    found = memjax.open_store(tmp_path / "store")
    jax.tree.map(np.testing.assert_array_equal, found.memories, store.memories)
    with pytest.raises(StoreError):
        memjax.open_store(made)


def test_a_path_may_have_any_name(made, tmp_path):
    place = tmp_path / "a[1]*?{b,c} 100% ü\n~$x"
    workdir = shutil.copytree(made, place / "run")
    model = memjax.load(workdir, "autoencoder")
    model.save(place / "export")
    assert same(memjax.load(place / "export"), memjax.load(made, "autoencoder"))
    text = place / "text[1].txt"
    text.write_text(" ".join(WORDS))
    store = model.compress(text, dtype="float32")
    store.save(place / "store")
    found = memjax.open_store(place / "store")
    jax.tree.map(np.testing.assert_array_equal, found.memories, store.memories)


def test_a_tokenizer_of_another_run_is_refused(made, workdir):
    path = workdir / "data" / "tokenizer.model"
    raw = bytearray(path.read_bytes())
    word = next(word.encode() for word in WORDS if len(word) > 3 and word.encode() in raw)
    at = raw.index(word)
    raw[at : at + len(word)] = word[::-1]
    path.write_bytes(bytes(raw))
    for folder in (workdir, workdir / "stages" / "autoencoder"):
        with pytest.raises(
            CheckpointError,
            match=r"data/tokenizer.model: tokenizer [0-9a-f]{16}, expected [0-9a-f]{16}, which .*"
            " was trained with",
        ):
            memjax.load(folder)
