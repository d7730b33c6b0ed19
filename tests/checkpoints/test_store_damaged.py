"""Damaged stores and stores that mean harm: one clear error, and no memory taken."""

import json
import os
import random
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from memjax.checkpoints.store import MemoryStore, open_store
from memjax.checkpoints.store_columns import packed_bytes, packed_table, size_steps, span_steps
from memjax.checkpoints.store_file import HEADER_LIMIT
from memjax.checkpoints.store_records import (
    StoredDocument,
    StoreError,
    sizes_of,
)
from memjax.models.memory import bank
from memjax.testing.stores import ENCODER, contents, seal

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
    "x" * 2000,
    *HUGE,
)


@pytest.fixture
def path(tmp_path):
    """A store of two documents and four chunks."""
    store = MemoryStore(ENCODER, "int8")
    generator = np.random.default_rng(0)
    for name, chunks in (("a.txt#0", 3), ("日本", 1)):
        spans = [[8 * i, 8, 16 * i, 16 * (i + 1)] for i in range(chunks)]
        memories = generator.normal(size=(chunks, 2, 4)).astype(np.float32)
        store.append(StoredDocument(name, 8 * chunks, 16 * chunks), bank(memories), np.array(spans))
    store.save(tmp_path / "s")
    return tmp_path / "s"


def refused(path, match, **kwargs):
    with pytest.raises(StoreError, match=match) as error:
        open_store(path, **kwargs)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 700, message


def places(value, path=()):
    """Paths of all members of JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts if isinstance(value, (dict, list)) else ():
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))


def changed(info, path, value=None, absent=False):
    """A copy of JSON with one member replaced or absent."""
    copy = json.loads(json.dumps(info))
    at = copy
    for key in path[:-1]:
        at = at[key]
    if absent:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return copy


def test_damage_is_found_and_named(path):
    refused(path.parent / "absent", "No such file or directory, expected a store of `memjax comp")
    refused(path.parent, "a folder without store.json")
    raw = path.read_bytes()
    for cut in (0, 5, 8, 100, len(raw) - 1):
        path.write_bytes(raw[:cut])
        refused(path, "header|not fully covered|metadata", verify=False)
    path.write_bytes(raw + b"x")
    refused(path, "not fully covered", verify=False)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    refused(path, "contents that are not those that were written")
    place = raw.index(b"autoencoder")
    path.write_bytes(raw[:place] + b"b" + raw[place + 1 :])
    refused(path, "contents that are not those that were written")
    assert open_store(path, verify=False).provenance.family == "butoencoder"
    path.unlink()
    os.mkfifo(path)  # Opening it would wait for ever.
    refused(path, "not a file")


def test_every_field_of_the_metadata_is_checked(path):
    info, tensors = contents(path)
    settings = ("encoder", "settings")
    for place in places(info):
        if place[:2] == settings and len(place) > 2:
            continue
        for odd in (
            None,
            -1,
            2**64,
            "\x1b[2J",
            [[[[[[1]]]]]],
            {"a": {"b": {"c": [[1]]}}},
            "x" * 2000,
        ):
            seal(path, changed(info, place, odd), tensors)
            refused(path, "expected")
        seal(path, changed(info, place, absent=True), tensors)
        if place[:2] != ("encoder", "leaves") or len(place) < 4:
            refused(path, "expected|metadata without|leaves")
    seal(path, changed(info, ("encoder", "more"), 1), tensors)
    refused(path, "encoder: expected an object of")
    seal(path, changed(info, ("format",), 3), tensors)
    refused(path, "format 3, while this memjax reads 1 to 2")
    seal(path, changed(info, ("format",), 1), tensors)
    refused(path, "tensor '")
    for count, value in (("chunks", 3), ("chunks", 2**50)):
        seal(path, changed(info, (count,), value), tensors)
        refused(path, "tensor 'leaf.vectors")
    for value in (1, 3):
        seal(path, changed(info, ("documents",), value), tensors)
        refused(path, f"documents that are not {value} rows|documents that are cut off")
    seal(path, changed(info, ("encoder", "leaves", "../x"), [1]), tensors)
    refused(path, "encoder.leaves: expected names")


TEXTS = {
    "nothing": "",
    "no JSON": "\x00" * 40,
    "a list": "[]",
    "a number of many digits": '{"format": 1' + "0" * 5000 + "}",
    "levels": "[" * 60000,
    "levels of objects": '{"a":' * 10000,
    "true for one": '{"format": true, "dtype": "int8", "encoder": {}}',
    "long": " " * (HEADER_LIMIT + 1),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_other_metadata_are_one_error(path, text):
    seal(path, text, contents(path)[1])
    refused(path, "expected a store of `memjax compress`")


def test_a_long_header_is_not_read(path):
    with open(path, "r+b") as stream:
        stream.write((2**33).to_bytes(8, "little"))
        stream.truncate(2**34)  # 16 GiB, of which almost nothing is on disk.
    tracemalloc.start()
    try:
        refused(path, f"a header of {2**33} bytes")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_settings_that_could_not_be_read_again_are_not_written(path):
    store = open_store(path)
    store.provenance.settings["more"] = [[[[1]]]]
    with pytest.raises(StoreError, match="settings: expected an object of at most"):
        store.save(path)
    assert len(open_store(path)) == 4 and os.listdir(path.parent) == ["s"]


def test_sealed_contents_that_are_impossible_are_refused(path):
    info, tensors = contents(path)
    store = open_store(path)

    def swapped(match, **other):
        seal(path, info, {k: v for k, v in (tensors | other).items() if v is not None})
        refused(path, match)

    for column, value in ((0, 2), (0, -1), (1, 2**62), (2, 9), (4, 2**53)):
        spans = store.spans.copy()
        spans[1, column] = value
        steps = span_steps(spans, ENCODER.chunk_length)
        swapped("chunk 1 lies outside its document", spans=packed_table(steps))
    for value in (np.nan, -1, np.inf):
        scale = {"leaf.vectors.scale": np.full((4, 2), value, np.float32)}
        swapped("a scale that is negative or not finite", **scale)
    names = "\n".join(document.name for document in store.documents).encode()
    for wrong, match in (
        (names[:-1] + b"\xff", "codec can't decode"),
        (names.replace(b"a", b"\x1b"), "expected a name of 1 to 1024 printable"),
        (names + b"\nx", "argument 2 is shorter"),
        (names.replace(b"\n", b" "), "argument 2 is longer"),
        (b"\n" + names[names.index(b"\n") + 1 :], "expected a name of 1 to 1024 printable"),
        (b"", "argument 2 is longer"),
    ):
        swapped(match, names=packed_bytes(wrong))
    swapped("names that are cut off, or of more than 8194 bytes", names=packed_bytes(bytes(9000)))
    swapped("names that are cut off", names=tensors["names"][:-1])
    swapped("names that are cut off", names=np.append(tensors["names"], np.uint8(0)))
    swapped("names that are damaged", names=np.zeros(4, np.uint8))
    for wrong in (b"", b"\0" * 4, b"\0" * 6, b"\3" + bytes(16), b"\1" + bytes(3), b"\x08" * 41):
        swapped("spans that are not 4 rows", spans=packed_bytes(wrong))
    for row, column, value in ((1, 0, -1), (1, 2, 2**60)):
        sizes = sizes_of(store.documents)
        sizes[row, column] = value
        swapped("sizes .*, expected 0 to", documents=packed_table(size_steps(sizes)))
    vectors = tensors["leaf.vectors"]
    for name, value in (
        ("leaf.vectors", vectors[:3]),
        ("leaf.vectors", vectors.astype(np.int16)),
        ("leaf.vectors", None),
        ("leaf.more", vectors),
        ("spans", store.spans),
        ("spans", np.array(1)),
        ("documents", tensors["documents"].astype(np.int16)),
        ("names", tensors["names"][:, None]),
        ("\x1b[2J", vectors),
    ):
        swapped("tensor '", **{name: value})
    swapped("documents that are cut off", documents=tensors["documents"][:0])
    seal(path, info, tensors)
    assert len(open_store(path)) == 4


def blurred(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, a piece cut out or put in, or the end cut off."""
    what, place = draw.randrange(4), draw.randrange(len(data))
    if what == 0:
        flipped = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if what == 1:
        return data[:place]
    if what == 2:
        return data[:place] + draw.randbytes(draw.choice((1, 8, 40))) + data[place:]
    return data[:place] + data[place + draw.choice((1, 8)) :]


