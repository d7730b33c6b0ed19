"""What a checkpoint tells without its arrays, and where the devices that wrote it are not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.inspect import changed, flat, inspect_checkpoint
from memjax.config import Config, Stage, to_json
from memjax.testing import tiny_config

WRITE = """
import sys
import jax, jax.numpy as jnp, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from memjax.checkpoints import Checkpoints
from memjax.config import to_json
from memjax.testing import tiny_config

mesh = jax.make_mesh((1, 8, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
def put(x, *axes):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
embedding = jax.random.normal(jax.random.key(5), (64, 48))
kernel = jnp.arange(2.0 * 16 * 32).reshape(2, 16, 32)
params = {
    "encoder": {"embed": {"embedding": put(embedding, "tensor", "fsdp")}},
    "backbone": {"blocks": {"mix": {"kernel": put(kernel, None, ("data", "fsdp"))}}},
    "head": {"kernel": put(jnp.arange(24.0).reshape(8, 3).astype(jnp.bfloat16))},
}
trainable = {name: params[name] for name in ("backbone", "head")}
config = tiny_config("corpus.jsonl", steps=20, checkpoint_best="copy/accuracy")
for stage in ("autoencoder", "combined", "no_memory"):
    with Checkpoints(f"{sys.argv[1]}/stages/{stage}/checkpoints") as checkpoints:
        for step in (10, 20):
            meta = {
                "stage": stage, "config": to_json(config), "tokenizer": "0123456789abcdef",
                "next_row": 8 * step, "seconds": 12.5,
                "metrics": {"copy/accuracy": 0.5} if step == 10 else {},
            }
            state = optax.adamw(1e-3).init(trainable)
            optimizer = {"opt_state": state, "step": put(jnp.int32(step))}
            checkpoints.save(step, params, optimizer, meta)
"""
COUNTS = {
    "encoder/embed/embedding": 64 * 48,
    "backbone/blocks/mix/kernel": 2 * 16 * 32,
    "head/kernel": 24,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir of two stages and a control that eight devices wrote, every large array split over
    them."""
    workdir = tmp_path_factory.mktemp("run")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(workdir)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert jax.device_count() == 1, "what follows is on another machine"
    return workdir


@pytest.mark.slow
def test_everything_is_told_without_the_mesh_that_wrote_it(run: Path) -> None:
    contents = inspect_checkpoint(run)
    assert contents.path == run / "stages" / "combined" / "checkpoints" / "20"
    told = contents.to_json()
    assert json.loads(json.dumps(told)) == told | {
        "parameters": json.loads(json.dumps(told["parameters"])),
        "optimizer": json.loads(json.dumps(told["optimizer"])),
    }
    said = ("step", "stage", "family", "format_version", "tokenizer", "seconds", "next_row")
    assert [told[key] for key in said] == [
        20,
        "combined",
        "memory_model",
        1,
        "0123456789abcdef",
        12.5,
        160,
    ]
    assert told["objectives"] == {"next_token": 1.0, "copy": 1.0} and told["metrics"] == {}
    assert told["steps"] == [10, 20] and told["stages"] == {
        name: [10, 20] for name in ("autoencoder", "combined", "no_memory")
    }
    assert told["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    arrays = {array["path"]: array for array in told["parameters"]["arrays"]}
    assert {path: np.prod(array["shape"]) for path, array in arrays.items()} == COUNTS
    assert arrays["encoder/embed/embedding"] == {
        "path": "encoder/embed/embedding",
        "shape": (64, 48),
        "dtype": "float32",
        "bytes": 64 * 48 * 4,
        "sharding": ("tensor", "fsdp"),
        "trainable": False,
    }
    kernel, head = arrays["backbone/blocks/mix/kernel"], arrays["head/kernel"]
    assert kernel["trainable"] and json.loads(json.dumps(kernel["sharding"])) == [
        None,
        ["data", "fsdp"],
    ]
    assert head["dtype"] == "bfloat16" and head["bytes"] == 24 * 2 and head["sharding"] == ()


def test_totals_are_of_what_moves_and_what_does_not(run: Path) -> None:
    told = inspect_checkpoint(run).to_json()
    embedding, kernel, head = COUNTS.values()
    sums = {kind: told["parameters"][kind] for kind in ("count", "bytes", "trainable", "frozen")}
    assert sums == {
        "count": embedding + kernel + head,
        "bytes": 4 * (embedding + kernel) + 2 * head,
        "trainable": {"count": kernel + head, "bytes": 4 * kernel + 2 * head},
        "frozen": {"count": embedding, "bytes": 4 * embedding},
    }
    # Two moments of what is trained, AdamW's count, and the step.
    assert told["optimizer"]["count"] == 2 * (kernel + head) + 2
    assert told["optimizer"]["bytes"] == 2 * (4 * kernel + 2 * head) + 8
    paths = {array["path"] for array in told["optimizer"]["arrays"]}
    assert {
        "step",
        "opt_state/0/count",
        "opt_state/0/mu/head/kernel",
        "opt_state/0/nu/backbone/blocks/mix/kernel",
    } <= paths
    autoencoder = inspect_checkpoint(run / "stages" / "autoencoder").to_json()
    assert autoencoder["family"] == "autoencoder" and autoencoder["parameters"]["frozen"] == {
        "count": 0,
        "bytes": 0,
    }


def test_every_folder_on_the_way_leads_to_a_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run / "stages" / "autoencoder" / "checkpoints"
    monkeypatch.chdir(run.parent)
    for path in (folder.parent, folder, folder / "20", Path(run.name) / "stages" / "autoencoder"):
        assert inspect_checkpoint(path).path == folder / "20"
        assert not inspect_checkpoint(path).stages, "the run was not asked about"
    assert inspect_checkpoint(folder / "10").meta["metrics"] == {"copy/accuracy": 0.5}


def test_parameters_come_back_on_one_device_the_best_ones_too(run: Path) -> None:
    params, meta = load_params(run / "stages" / "combined" / "checkpoints")
    assert meta["step"] == 20
    np.testing.assert_array_equal(
        params["encoder"]["embed"]["embedding"], jax.random.normal(jax.random.key(5), (64, 48))
    )
    np.testing.assert_array_equal(
        params["backbone"]["blocks"]["mix"]["kernel"], np.arange(1024.0).reshape(2, 16, 32)
    )
    assert params["head"]["kernel"].dtype == jnp.bfloat16
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(params))
    assert load_params(run / "stages" / "combined" / "checkpoints", "best")[1]["step"] == 10


def test_a_run_that_stopped_in_an_early_stage_tells_of_that_one(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stages" / "combined")
    assert inspect_checkpoint(tmp_path / "run").meta["stage"] == "autoencoder", (
        "the control comes after it, and is no part of it"
    )
    shutil.rmtree(tmp_path / "run" / "stages" / "autoencoder")
    contents = inspect_checkpoint(tmp_path / "run")
    assert contents.meta["stage"] == "no_memory" and contents.stages == {"no_memory": [10, 20]}


@pytest.mark.slow
def test_no_array_is_read(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "stages" / "combined", tmp_path / "combined")
    whole = inspect_checkpoint(tmp_path / "combined").to_json()
    checkpoint = tmp_path / "combined" / "checkpoints" / "20"
    files = list((checkpoint / "params" / "ocdbt.process_0" / "d").iterdir())
    sizes = [path.stat().st_size for path in files]
    assert sum(sizes) > 64 * 48 * 3, "random numbers, which hardly compress"
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_params(tmp_path / "combined" / "checkpoints")
    assert inspect_checkpoint(tmp_path / "combined").to_json() == whole


def rewrite_meta(path: Path, **changes: object) -> None:
    file = path / "meta" / "metadata"
    meta = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))


WRONG = {
    "a folder that is not there": (
        lambda path: shutil.rmtree(path.parents[1]),
        "no finished checkpoint here; give a workdir of",
    ),
    "no step": (
        lambda path: [shutil.rmtree(path), shutil.rmtree(path.parent / "10")],
        "combined: no finished checkpoint here",
    ),
    "meta that is no JSON": (
        lambda path: (path / "meta" / "metadata").write_text("{"),
        r"20: the checkpoint cannot be read \(",
    ),
    "no description of arrays": (
        lambda path: (path / "params" / "_METADATA").unlink(),
        "20: the metadata of its arrays cannot be read",
    ),
    "another format": (
        lambda path: rewrite_meta(path, format_version=7),
        "20: checkpoint of format 7, while this memjax reads format 1",
    ),
    "no word of the stage": (
        lambda path: rewrite_meta(path, stage=None, seconds=None),
        "20: metadata without stage, seconds, expected",
    ),
}


@pytest.mark.quick_cases(
    "a folder that is not there",
    "no step",
    "another format",
    "no word of the stage",
)
@pytest.mark.parametrize(("harm", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_told_is_said(run: Path, tmp_path: Path, harm, message: str) -> None:
    shutil.copytree(run / "stages" / "combined", tmp_path / "combined")
    harm(tmp_path / "combined" / "checkpoints" / "20")
    with pytest.raises(CheckpointError, match=message) as caught:
        inspect_checkpoint(tmp_path / "combined")
    assert str(tmp_path) in str(caught.value)


def test_settings_that_are_not_the_defaults_are_told_by_their_keys() -> None:
    assert changed(json.loads(to_json(Config()))) == {}
    assert changed(json.loads(to_json(Config(stages={"any": Stage()})))) == {}
    config = json.loads(to_json(tiny_config("corpus.jsonl", seed=3)))
    told = changed(config)
    assert told["seed"] == 3 and told["model.decoder.width"] == 16
    assert told["stages.combined.trainable"] == [["^encoder/", False], [".*", True]]
    assert told["stages.autoencoder.objectives"] == {"reconstruction": 1.0}
    assert "stages.combined.family" not in told and "model.layout" not in told
    assert changed(config | {"from_later": 1})["from_later"] == 1, (
        "a setting this version does not know is told too"
    )
    assert set(told) < set(flat(config)) and flat(config)["model.layout"] == "fixed"
