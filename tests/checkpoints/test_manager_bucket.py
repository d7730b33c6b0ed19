"""Checkpoints in a bucket: paths as they are, and, where `gcsfs` and `gcp-storage-emulator` are
installed, a bucket on this machine."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from memjax.checkpoints import CheckpointError, Checkpoints, load_params
from memjax.checkpoints.inspect import inspect_checkpoint
from memjax.checkpoints.reading import absolute
from memjax.config import Config, to_json
from memjax.experiment.run import run_experiment
from memjax.inference import load
from memjax.testing import tiny_config

PARAMS = {"encoder": {"kernel": jnp.arange(600.0).reshape(20, 30)}, "head": {"bias": jnp.ones(7)}}
OPTIMIZER = {"step": jnp.int32(0)}


def test_a_path_in_a_bucket_stays_what_it_is_and_others_become_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.chdir(tmp_path)
    for folder in ("gs://bucket/run", "gs://bucket/run/", epath.Path("gs://bucket/run")):
        assert (
            str(absolute(folder) / "stages" / "copy" / "checkpoints")
            == "gs://bucket/run/stages/copy/checkpoints"
        )
    assert str(absolute("gs://bucket/run").parent) == "gs://bucket"
    assert (
        str(absolute("run/stages"))
        == str(absolute(Path("run/stages")))
        == str(tmp_path / "run" / "stages")
    )
    assert str(absolute("/runs/one")) == "/runs/one"


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("gs", "buckets are read and written by the package gcsfs; pip install gcsfs$"),
        ("s3", "buckets are read and written by the package s3fs; pip install s3fs$"),
        ("az", "buckets are read and written by the package adlfs; pip install adlfs$"),
        ("ftp", "expected a folder on this machine, or gs://BUCKET/FOLDER$"),
    ],
)
def test_without_what_reads_buckets_the_package_is_named(
    scheme: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)

    def train(workdir: str) -> None:
        run_experiment(Config(), workdir)

    for read in (Checkpoints, load_params, inspect_checkpoint, load, train):
        with pytest.raises(CheckpointError, match=f"^{scheme}://bucket/run: {message}"):
            read(f"{scheme}://bucket/run")
    assert list(tmp_path.iterdir()) == [], "nothing is made"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket, behind the HTTP interface of Google Cloud Storage."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = f"http://localhost:{port}"
    start = [
        "-m",
        "gcp_storage_emulator",
        "start",
        "--host=localhost",
        f"--port={port}",
        "--in-memory",
        "--default-bucket=bucket",
    ]
    server = subprocess.Popen(
        [sys.executable, *start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", place)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", place)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "memjax")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            _wait_for(f"{place}/storage/v1/b/bucket")
            yield "gs://bucket"
        finally:
            server.terminate()
            server.wait()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} never answered")


def save(folder: str, *steps: int) -> list[int]:
    meta = {
        "stage": "combined",
        "config": to_json(tiny_config("", checkpoint_best="copy/nats")),
        "tokenizer": "",
    }
    with Checkpoints(folder, keep=1, best="copy/nats") as checkpoints:
        for step in steps:
            params = jax.tree.map(lambda x, s=step: x + s, PARAMS)
            said = meta | {
                "next_row": 8 * step,
                "seconds": 1.0,
                "metrics": {"copy/nats": abs(step - 4.0)},
            }
            checkpoints.save(step, params, OPTIMIZER | {"step": jnp.int32(step)}, said)
            checkpoints.wait()
        return checkpoints.steps()


def restore(folder: str) -> tuple[int, list[str]]:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), t)
        for t in (PARAMS, OPTIMIZER)
    ]
    said: list[str] = []
    with Checkpoints(folder, keep=2, report=said.append) as checkpoints:
        found = checkpoints.restore_latest(*wanted)
    assert found is not None
    step, params, optimizer, _ = found
    assert int(optimizer["step"]) == step
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + step), params, PARAMS)
    return step, said


def test_saved_kept_read_and_told_of_as_on_disk(bucket: str) -> None:
    folder = f"{bucket}/run/stages/combined/checkpoints"
    assert save(folder, 2, 4, 6) == [4, 6], "the best and the latest"
    assert sorted(path.name for path in epath.Path(folder).iterdir()) == ["4", "6"]
    for step, found in (("best", 4), (None, 6), (4, 4)):
        params, meta = load_params(folder, step)
        assert meta["step"] == found
        jax.tree.map(lambda a, b, s=found: np.testing.assert_array_equal(a, b + s), params, PARAMS)
    assert restore(folder) == (6, [])
    told = inspect_checkpoint(f"{bucket}/run").to_json()
    assert (
        told["path"] == f"{folder}/6"
        and told["stages"] == {"combined": [4, 6]}
        and told["parameters"]["count"] == 607
    )
    assert json.loads(json.dumps(told["config"]))["checkpoint_best"] == "copy/nats"


def test_a_save_that_was_cut_short_has_no_mark_and_is_removed(bucket: str) -> None:
    folder = f"{bucket}/cut/checkpoints"
    save(folder, 4, 6)
    (epath.Path(folder) / "6" / "commit_success.txt").unlink()
    assert load_params(folder)[1]["step"] == 4
    step, said = restore(folder)
    assert step == 4 and said == [
        f"{folder}: the save of step 6 was cut short; removed, the one before it counts"
    ]
    assert sorted(path.name for path in epath.Path(folder).iterdir()) == ["4"]


# The emulator knows no renaming, which is tried for half a minute before objects are copied.
@pytest.mark.slow
def test_a_damaged_one_is_kept_aside(bucket: str) -> None:
    folder = f"{bucket}/damaged/checkpoints"
    save(folder, 4, 6)
    (epath.Path(folder) / "6" / "params" / "manifest.ocdbt").unlink()
    step, said = restore(folder)
    assert step == 4 and len(said) == 1 and "kept as damaged-6, resuming from step 4" in said[0]
    assert (epath.Path(folder) / "damaged-6" / "meta" / "metadata").exists()
