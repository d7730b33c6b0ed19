"""`memjax.load` from a workdir, a stage's folder, an export and a store of memories, and what it says of other folders.

Shapes: N chunk, L token.
"""

import json
import shutil

import jax
import numpy as np
import pytest

import memjax
from memjax.checkpoints import CheckpointError, load_params
from memjax.exporting.writing import export
from memjax.loading import read_stage
from memjax.store import MemoryStore, Source, StoreError, compress, cut, open_compressor
from memjax.testing import WORDS


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert ours.module == theirs.module and type(ours.module) is type(theirs.module)
    assert ours.tokenizer.fingerprint == theirs.tokenizer.fingerprint
    return True


def write_store(checkpoint, out):
    compressor = open_compressor(checkpoint)
    chunks = cut([Source("text", " ".join(WORDS), 0)], compressor.tokenizer, 8)
    store = compress(compressor, chunks, "float32")
    store.save(out)
    return store


def test_a_workdir_gives_its_last_stage_or_the_one_that_is_named(made):
    last = memjax.load(made)
    assert type(last.module).__name__ == "MemoryModel"
    jax.tree.map(np.testing.assert_array_equal, last.variables["params"], load_params(made / "stages/combined/checkpoints")[0])
    assert type(memjax.load(str(made), "autoencoder").module).__name__ == "Autoencoder"
    assert same(memjax.load(made, "combined"), last)
    with pytest.raises(CheckpointError, match="no stage 'other'; its stages are autoencoder, causal_control, combined"):
        memjax.load(made, "other")


def test_a_stages_folder_gives_that_stage_wherever_one_stands(made, monkeypatch):
    folder = made / "stages" / "autoencoder"
    assert same(memjax.load(folder), memjax.load(made, "autoencoder"))
    assert same(memjax.load(folder, "autoencoder"), memjax.load(made, "autoencoder"))
    monkeypatch.chdir(folder.parent)
    assert same(memjax.load("autoencoder"), memjax.load(made, "autoencoder"))
    found = read_stage(folder)
    assert (found.name, found.step, found.config.name) == ("autoencoder", 8, "tiny")
    with pytest.raises(CheckpointError, match="is stage autoencoder, and stage='combined' was asked for"):
        memjax.load(folder, "combined")


def test_a_store_gives_the_stage_that_made_it(made, tmp_path, monkeypatch):
    checkpoint = made / "stages" / "autoencoder"
    write_store(checkpoint, tmp_path / "store")
    assert MemoryStore.load(tmp_path / "store").origin.checkpoint == str(checkpoint)
    loaded = memjax.load(tmp_path / "store")
    assert same(loaded, memjax.load(made, "autoencoder"))
    tokens = np.asarray(loaded.tokenizer.encode(" ".join(WORDS)))[:8]
    memory = loaded.module.apply(loaded.variables, tokens[None], method="encode")
    np.testing.assert_allclose(MemoryStore.load(tmp_path / "store").memories[0], memory[0], rtol=1e-5, atol=1e-5)
    # A path that was relative is so from where one stands.
    monkeypatch.chdir(made)
    write_store("stages/autoencoder", tmp_path / "relative")
    assert same(memjax.load(tmp_path / "relative"), loaded)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"in stages/autoencoder, and that is no folder of a stage here; give the stage's"
    ):
        memjax.load("relative")


