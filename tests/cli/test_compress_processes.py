"""Real processes write the parts of one store, or the memories of a corpus, and a second call
completes what one left."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from memjax.checkpoints.store import open_store
from memjax.checkpoints.store_records import StoreError
from memjax.data import MemoriesError, open_memories
from memjax.testing import write_corpus
from memjax.testing.scripts import load_script

HERE = Path(__file__).parent
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
PROCESSES = load_script(HERE.parent / "sharding" / "test_processes.py")


def compress(args, kills):
    """The command in as many processes as there are numbers of parts that they live to write."""
    command = [["compress", *args] for _ in kills]
    started = [[str(kill), *own] for kill, own in zip(kills, command, strict=True)]
    script = str(HERE / "process.py")
    return PROCESSES.together(HERE, script, started, MEMJAX_DEAD_AFTER_SECONDS="6")


def lines_of(process):
    """What a command says: not the lines about the connection, which are of a library in C++."""
    return [line for line in process.said.splitlines() if "[Gloo]" not in line]


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.slow
def test_a_store_of_a_killed_process_is_completed_by_the_others(made, tmp_path):
    text = write_corpus(tmp_path / "text.jsonl", documents=30)
    args = [str(made / "stages" / "autoencoder"), str(text), "--batch_size=8", "--eval_examples=4"]
    (alone,) = PROCESSES.all_done(compress([*args, f"--out={tmp_path / 'alone'}/"], [-1]))
    expected, out = files_of(tmp_path / "alone"), tmp_path / "pair"
    parts = len(expected) - 1
    assert parts > 5

    first, second = compress([*args, f"--out={out}/"], [-1, 1])
    assert (first.status, second.status) == (1, -signal.SIGKILL)
    assert f"pid {second.pid})" in first.said and "Run the same command" in first.said
    own = (parts + 1) // 2
    assert len(list(out.glob("part-*"))) == own + 1
    with pytest.raises(StoreError, match="are missing, expected a whole store"):
        open_store(out)

    ended = PROCESSES.all_done(compress([*args, f"--out={out}/"], [-1] * 4))
    assert files_of(out) == expected
    said, once = (" ".join(" ".join(lines_of(one)).split()) for one in (ended[0], alone))
    said = said.replace("pair", "alone")
    # Four processes add up what rounding costs in another order.
    assert NUMBER.split(said) == NUMBER.split(once)
    ours, theirs = ([float(x) for x in NUMBER.findall(text)] for text in (said, once))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not any(lines_of(other) for other in ended[1:])

    for process in compress([*args, f"--out={tmp_path / 'file'}"], [-1, -1]):
        assert process.status == 2
        assert "a file, expected a folder of parts, which several processes can write" in " ".join(
            process.said.split()
        )
    assert not (tmp_path / "file").exists()


@pytest.mark.slow
def test_memories_of_a_corpus_are_completed_by_the_others(made, tmp_path):
    stage, dtype = str(made / "stages" / "autoencoder"), "--dtype=float32"
    args = [stage, str(made), dtype, "--batch_size=8"]
    PROCESSES.all_done(compress([*args, f"--out={tmp_path / 'alone'}"], [-1]))
    expected, out = files_of(tmp_path / "alone"), tmp_path / "pair"
    shards = len(expected) - 1
    assert shards > 3

    first, second = compress([*args, f"--out={out}"], [-1, 1])
    assert (first.status, second.status) == (1, -signal.SIGKILL)
    assert "Run the same command" in first.said
    own = (shards + 1) // 2
    assert len(list(out.glob("*.arrayrecord"))) == own + 1
    with pytest.raises(MemoriesError, match=r"train\.json: no such file"):
        open_memories(out, "train")

    first, *others = PROCESSES.all_done(compress([*args, f"--out={out}"], [-1] * 4))
    assert files_of(out) == expected and not any(lines_of(other) for other in others)
    assert f"memories of {len(open_memories(out, 'train'))} train rows" in first.said
