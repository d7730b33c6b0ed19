"""Exports that someone damaged, by chance or on purpose: one clear line, nothing read outside the
folder, no memory taken."""

import hashlib
import json
import os
import random
import shutil
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memjax.checkpoints import CheckpointError
from memjax.checkpoints.export_manifest import ExportError
from memjax.checkpoints.export_reading import read_export
from memjax.experiment.export import export
from memjax.files import sealed, sha256

MUTANTS = 200


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    export(made, folder / "one")
    export(made, folder / "several", shard_bytes=20_000)
    return folder


@pytest.fixture
def one(exported, tmp_path):
    return shutil.copytree(exported / "one", tmp_path / "export")


@pytest.fixture
def several(exported, tmp_path):
    return shutil.copytree(exported / "several", tmp_path / "shards")


def refused(folder, match):
    with pytest.raises(ExportError, match=match) as error:
        read_export(folder)
    assert isinstance(error.value, CheckpointError)
    assert str(error.value).isprintable() and len(str(error.value)) < 600
    return str(error.value)


def rewrite(folder, change):
    """Changes `config.json` as someone would who keeps its checksum right."""
    path = folder / "config.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(change(value) or value)))


def rewrite_weights(folder, change):
    """Changes the tensors, and the checksums with them."""
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    save_file(change(tensors) or tensors, path)
    rewrite(
        folder,
        lambda value: value["files"].update(
            {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
        ),
    )


def test_files_that_are_cut_flipped_absent_or_no_files(one):
    weights, tokenizer = one / "model.safetensors", one / "tokenizer.model"
    for path in (weights, tokenizer):
        raw = path.read_bytes()
        path.write_bytes(raw[:-1])
        refused(one, f"{path.name}: {len(raw) - 1} bytes, expected {len(raw)}")
        for place in (3, 40, len(raw) // 2, len(raw) - 1):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
            refused(one, f"{path.name}: sha256 ")
        path.unlink()
        refused(one, f"{path.name}: no such file")
        os.mkfifo(path)
        refused(one, f"{path.name}: no such file")
        path.unlink()
        path.write_bytes(raw)
    assert read_export(one).manifest.step == 8


def test_any_flipped_bit_of_the_settings_is_found(one):
    path = one / "config.json"
    raw = path.read_bytes()
    generator = random.Random(0)
    for _ in range(MUTANTS):
        place, bit = generator.randrange(len(raw)), 1 << generator.randrange(8)
        path.write_bytes(raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :])
        if {raw[place], path.read_bytes()[place]} <= set(b" \t\r\n"):
            assert (
                read_export(one).manifest.step == 8
            )  # White space between the members is the same to JSON.
        else:
            refused(one, "config.json")
    path.write_bytes(raw[: len(raw) // 2])
    refused(one, "config.json: no JSON")
    path.write_bytes(b"[" * 100_000)
    refused(one, "config.json: no JSON")
    os.truncate(path, 2**26 + 1)
    refused(one, "config.json: 67108865 bytes, expected at most 67108864")


def test_a_config_that_does_not_fit_its_tensors(one):
    raw = (one / "config.json").read_text()
    cases = {
        "is of shape": lambda v: v["config"]["model"]["decoder"].update(mlp_ratio=4.0),
        "lacks tensor .*bias": lambda v: v["config"]["model"]["decoder"].update(
            mlp="gelu", kind="mixer"
        ),
        "has, beside those of the model, tensor": lambda v: v["config"]["stages"][
            "combined"
        ].update(memory=False),
        "weights are bfloat16": lambda v: v.update(dtype="bfloat16"),
        "has 320 entries, and the model 300": lambda v: v["config"]["data"].update(vocab_size=300),
        "its config cannot be used .config.model.chunk_length": lambda v: v["config"][
            "model"
        ].update(chunk_length=7),
        "its config cannot be used .config.data.tokens_a_row is not a setting": lambda v: v[
            "config"
        ]["data"].update(tokens_a_row=7),
        "stage: 'absent', expected one of": lambda v: v.update(stage="absent"),
        "no step, expected it there": lambda v: v.pop("step") and None,
        "step: -1, expected a whole number": lambda v: v.update(step=-1),
        "format_version: 2, expected 1": lambda v: v.update(format_version=2),
        "dtype: 'int8', expected 'float32' or": lambda v: v.update(dtype="int8"),
        ": tokenizer [0-9a-f]{16}, expected 0{16}": lambda v: v.update(tokenizer="0" * 16),
        "and no tokenizer": lambda v: v.update(tokenizer=""),
    }
    for match, change in cases.items():
        (one / "config.json").write_text(raw)
        rewrite(one, change)
        refused(one, match)
    for config in (
        None,
        [],
        {"model": 1},
        {"stages": {"a": 1}},
        {"data": {"sequence_length": "x"}},
        {"curriculum": [1]},
    ):
        (one / "config.json").write_text(raw)
        rewrite(one, lambda value, config=config: value.update(config=config))
        refused(one, "its config cannot be|stage: 'combined', expected|config: .* an object")


def test_tensors_that_are_missing_too_many_or_of_another_shape(one):
    path, kept = one / "model.safetensors", dict(load_file(one / "model.safetensors"))
    name = "backbone/norm/scale"
    cases = {
        f"lacks tensor '{name}'; ": lambda t: t.pop(name) is None and None,
        "has, beside those of the model, tensor '../outside'": lambda t: t.update(
            {"../outside": np.zeros(2, np.float32)}
        ),
        f"'{name}' is of shape \\[17\\], and by the config it is \\[16\\]": lambda t: t.update(
            {name: np.zeros(17, np.float32)}
        ),
        f"'{name}' is F64, and weights are float32": lambda t: t.update({name: np.zeros(16)}),
    }
    for match, change in cases.items():
        save_file(kept, path)
        rewrite_weights(one, change)
        refused(one, match)
    path.write_bytes(b"\xff" * 8 + b"{}" * 50)
    digest = {"bytes": 108, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite(one, lambda value: value["files"].update({path.name: digest}))
    refused(one, "is no safetensors file")


def test_paths_that_lead_out_of_the_folder_are_not_opened(several, tmp_path):
    raw = (several / "config.json").read_text()
    outside = tmp_path / "outside.safetensors"
    save_file({"secret": np.zeros(2, np.float32)}, outside)
    for name in (
        "../outside.safetensors",
        str(outside),
        "data/model.safetensors",
        "model.pkl",
        "",
        "model.safetensors\x00",
    ):
        (several / "config.json").write_text(raw)
        rewrite(
            several,
            lambda value, name=name: value["files"].update(
                {name: {"bytes": 1, "sha256": "0" * 64}}
            ),
        )
        refused(several, "expected model.safetensors or|expected one beside it")
    # A link is the owner's own: caches of downloaded models are made of them.
    (several / "config.json").write_text(raw)
    weights = next(several.glob("*.safetensors"))
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    assert read_export(several).manifest.step == 8


def test_an_index_that_is_wrong(several):
    path = several / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    tensor, name = next(iter(index["weight_map"].items()))
    last = max(index["weight_map"].values())
    absent = {name: file for name, file in index["weight_map"].items() if name != tensor}
    for match, wrong in {
        f"tensor '{tensor}' in '../outside.safetensors', expected '{name}'": {
            tensor: "../outside.safetensors"
        },
        f"weight_map.{tensor}: \\[\\], expected text": {tensor: []},
        f"tensor '{tensor}' in '{last}', expected '{name}'": {tensor: last},
        f"tensor 'more' in '{name}', expected None": {"more": name},
    }.items():
        path.write_text(json.dumps({"weight_map": index["weight_map"] | wrong}))
        refused(several, match)
    for wrong, match in (
        ({"weight_map": absent}, "tensor .* in None, expected"),
        ({"weight_map": 1}, "weight_map: 1, expected an object"),
        ({}, "no weight_map, expected it there"),
    ):
        path.write_text(json.dumps(wrong))
        refused(several, match)
    path.unlink()
    refused(several, "index.json: no such file")


@pytest.mark.slow
def test_a_model_beyond_all_memory_is_refused_before_any_is_taken(one):
    raw = (one / "config.json").read_text()
    for change in (
        lambda v: v["config"]["data"].update(vocab_size=2**40),
        lambda v: v["config"]["data"].update(sequence_length=2**33),
        lambda v: v["config"]["data"].update(sequence_length=2**22),
        lambda v: v["config"]["data"].update(sequence_length=8 * 2**10),
        lambda v: v["config"]["model"]["decoder"].update(width=2**31, layers=2**31),
        lambda v: v["files"]["model.safetensors"].update(bytes=2**52),
    ):
        (one / "config.json").write_text(raw)
        rewrite(one, change)
        tracemalloc.start()
        began = time.monotonic()
        refused(one, "bytes, expected|of shape|cannot be|is the most that is read|chunks, where")
        assert time.monotonic() - began < 20
        assert tracemalloc.get_traced_memory()[1] < 2**26
        tracemalloc.stop()