def test_a_store_whose_stage_moved_or_was_never_named_takes_another_path(made, tmp_path):
    moved = shutil.copytree(made, tmp_path / "moved")
    write_store(moved / "stages" / "autoencoder", tmp_path / "store")
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"store holds memories by stage autoencoder \(autoencoder, step 8\), whose weights"
    ):
        memjax.load(tmp_path / "store")
    there = tmp_path / "elsewhere" / "stages" / "autoencoder"
    assert same(memjax.load(tmp_path / "store", checkpoint=there), memjax.load(made, "autoencoder"))
    export(made, tmp_path / "exported", "combined")  # Its encoder is the same.
    assert type(memjax.load(tmp_path / "store", checkpoint=tmp_path / "exported").module).__name__ == "MemoryModel"
    assert same(memjax.load(tmp_path / "store", "combined", tmp_path / "elsewhere"), memjax.load(made))

    header = tmp_path / "store" / "store.json"
    value = json.loads(header.read_text())
    del value["model"]["checkpoint"]
    header.write_text(json.dumps(value))
    assert MemoryStore.load(tmp_path / "store").origin.checkpoint == "", "older stores have no such member"
    with pytest.raises(CheckpointError, match="does not say where its weights are; give the stage's folder or an export"):
        memjax.load(tmp_path / "store")
    assert same(memjax.load(tmp_path / "store", checkpoint=there), memjax.load(made, "autoencoder"))


def test_a_path_in_a_header_is_not_believed(made, tmp_path):
    write_store(made / "stages" / "autoencoder", tmp_path / "store")
    header = tmp_path / "store" / "store.json"
    value = json.loads(header.read_text())

    def hint(path):
        header.write_text(json.dumps(value | {"model": value["model"] | {"checkpoint": path}}))

    hint("gs://bucket/run/stages/autoencoder")
    with pytest.raises(CheckpointError, match="nothing is fetched from there unasked"):
        memjax.load(tmp_path / "store")
    hint(str(tmp_path / "store"))  # Itself: not for ever.
    with pytest.raises(CheckpointError, match="is no folder of a stage here"):
        memjax.load(tmp_path / "store")
    hint(str(made / "stages" / "causal_control"))
    with pytest.raises(CheckpointError, match=r"has another encoder .sha256 no encoder"):
        memjax.load(tmp_path / "store")
    value["model"]["sha256"] = "0" * 64
    hint(str(made / "stages" / "autoencoder"))
    with pytest.raises(CheckpointError, match=r"has another encoder \(sha256 [0-9a-f]{16}, not 0{16}\)"):
        memjax.load(tmp_path / "store")
    for odd in (1, "", "x" * 1025, "a\x1b[2J", None, ["a"]):
        hint(odd)
        with pytest.raises(StoreError, match=r"model.checkpoint must be a word of at most 1024 printable"):
            memjax.load(tmp_path / "store")
    value["tokenizer"], value["model"]["sha256"] = "0" * 16, MemoryStore.load(write_again(made, tmp_path)).origin.sha256
    hint(str(made / "stages" / "autoencoder"))
    with pytest.raises(CheckpointError, match=r"has another tokenizer, not 0{16}"):
        memjax.load(tmp_path / "store")


def write_again(made, tmp_path):
    write_store(made / "stages" / "autoencoder", tmp_path / "again")
    return tmp_path / "again"


def test_folders_that_hold_no_model(made, workdir, tmp_path, monkeypatch):
    for folder in (tmp_path / "nothing", workdir / "data"):
        with pytest.raises(
            CheckpointError, match=r"holds no model: it has no config.json, checkpoints or store.json; give a work"
        ):
            memjax.load(folder)
    with pytest.raises(CheckpointError, match="is no store of memories; checkpoint= is for those"):
        memjax.load(made, checkpoint=made)
    export(made, tmp_path / "bucket" / "out")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="an export is read from this machine's disk"):
        memjax.load("gs://bucket/out")
    (workdir / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: no JSON"):
        memjax.load(workdir)


def test_a_tokenizer_of_another_run_is_refused(made, workdir):
    path = workdir / "data" / "tokenizer.model"
    raw = bytearray(path.read_bytes())
    word = next(word.encode() for word in WORDS if len(word) > 3 and word.encode() in raw)
    at = raw.index(word)
    raw[at : at + len(word)] = word[::-1]
    path.write_bytes(bytes(raw))
    for folder in (workdir, workdir / "stages" / "autoencoder"):
        with pytest.raises(CheckpointError, match=r"was trained with tokenizer [0-9a-f]{16}, but .*data holds [0-9a-f]{16}"):
            memjax.load(folder)
