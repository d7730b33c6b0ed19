"""All instruments by name on a stage that was trained: JSON, tables, the command."""

import dataclasses
import json
import re

import pytest

from memjax.cli.main import main
from memjax.cli.measure import INSTRUMENTS as NAMES
from memjax.instruments.access import Training
from memjax.instruments.suite import INSTRUMENTS, prepare_subject, run_instruments
from memjax.instruments.system import open_system
from memjax.instruments.texts import TextsError
from memjax.report.instruments import show, tables
from memjax.testing import tiny_config, write_corpus
from memjax.training import run_experiment
from memjax.training.progress import Reporter


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=4, controls=())
    run_experiment(config, folder / "run")
    return folder / "run"


def test_the_command_offers_what_there_is():
    assert tuple(INSTRUMENTS) == NAMES


@pytest.fixture(scope="module")
def found(workdir):
    subject = prepare_subject(open_system(workdir / "stages" / "combined"), limit=34)
    short = dataclasses.replace(subject, reader=Training(steps=2, rows=8, width=16))
    return run_instruments(short, list(INSTRUMENTS), Reporter().bar)


def estimates(value):
    """All estimates in JSON."""
    if isinstance(value, dict):
        if value.keys() == {"value", "low", "high", "texts"}:
            return [value]
        return [one for part in value.values() for one in estimates(part)]
    return [one for part in value for one in estimates(part)] if isinstance(value, list) else []


def test_every_instrument_gives_json_with_intervals(found):
    assert list(found["instruments"]) == list(INSTRUMENTS)
    assert (found["stage"], found["texts"], found["tokens_a_text"], found["memory_shape"]) == ("combined", 34, 16, [2, 16])
    for name, numbers in json.loads(json.dumps(found["instruments"], allow_nan=False)).items():
        some = estimates(numbers)
        assert some, name
        for one in some:
            # The percentile bootstrap of a mean need not hold it where nothing but one text differs.
            assert one["low"] is None or one["low"] <= one["high"], name


def test_every_instrument_has_a_table(found):
    made = tables(found)
    assert len(made) >= len(INSTRUMENTS)
    for table in made:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert show({"value": 0.5, "low": 0.4, "high": 0.6, "texts": 3}, percent=True) == "50.0 % [40.0, 60.0]"
    assert show({"value": None, "low": None, "high": None, "texts": 0}) == "–"


def test_the_command_prints_and_writes_and_the_page_shows(workdir, capsys):
    stage = workdir / "stages" / "autoencoder"
    for names in ("information", "compression,generalisation"):
        assert main(["measure", f"--checkpoint={stage}", f"--instruments={names}", "--limit=8", "--batch=4"]) == 0
    said = capsys.readouterr().out
    assert "What memories hold of held-out text" in said
    assert re.search(r"bits a number of the memory gained", said)
    written = json.loads((stage / "instruments.json").read_text())
    assert list(written["instruments"]) == ["information", "compression", "generalisation"], "what was there stays"
    small = ["--steps=2", "--width=16", "--layers=1", "--heads=2", "--limit=40", "--held_out_limit=8", "--batch=8"]
    encoder, out = f"--encoder={stage}", f"--out={workdir / 'probe.json'}"
    assert main(["probe", encoder, *small, "--seeds=1", "--controls=constant", out]) == 0
    assert main(["report", f"--workdir={workdir}"]) == 0
    page = (workdir / "report.html").read_text()
    assert "What memories hold of held-out text" in page and "random tokens" in page
    assert "What a one-shot probe gets back" in page
    assert "– constant" in page


def test_what_cannot_be_measured_is_one_clear_line(workdir, tmp_path, capsys):
    stage = workdir / "stages" / "combined"
    wrong = {
        "--checkpoint is missing": [],
        "holds no checkpoint": [f"--checkpoint={tmp_path}"],
        "--instruments has no 'soul'": [f"--checkpoint={stage}", "--instruments=soul"],
        "there are no rows here": [f"--checkpoint={stage}", f"--data={tmp_path}"],
        "cannot be read": [f"--checkpoint={stage}", "--corpus=/absent.txt", "--instruments=generalisation"],
    }
    for message, args in wrong.items():
        assert main(["measure", *args]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in said
        assert said.count("memjax:") == 1
        if message not in ("holds no checkpoint", "cannot be read"):
            assert message in said
    with pytest.raises(TextsError, match="instrument 'soul' is none"):
        run_instruments(prepare_subject(open_system(stage), limit=8), ["soul"], Reporter().bar)
