"""Files and folders appear whole or not at all, and manifests name what is damaged."""

import errno
import fcntl
import hashlib
import os
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memjax import errors
from memjax.errors import MemjaxError
from memjax.files import (
    atomic,
    atomic_dir,
    atomic_file,
    check_writable,
    entries,
    explain,
    locked,
    new_folder,
    read_json,
    read_manifest,
    regular,
    resumable_dir,
    sealed,
    sha256,
    verify,
    write_json,
    write_text,
    writing,
)

REMEDY = "Write it again"


def kill_half_way(atomic, name):
    with atomic as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise KeyboardInterrupt


def make_empty(atomic):
    with atomic:
        pass


def test_a_new_folder_is_absent_or_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_folder("~/absent", MemjaxError) == tmp_path / "absent"
    (tmp_path / "a").mkdir()
    assert new_folder("~/a", MemjaxError) == tmp_path / "a"
    (tmp_path / "a" / "file").touch()
    for taken in ("~/a", "~/a/file"):
        with pytest.raises(MemjaxError, match=f"{taken}: is there already, expected a new or"):
            new_folder(taken, MemjaxError)
    with pytest.raises(OSError, match="an address"):
        new_folder("gs://bucket/a", MemjaxError)


def test_the_checksum_is_that_of_the_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"memory" * 1000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"memory" * 1000).hexdigest()


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, sync):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        kill_half_way(atomic_file(path, sync), "")
    assert path.read_text() == "old"
    with atomic_file(path, sync) as temporary:
        write_text(temporary, "ü")
    assert path.read_bytes() == "ü".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path, sync):
    path = tmp_path / "above" / "folder"
    with pytest.raises(KeyboardInterrupt):
        kill_half_way(atomic_dir(path, sync), "a")
    assert list(path.parent.iterdir()) == []
    path.mkdir()
    with atomic_dir(path, sync) as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "a").write_text("whole")
    assert (path / "below" / "a").read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match="not empty"):
        make_empty(atomic_dir(path, sync))
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    path = tmp_path / "a.json"
    write_json(path, {"format": 2, "files": entries([tmp_path / "a.bin"])})
    return path


def test_a_manifest_lists_sizes_and_checksums(manifest):
    info = read_manifest(manifest, (1, 2), REMEDY, DamagedError)
    digest = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    assert info == {"format": 2, "files": {"a.bin": {"bytes": 10, "sha256": digest}}}
    verify(manifest.parent, info["files"], REMEDY, DamagedError)


class DamagedError(MemjaxError):
    """What a caller raises."""


