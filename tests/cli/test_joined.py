"""Commands of several real processes: the numbers of one, written once."""

import json
import math
from pathlib import Path

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


def run(script, count):
    joined = [word for args in script for word in ["--", *args]][1:]
    return PROCESSES.together(HERE, str(HERE / "process.py"), [["-1", *joined]] * count)


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
def test_two_processes_find_what_one_finds(made, elastic, tmp_path):
    """`elastic` has memories that a stage recalls."""
    book, store = tmp_path / "book.txt", tmp_path / "book.store"
    book.write_text(" ".join(f"{' '.join(WORDS[i % 9 :][:9])}." for i in range(200)))
    memjax.load(elastic / "stages" / "reading").compress([" ".join(WORDS)]).save(store)
    outs = [tmp_path / name for name in ("one", "two")]
    scripts = [commands(made, elastic, store, book, out) for out in outs]
    for out in outs:
        out.mkdir()
    (one,) = PROCESSES.all_done(run(scripts[0], 1))
    first, second = PROCESSES.all_done(run(scripts[1], 2))
    names = sorted(path.name for path in outs[0].iterdir())
    assert names == sorted(path.name for path in outs[1].iterdir()) and len(names) == 7, names
    for name in names:
        ours, theirs = ((out / name) for out in outs)
        if name.endswith(".json"):
            assert_same(*(json.loads(path.read_text()) for path in (ours, theirs)), name)
    rows = [np.load(out / "rows.npy") for out in outs]
    np.testing.assert_allclose(*rows, rtol=1e-5, atol=1e-5)
    assert (outs[0] / "text").read_text() == (outs[1] / "text").read_text()
    said = [
        [line for line in process.said.splitlines() if "[Gloo]" not in line]
        for process in (one, first, second)
    ]
    assert said[2] == []
    assert len(said[0]) == len(said[1])
