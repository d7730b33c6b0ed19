"""Buckets that refuse now and then, on a file system in memory: what is tried again, and the one
line where that does not help."""

import errno
import hashlib
import importlib.util
import json
from collections.abc import Iterator

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from memjax.checkpoints.checksums import seal, verify
from memjax.checkpoints.reading import absolute
from memjax.errors import MemjaxError
from memjax.experiment.run import run_experiment
from memjax.files import (
    check_bucket,
    explain,
    is_remote,
    listing,
    on_this_machine,
    paths,
    read_json,
    read_object,
    sha256,
    write_object,
)
from memjax.testing import tiny_config
from memjax.training.status import Status, read_status


class RefusedError(Exception):
    """As of packages that read buckets, which have classes of their own."""


class Bucket(MemoryFileSystem):
    """Refuses the first of `refusals` openings of each object and listings of each folder."""

    protocol = ("gs", "gcs")
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    refusals = 0
    refused: dict = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("gs://", "memory://"))

    def refuse(self, *what):
        count = self.refused.get(what, 0)
        if count < self.refusals:
            self.refused[what] = count + 1
            raise RefusedError("503 Service Unavailable\nmore lines")

    def _open(self, path, mode="rb", **kwargs):
        self.refuse(path, mode)
        return super()._open(path, mode, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self.refuse(path, "list")
        return super().ls(path, detail, **kwargs)


@pytest.fixture
def bucket(monkeypatch) -> Iterator[type[Bucket]]:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "gcsfs" else find(name)
    )
    monkeypatch.setattr(paths, "PATIENCE", (0.0, 0.0, 0.0))
    for name, value in {"store": {}, "pseudo_dirs": [""], "refused": {}, "refusals": 0}.items():
        monkeypatch.setattr(Bucket, name, value)
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Bucket
    fsspec.register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_paths_in_buckets_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_remote("gs://bucket/run") and not is_remote(tmp_path)
    for path, here in (
        ("gs://bucket/run", "bucket/run"),
        ("runs/a", "runs/a"),
        ("~/runs", f"{tmp_path}/runs"),
    ):
        assert str(on_this_machine(path)) == here


@pytest.mark.parametrize("refusals", [0, 3])
def test_what_a_bucket_refuses_is_tried_again(bucket, refusals):
    bucket.refusals = refusals
    write_object("gs://bucket/a.json", b'{"a": 1}')
    assert read_object("gs://bucket/a.json") == b'{"a": 1}'
    assert read_json("gs://bucket/a.json", MemjaxError) == {"a": 1}
    assert sha256(absolute("gs://bucket/a.json")) == hashlib.sha256(b'{"a": 1}').hexdigest()
    check_bucket("gs://bucket/run")
    assert sorted(bucket.store) == ["/bucket/a.json"], "the probe is gone"
    assert set(bucket.refused.values()) <= {refusals}


def test_a_bucket_that_always_refuses_is_one_line(bucket):
    write_object("gs://bucket/a.json", b"{}")
    bucket.refusals = 4
    line = (
        "gs://bucket/a.json: 503 Service Unavailable, expected a bucket that answers. Check the"
        " connection and run the same command again"
    )
    for call in (
        lambda: read_object("gs://bucket/a.json"),
        lambda: write_object("gs://bucket/a.json", b""),
        lambda: sha256(absolute("gs://bucket/a.json")),
    ):
        bucket.refused.clear()
        with pytest.raises(OSError, match="503 Service Unavailable") as caught:
            call()
        assert caught.value.errno == errno.ETIMEDOUT and explain(caught.value) == line
    bucket.refused.clear()
    with pytest.raises(MemjaxError, match=r"^gs://bucket/a\.json: cannot be read \(503 Service"):
        read_json("gs://bucket/a.json", MemjaxError)
    assert bucket.store["/bucket/a.json"].getvalue() == b"{}", "nothing is changed"


def test_what_is_absent_is_not_tried_again(bucket, monkeypatch):
    monkeypatch.setattr(paths, "PATIENCE", (1e9,))
    with pytest.raises(FileNotFoundError):
        read_object("gs://bucket/nothing")
    with pytest.raises(MemjaxError, match="gs://bucket/nothing: no such file, expected JSON"):
        read_json("gs://bucket/nothing", MemjaxError)


def test_a_disk_that_refuses_is_no_bucket(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_object(tmp_path, b"")
    calls = []
    with pytest.raises(OSError, match="full"):
        paths.retried(tmp_path, lambda: calls.append(1) or full())
    assert len(calls) == 1


def full():
    raise OSError(errno.ENOSPC, "full")


def test_checksums_and_the_status_of_a_run_survive_refusals(bucket):
    bucket.refusals = 2
    step = absolute("gs://bucket/run/7")
    write_object(step / "params" / "a", b"abc")
    seal(step)
    assert json.loads(read_object(step / "checksums.json"))["sha256"].keys() == {"params/a"}
    verify(step)
    assert {path.name for path in listing(step)} == {"params", "checksums.json"}
    assert listing(step / "nothing") == []
    said = []
    with Status(absolute("gs://bucket/run"), said.append):
        pass
    (session,) = read_status("gs://bucket/run")
    assert session.state == "finished" and not said


def test_a_run_does_not_begin_in_a_bucket_that_refuses(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bucket.refusals = 4
    with pytest.raises(OSError, match="503 Service Unavailable"):
        run_experiment(tiny_config("corpus.txt"), "gs://bucket/run")
    assert not list(tmp_path.iterdir()) and not bucket.store