DAMAGE = {
    "cut": (lambda m: (m.parent / "a.bin").write_bytes(b"01234"), r"a\.bin: 5 bytes, expected 10"),
    "absent": (
        lambda m: (m.parent / "a.bin").unlink(),
        r"a\.bin: no such file, expected 10 bytes",
    ),
    "no manifest": (lambda m: m.unlink(), r"a\.json: no such file, expected JSON"),
    "half": (lambda m: m.write_text('{"files": '), r"a\.json: no JSON \(Expecting value"),
    "a list": (lambda m: m.write_text("[]"), r"a\.json: \[\], expected an object"),
    "no files": (lambda m: m.write_text('{"format": 2}'), r"a\.json: no files, expected it there"),
    "later": (
        lambda m: m.write_text('{"format": 3, "files": {}}'),
        r"a\.json: format: 3, expected 1 or 2",
    ),
    "outside": (
        lambda m: write_json(m, {"format": 2, "files": {"a/../b": {"bytes": 1, "sha256": ""}}}),
        r"a\.json: file 'a/\.\./b', expected one beside it",
    ),
    "a number changed": (
        lambda m: write_json(m, sealed({"format": 1, "files": {}}) | {"format": 2}),
        r"a\.json: not what was written \(its sha256 differs\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_remedy(manifest, damage):
    harm, message = DAMAGE[damage]
    harm(manifest)
    with pytest.raises(DamagedError, match=rf"{message}.*\. {REMEDY}"):
        read_manifest(manifest, (1, 2), REMEDY, DamagedError)


def test_a_flipped_byte_fails_the_checksum(manifest):
    files = read_manifest(manifest, (2,), REMEDY, DamagedError)["files"]
    (manifest.parent / "a.bin").write_bytes(b"0123456780")
    with pytest.raises(
        DamagedError, match=r"a\.bin: sha256 [0-9a-f]{16}, expected 84d89877f0d4041e"
    ):
        verify(manifest.parent, files, REMEDY, DamagedError)


SHAPE = {
    "name": str,
    "of": {str: {"rows": int, "weights?": [float], "kind?": ("a", "b")}},
    "any?": object,
}
DEEP = 2_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no JSON (Expecting value"),
        (b"\xff{}", "no JSON ('utf-8' codec can't decode"),
        (b"[" * 100_000, "no JSON (nested more than 64 levels deep)"),
        (b'{"any":' + b"[" * DEEP + b"]" * DEEP + b"}", "nested more than 64 levels deep"),
        (b'{"a": 1, "a": 2}', "a key stands twice in one object"),
        (b'{"name": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\ud800": 1}', "surrogates not allowed"),
        (b"3", "3, expected an object"),
        (b"{}", "no name, expected it there"),
        (b'{"name": ["x"]}', "name: ['x'], expected text"),
        (b'{"name": "' + b"x" * 9000 + b'", "of": 3}', "of: 3, expected an object"),
        (b'{"name": "", "of": {"p": []}}', "of.p: [], expected an object"),
        (b'{"name": "", "of": {"p": {}}}', "of.p: no rows, expected it there"),
        (b'{"name": "", "of": {"p": {"rows": true}}}', "of.p.rows: True, expected a whole number"),
        (b'{"name": "", "of": {"p": {"rows": -1}}}', "of.p.rows: -1, expected a whole number"),
        (b'{"name": "", "of": {"p": {"rows": 1.5}}}', "of.p.rows: 1.5, expected a whole number"),
        (
            b'{"name": "", "of": {"p": {"rows": ' + b"9" * 5000 + b"}}}",
            "of.p.rows: inf, expected a whole number from 0 to 9007199254740992",
        ),
        (
            b'{"name": "", "of": {"p": {"rows": 1, "weights": [1, NaN]}}}',
            "of.p.weights.1: nan, expected a finite number",
        ),
        (
            b'{"name": "", "of": {"p": {"rows": 1, "kind": "c"}}}',
            "of.p.kind: 'c', expected 'a' or 'b'",
        ),
    ],
)
def test_json_of_another_shape_is_named_by_file_and_key(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(DamagedError) as caught:
        read_json(path, DamagedError, SHAPE, REMEDY)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and message in said and said.endswith(f". {REMEDY}")
    assert len(said) < 400 and said.isprintable()


def test_json_of_the_shape_is_returned(tmp_path):
    value = {
        "name": "é",
        "of": {"p": {"rows": 2**53, "weights": [1, 0.5]}},
        "any": {"more": [None]},
    }
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", DamagedError, SHAPE) == value
    (tmp_path / "a.json").write_text('{"large": 1000000000000000019884624838656, "n": -7}')
    assert read_json(tmp_path / "a.json", DamagedError) == {"large": 1e30, "n": -7}


def test_what_is_no_file_or_too_large_is_not_opened(tmp_path):
    pipe, large, link = tmp_path / "pipe", tmp_path / "large", tmp_path / "link"
    os.mkfifo(pipe)
    large.touch()
    os.truncate(large, 2**40)
    link.symlink_to("/dev/zero")
    for path, message in (
        (pipe, "cannot be read (a folder, pipe, device or socket"),
        (link, "cannot be read (a folder, pipe, device or socket"),
        (tmp_path, "cannot be read (a folder, pipe, device or socket"),
        (large, "1099511627776 bytes, expected at most 67108864"),
        (tmp_path / "absent", "no such file, expected JSON"),
    ):
        with pytest.raises(DamagedError, match=re.escape(f"{path}: {message}")):
            read_json(path, DamagedError)


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    path, events = tmp_path / ".lock", []

    def second():
        with locked(path, lambda: events.append("busy")):
            events.append("second")

    with locked(path, lambda: events.append("never")):
        other = threading.Thread(target=second)
        other.start()
        while not events:
            time.sleep(0.01)
        events.append("first")
    other.join(20)
    assert events == ["busy", "first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_resumed_kept_or_removed(tmp_path):
    path, partial = tmp_path / "rows", tmp_path / ".rows.partial"

    def fail(keep):
        with resumable_dir(path, lambda folder: keep, print) as folder:
            (folder / "a").write_text("half of it")
            (folder / ".b.tmp").write_text("less")
            raise KeyboardInterrupt

    for keep in (True, False):
        with pytest.raises(KeyboardInterrupt):
            fail(keep)
        assert [file.name for file in tmp_path.rglob("*")] == [".rows.partial", "a"] * keep
    partial.mkdir()
    (partial / "c").write_text("from a killed process")
    with resumable_dir(path, lambda folder: False, print) as folder:
        assert folder == partial and (folder / "c").exists()
    assert [file.name for file in tmp_path.rglob("*")] == ["rows", "c"]
    with resumable_dir(path, lambda folder: False, print) as folder:
        assert folder is None


def test_only_files_are_opened(put_no_file, tmp_path):
    path = put_no_file(tmp_path / "a.bin")
    for read in (regular, sha256):
        with pytest.raises(OSError, match=r"a folder, pipe, device or socket, not a file.*a\.bin"):
            read(path)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "absent")
    write_text(tmp_path / "file", "text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert regular(str(tmp_path / "link")).read_text() == "text"


def test_the_file_that_a_link_leads_to_is_replaced_whole(tmp_path):
    target, link = tmp_path / "below" / "target", tmp_path / "link"
    (tmp_path / "other").symlink_to("below/target")
    link.symlink_to("other")
    write_text(link, "absent before")
    with pytest.raises(KeyboardInterrupt):
        kill_half_way(atomic_file(link), "")
    assert target.read_text() == "absent before"
    with target.open() as held:
        write_text(link, "new")
        assert (held.read(), target.read_text()) == ("absent before", "new")
    assert link.is_symlink() and list(target.parent.iterdir()) == [target]


def test_links_in_a_circle_are_named(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=f"{tmp_path}/a") as caught:
        write_text(tmp_path / "a", "")
    assert caught.value.errno == errno.ELOOP


WRITE = "import sys; from memjax.files import write_text; write_text(sys.argv[1], 'text')"


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_is_written_in_place(tmp_path, name):
    (tmp_path / "link").symlink_to("/dev/stdout")
    out = tmp_path / "out"
    with out.open("w") as stream:
        inode = os.fstat(stream.fileno()).st_ino
        command = [sys.executable, "-c", WRITE, os.path.join(tmp_path, name)]
        subprocess.run(command, stdout=stream, check=True)
    assert out.read_text() == "text" and out.stat().st_ino == inode
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"text"


def test_devices_and_pipes_are_written_in_place(tmp_path):
    write_text("/dev/null", "text")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)
    # Without a reader, opening it would wait for ever.
    with pytest.raises(OSError, match="pipe") as caught:
        write_text(pipe, "text")
    assert explain(caught.value) == (
        f"{pipe}: No such device or address, expected a file, or a pipe that is read. Remove it or"
        " use another path"
    )


def test_what_cannot_be_written_is_known_before(tmp_path):
    """Nothing stays behind, and devices are not tried."""
    (tmp_path / "file").touch()
    for path in ("new.json", "a/b/new.json", "file"):
        check_writable(tmp_path / path)
    check_writable("/dev/stdout")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path, kind in (("file/new.json", NotADirectoryError), (".", IsADirectoryError)):
        with pytest.raises(kind) as caught:
            check_writable(tmp_path / path)
        assert caught.value.filename == str(tmp_path / path)


@pytest.mark.parametrize(
    "path",
    ["gs://b/x.json", "s3://b/x", "file:///tmp/x", "memory://x/y", "hf://x/y", Path("gs:/b/x")],
)
def test_an_address_is_no_path_to_write(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for write in (lambda: write_text(path, "text"), lambda: check_writable(path)):
        with pytest.raises(OSError, match="expected a path on this machine") as caught:
            write()
        expected = (
            f"{path}: an address, expected a path on this machine. Write it there and copy it"
        )
        assert explain(caught.value) == expected
    assert list(tmp_path.iterdir()) == []
    write_text("./gs:/b", "a folder of that name")
    write_text("c:", "a file")


def test_a_tilde_is_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_text("~/a/b", "text")
    check_writable("~/new")
    assert (tmp_path / "a" / "b").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_long_name_is_written(tmp_path):
    path = tmp_path / ("ü" * 127)
    write_text(path, "text")
    assert path.read_text() == "text"


REFUSED = {
    errno.ENOSPC: "No space left on device, expected room for it. Free space",
    errno.EDQUOT: "expected room for it. Free space",
    errno.EFBIG: "File too large, expected room for it. Free space",
    errno.EIO: "Input/output error, expected a disk that works. Check it",
    errno.EROFS: "Read-only file system, expected one that can be written. Use another path",
    errno.EACCES: "Permission denied, expected access to it. Change its permissions or use another",
    errno.EPERM: "expected access to it. Change its permissions or use another path",
    errno.ESTALE: "expected a disk that works. Check it and run the same command again",
}


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("library", [False, True])
def test_what_the_disk_refuses_is_one_line_that_names_the_file(tmp_path, number, library):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        if library:
            raise RuntimeError(f"write failed: {os.strerror(number)}; at byte 7 [os error]")
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=str(path)) as caught, atomic_file(path) as temporary:
        write(temporary)
    said = explain(caught.value)
    assert said.startswith(f"{path}: {os.strerror(number)}, ") and REFUSED[number] in said
    assert "\n" not in said and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_met_by_every_writer(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # Python ignores the signal.
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/a'"):
            write_text(tmp_path / "a", "x" * 10_000)
        with (
            pytest.raises(OSError, match=f"File too large: '{tmp_path}/b'"),
            atomic_dir(tmp_path / "b") as folder,
        ):
            (folder / "c").write_text("x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (
        MemjaxError("a: nothing there, expected another"),
        KeyError("name"),
        OSError("a sentence"),
        FileNotFoundError(2, "No such file", "there"),
    ):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error and str(tmp_path) not in str(error)
    assert explain(OSError("a sentence")) == "a sentence"
    assert explain(FileNotFoundError(2, "No such file", "there")) == "there: No such file"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_work_goes_on_with_one_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    atomic._warn_unlocked.cache_clear()
    tmp_path /= "run\x1b[2J\u202eé"
    path = tmp_path / ".lock"
    tmp_path.mkdir()
    path.touch()  # A killed process left it.
    for _ in range(2):
        with locked(path, lambda: pytest.fail("it is in no use")):
            pass
    with resumable_dir(tmp_path / "rows", lambda folder: False, print) as folder:
        (folder / "a").write_text("")
    (said,) = caplog.messages
    shown = errors.message(str(tmp_path))
    assert said.startswith(f"{shown}: its file system has no locks, expected flock. Run one")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_another_error_of_a_lock_is_raised_with_its_file(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(OSError, match=f"'{tmp_path}/.lock'"),
        locked(tmp_path / ".lock", lambda: pytest.fail("it is in no use")),
    ):
        pass


def test_a_seal_changes_with_any_member():
    value = sealed({"a": 1, "b": [1.5, "x"]})
    assert sealed(value) == value == sealed({"b": [1.5, "x"], "a": 1})
    assert sealed(value | {"a": 2})["sha256"] != value["sha256"]
