"""Two real processes reproduce together what one does, and complete what a killed one left."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from memjax.testing import write_corpus
from memjax.testing.scripts import load_script

HERE = Path(__file__).parent
PROCESSES = load_script(HERE.parents[1] / "sharding" / "test_processes.py")


def reproduce(out, corpus, kills):
    """The command in as many processes as there are numbers of stages that they live to train."""
    flags = [f"--out={out}", "--scale=tiny", f"--corpus={corpus}"]
    args = [[str(kill), *flags] for kill in kills]
    script = str(HERE / "process.py")
    return PROCESSES.together(HERE, script, args, MEMJAX_DEAD_AFTER_SECONDS="6")


def assert_same(ours, theirs):
    """The numbers of each seed are equal but for rounding, and all else but the time is equal."""
    for seed in ("seed-0", "seed-1"):
        numbers = [
            json.loads((path / seed / "numbers.json").read_text()) for path in (ours, theirs)
        ]
        assert numbers[0].keys() == numbers[1].keys()
        for name, sums in numbers[0].items():
            other = numbers[1][name]
            if "accuracy" in name or "error" in name:
                assert sums == other, name
            assert sums["counts"] == other["counts"], name
            np.testing.assert_allclose(
                sums["sums"], other["sums"], rtol=1e-5, atol=1e-5, err_msg=name
            )
    results = [json.loads((path / "reproduction.json").read_text()) for path in (ours, theirs)]
    assert results[0].keys() == results[1].keys()
    for key in ("command", "scale", "seeds"):
        assert results[0][key] == results[1][key]
    verdicts = [[claim["verdict"] for claim in found["claims"]] for found in results]
    assert verdicts[0] == verdicts[1]


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents=60)
    PROCESSES.all_done(reproduce(tmp_path / "alone", corpus, [-1]))
    first, second = PROCESSES.all_done(reproduce(tmp_path / "pair", corpus, [-1, -1]))
    assert_same(tmp_path / "pair", tmp_path / "alone")
    assert "numbers in" in first.said
    assert not [line for line in second.said.splitlines() if "[Gloo]" not in line]


@pytest.mark.night
def test_what_a_killed_process_left_is_completed(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents=60)
    PROCESSES.all_done(reproduce(tmp_path / "alone", corpus, [-1]))
    first, second = reproduce(tmp_path / "pair", corpus, [-1, 2])
    assert (first.status, second.status) == (1, -signal.SIGKILL)
    assert "Run the same command" in first.said
    assert not (tmp_path / "pair" / "seed-0" / "numbers.json").exists()
    first, _ = PROCESSES.all_done(reproduce(tmp_path / "pair", corpus, [-1, -1]))
    assert "all 3 steps are done" in first.said
    assert_same(tmp_path / "pair", tmp_path / "alone")
