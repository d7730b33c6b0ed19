"""Headers and whole stores that someone damaged, by chance or on purpose: one clear line, and no memory taken."""

import copy
import hashlib
import json
import random
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from memjax.store import MemoryStore, Origin, StoredDocument, StoreError, parse_header
from memjax.store.header import HEADER_LIMIT

ORIGIN = Origin(
    "autoencoder",
    "ae",
    7,
    {"encoder": {"width": 4, "mlp_ratio": 2.0, "kind": "mixer"}, "compat": []},
    "ab" * 32,
    "0" * 16,
    300,
    8,
    (2, 4),
)
MUTANTS = 10_000
HUGE = (2**31, 2**53, 2**63, 2**64, 10**18, 10**30, -1, 1e308, 0)
ODD = (
    None,
    True,
    "x",
    "../../etc/passwd",
    [],
    {},
    [[[[[[1]]]]]],
    1.5,
    float("nan"),
    float("inf"),
    "\x1b[2J",
    "\ud800",
    "日本",
    *HUGE,
)


def tiny(folder):
    store = MemoryStore.create(ORIGIN, "int8")
    generator = np.random.default_rng(0)
    for name, chunks in (("a.txt#0", 3), ("日本", 1)):
        spans = [[8 * i, 8, 16 * i, 16 * (i + 1)] for i in range(chunks)]
        memories = generator.normal(size=(chunks, 2, 4)).astype(np.float32)
        store.append(StoredDocument(name, 8 * chunks, 16 * chunks), memories, np.array(spans))
    store.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def header(tmp_path):
    return json.loads(tiny(tmp_path / "s")["store.json"])


def places(value, path=()):
    """Paths of all members of JSON."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(part, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def test_every_field_is_checked(header):
    good = json.dumps(header).encode()
    assert parse_header(good, "h").chunks == 4
    # A step and words may be others; all else is bound to something.
    free = {("model", "family"), ("model", "stage")}
    for path in places(header):
        for odd in (None, -1, 2**64, "\x1b[2J", [[[[[[1]]]]]], {"a": {"b": {"c": {"d": 1}}}}, "x" * 300):
            changed = copy.deepcopy(header)
            at(changed, path[:-1])[path[-1]] = odd
            inside = path[:2] == ("model", "settings") and len(path) > 2
            if odd == -1 and inside:
                continue
            with pytest.raises(StoreError) as error:
                parse_header(json.dumps(changed).encode(), "h")
            assert str(error.value).isprintable() and len(str(error.value)) < 400, (path, odd)
        absent = copy.deepcopy(header)
        del at(absent, path[:-1])[path[-1]]
        if path[:2] != ("model", "settings") or len(path) == 2:
            with pytest.raises(StoreError, match=r"lacks|must be"):
                parse_header(json.dumps(absent).encode(), "h")
        changed = copy.deepcopy(header)
        at(changed, path[:-1])[path[-1]] = "word"
        if path not in free and "settings" not in path:
            with pytest.raises(StoreError):
                parse_header(json.dumps(changed).encode(), "h")
    for key in ("", "../x", "scales2.bin"):
        changed = copy.deepcopy(header)
        changed["files"][key] = changed["files"]["spans.bin"]
        with pytest.raises(StoreError, match="files has the unknown"):
            parse_header(json.dumps(changed).encode(), "h")


TEXTS = {
    "nothing": (b"", "does not describe a store"),
    "no JSON": (b"\x00" * 40, "does not describe a store"),
    "no UTF-8": (b"\xff\xfe", "does not describe a store"),
    "a list": (b"[]", "the header must be an object"),
    "a key twice": (b'{"format": 1, "format": 1}', "a key stands there twice"),
    "NaN": (b'{"format": NaN}', "NaN is no number"),
    "infinity": (b'{"format": -Infinity}', "-Infinity is no number"),
    "a float beyond all": (b'{"format": 1e999}', "a number that is too large"),
    "a number of many digits": (b'{"format": 1' + b"0" * 5000 + b"}", "a number of 5001 digits"),
    "layers": (b"[" * 60000, "nested too deeply"),
    "layers of objects": (b'{"a":' * 10000, "nested too deeply"),
    "a later format": (b'{"format": 2}', "a store of format 2, while this memjax reads format 1"),
    "true for one": (b'{"format": true}', "lacks chunk_length"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS.keys())
def test_what_is_no_header_is_one_line(text, message):
    with pytest.raises(StoreError, match=message) as error:
        parse_header(text, "h")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_long_header_is_not_read(tmp_path):
    tiny(tmp_path / "s")
    with open(tmp_path / "s" / "store.json", "wb") as stream:
        stream.truncate(2**34)  # 16 GiB, of which nothing is on disk.
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=f"holds {2**34} bytes, where {HEADER_LIMIT} are the most"):
            MemoryStore.load(tmp_path / "s")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(StoreError, match="at most"):
        parse_header(b" " * (HEADER_LIMIT + 1), "h")


def test_settings_that_could_not_be_read_again_are_not_written(tmp_path):
    tiny(tmp_path / "s")
    store = MemoryStore.load(tmp_path / "s")
    store.origin.settings["more"] = {str(i): 1 for i in range(100)}
    with pytest.raises(StoreError, match="too many layers or members"):
        store.save(tmp_path / "s")
    assert len(MemoryStore.load(tmp_path / "s")) == 4


def blurred(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, a piece cut out, put in, or the end cut off."""
    what, place = draw.randrange(4), draw.randrange(len(data))
    if what == 0:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if what == 1:
        return data[:place]
    if what == 2:
        return data[:place] + draw.randbytes(draw.choice((1, 8, 40))) + data[place:]
    return data[:place] + data[place + draw.choice((1, 8)) :]