def twisted(info: dict, draw: random.Random) -> dict:
    """Metadata with a member that is odd, another's, or absent."""
    paths = list(places(info))
    place = draw.choice(paths)
    if draw.random() < 0.2:
        return changed(info, place, absent=True)
    if draw.random() < 0.3:
        value = info
        for key in draw.choice(paths):
            value = value[key]
        return changed(info, place, value)
    return changed(info, place, draw.choice(ODD))


@pytest.mark.parametrize("mutants", [400, pytest.param(10_000, marks=pytest.mark.night)])
def test_damaged_stores(path, mutants):
    """No exception but StoreError, no memory taken, in seconds."""
    draw = random.Random(0)
    good, (info, tensors) = path.read_bytes(), contents(path)
    shm = Path("/dev/shm")
    refusals = taken = 0
    said: set[str] = set()
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        mutant = Path(folder) / "s"
        mutant.write_bytes(good)
        open_store(mutant)
        began = time.process_time()
        tracemalloc.start()
        try:
            for number in range(mutants):
                kind = number % 4
                if kind == 0:
                    mutant.write_bytes(blurred(good, draw))
                elif kind == 1:  # Within the header, where most of the structure is.
                    mutant.write_bytes(blurred(good[:1200], draw) + good[1200:])
                elif kind == 2:
                    seal(mutant, twisted(info, draw), tensors)
                else:  # With its own checksum, so that all behind the checksum is tried too.
                    name = draw.choice(sorted(tensors))
                    raw = tensors[name].tobytes()
                    raw = blurred(raw, draw)[: len(raw)].ljust(len(raw), b"\0")
                    tensor = np.frombuffer(raw, tensors[name].dtype).reshape(tensors[name].shape)
                    seal(mutant, info, tensors | {name: tensor})
                try:
                    store = open_store(mutant, verify=number % 8 < 4)
                    assert store.memories.leaves["vectors"].shape == (4, 2, 4)
                    assert len(store.spans) == 4 and len(store.documents) == 2
                    taken += 1
                except StoreError as error:
                    said.add(str(error))
                    refusals += 1
            peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - began
        finally:
            tracemalloc.stop()
    assert all(message.isprintable() and len(message) < 700 for message in said)
    assert peak < 8 * 2**20, f"{peak} bytes"
    assert seconds < 60
    assert refusals > 0.5 * mutants and taken > mutants / 100, "levels of int8 may be any"
