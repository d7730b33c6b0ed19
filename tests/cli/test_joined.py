"""Commands of several real processes: the numbers of one, written once."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import memjax
from memjax.testing import WORDS
from memjax.testing.scripts import load_script

HERE = Path(__file__).parent
PROCESSES = load_script(HERE.parent / "sharding" / "test_processes.py")
INSTRUMENTS = (
    "information,recall,compression,quantisation,sensitivity,out_of_distribution,attribution"
)


def commands(made, elastic, store, book, out):
    """Each command that divides its work, small, with results in the folder `out`."""
    stages, reading = made / "stages", str(elastic / "stages" / "reading")
    combined, autoencoder = str(stages / "combined"), str(stages / "autoencoder")
    measured = ["--limit=7", "--batch_size=3", f"--corpus={book}"]
    protocol = "--protocol=width=16,layers=1,heads=2,steps=6,batch=8,evaluate_every=3"
    texts = ["--limit=40", "--eval_examples=9", "--seeds=0,1"]
    recall = ["eval", combined, "--tasks=long_recall", f"--corpus={book}", "--batch_size=4"]
    lengths = "--long_recall=lengths=110+120,depths=0.5,questions=3"
    return [
        [
            *["measure", combined, f"--instruments={INSTRUMENTS}", *measured],
            *[f"--out={out}/measure.json", f"--save={out}/rows.npy"],
        ],
        ["probe", autoencoder, *texts, protocol, f"--out={out}/probe.json"],
        [*recall, lengths, f"--out={out}/eval.json"],
        ["recall", reading, f"--memory={store}", "--chunk=0:9", "--batch_size=4"],
        ["recall", reading, f"--memory={store}", "--find=the decoder reads", "--batch_size=4"],
        ["reconstruct", reading, str(store), f"--out={out}/text", "--batch_size=2"],
    ]


class Found(NamedTuple):
    """The files and the lines of one call of all commands."""

    out: Path
    said: list[list[str]]
    """Of each process: not the lines about the connection, which are of a library in C++."""


@pytest.fixture(scope="module")
def find(made, elastic, tmp_path_factory):
    """Calls all commands in some processes, each with some devices; `elastic` has memories that a
    stage recalls."""
    folder = tmp_path_factory.mktemp("joined")
    book, store = folder / "book.txt", folder / "book.store"
    book.write_text(" ".join(f"{' '.join(WORDS[i % 9 :][:9])}." for i in range(200)))
    memjax.load(elastic / "stages" / "reading").compress([" ".join(WORDS)]).save(store)

    def found(processes, devices):
        out = folder / f"{processes}x{devices}"
        out.mkdir()
        script = commands(made, elastic, store, book, out)
        joined = [word for args in script for word in ["--", *args]][1:]
        args = [["-1", *joined]] * processes
        ended = PROCESSES.together(HERE, str(HERE / "process.py"), args, devices)
        lines = [process.said.splitlines() for process in PROCESSES.all_done(ended)]
        return Found(out, [[line for line in own if "[Gloo]" not in line] for own in lines])

    return found


@pytest.fixture(scope="module")
def one(find):
    """One process of one device."""
    return find(1, 1)


def assert_same(ours, theirs, where=""):
    """Two JSON values whose counts are equal, and whose other numbers are so but for rounding."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours.keys() - {"sha256"}:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    elif isinstance(ours, float):
        assert math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-5), (where, ours, theirs)
    else:
        assert ours == theirs, where


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (1, 8)])
def test_processes_and_devices_find_what_one_finds(find, one, processes, devices):
    several = find(processes, devices)
    names = sorted(path.name for path in one.out.iterdir())
    assert names == sorted(path.name for path in several.out.iterdir()) and len(names) == 7, names
    for name in names:
        ours, theirs = ((found.out / name) for found in (several, one))
        if name.endswith(".json"):
            assert_same(*(json.loads(path.read_text()) for path in (ours, theirs)), name)
    rows = [np.load(found.out / "rows.npy") for found in (several, one)]
    np.testing.assert_allclose(*rows, rtol=1e-5, atol=1e-5)
    assert (several.out / "text").read_text() == (one.out / "text").read_text()
    assert len(several.said[0]) == len(one.said[0]) and not any(several.said[1:])