def twisted(header: dict, draw: random.Random) -> bytes:
    """A header with fields changed, swapped, taken away or told twice."""
    changed = copy.deepcopy(header)
    paths = list(places(changed))
    one, other = draw.choice(paths), draw.choice(paths)
    what = draw.randrange(4)
    try:
        if what == 0:
            at(changed, one[:-1])[one[-1]] = draw.choice(ODD)
        elif what == 1:
            a, b = at(changed, one), at(changed, other)
            at(changed, one[:-1])[one[-1]], at(changed, other[:-1])[other[-1]] = copy.deepcopy(b), copy.deepcopy(a)
        elif what == 2:
            del at(changed, one[:-1])[one[-1]]
        else:
            for key in ("chunks", "documents", "vocabulary", "chunk_length"):
                changed[key] = draw.choice(HUGE) if draw.random() < 0.5 else changed[key]
    except (KeyError, IndexError, TypeError):
        pass  # A member was moved into itself.
    return json.dumps(changed).encode()


def test_ten_thousand_damaged_stores():
    """No exception but StoreError, no memory taken, in seconds."""
    draw = random.Random(0)
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None)) / "s"
    refused = taken = 0
    said: set[str] = set()
    try:
        good = tiny(folder)
        header, data_files = json.loads(good["store.json"]), sorted(set(good) - {"store.json"})
        MemoryStore.load(folder)
        began = time.process_time()
        tracemalloc.start()
        for number in range(MUTANTS):
            files = {}
            kind = number % 4
            if kind == 0:
                files["store.json"] = blurred(good["store.json"], draw)
            elif kind == 1:
                files["store.json"] = twisted(header, draw)
            else:
                name = draw.choice(data_files)
                files[name] = blurred(good[name], draw)
                if kind == 3:  # With the checksum that belongs to it, so that all behind the checksum is tried too.
                    # As long as it should be, or it would go no further.
                    files[name] = files[name][: len(good[name])].ljust(len(good[name]), b"\0")
                    sealed = copy.deepcopy(header)
                    sealed["files"][name]["sha256"] = hashlib.sha256(files[name]).hexdigest()
                    files["store.json"] = json.dumps(sealed).encode()
            for name, data in files.items():
                (folder / name).write_bytes(data)
            try:
                store = MemoryStore.load(folder, verify=number % 8 != 6)
                assert store.memories.shape == (4, 2, 4) and len(store.spans) == 4 and len(store.documents) == 2
                taken += 1
            except StoreError as error:
                said.add(str(error))
                refused += 1
            for name in files:
                (folder / name).write_bytes(good[name])
        peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - began
    finally:
        if tracemalloc.is_tracing():
            tracemalloc.stop()
        shutil.rmtree(folder.parent)
    assert all(message.isprintable() and len(message) < 500 for message in said)
    assert peak < 8 * 2**20, f"{peak} bytes"
    assert seconds < 20
    assert refused > 0.6 * MUTANTS and taken > 100, "levels of int8 may be any, so some are taken"
