"""All instruments by name on a stage that was trained: JSON, tables, the command."""

import dataclasses
import functools
import itertools
import json
import re

import numpy as np
import pytest

from memjax.cli.main import main
from memjax.cli.measure import ATTRIBUTIONS
from memjax.evaluation.instruments import capacity, retrieval
from memjax.evaluation.instruments.attribution import MEASURES
from memjax.evaluation.instruments.fact_probes import Training
from memjax.evaluation.instruments.suite import (
    INSTRUMENTS,
    prepare_subject,
    run_instruments,
    tables_of,
    write_found,
)
from memjax.evaluation.instruments.tables import show
from memjax.experiment.run import run_experiment
from memjax.inference import load
from memjax.inference.texts import TextsError
from memjax.testing import tiny_config, write_corpus


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=4, controls=(), evaluators={})
    run_experiment(config, folder / "run")
    return folder / "run"


def test_the_command_offers_what_there_is():
    assert sorted(ATTRIBUTIONS) == sorted(MEASURES)


def test_numbers_that_changed_by_chance_are_no_part_of_what_is_written(tmp_path):
    path, about = tmp_path / "numbers.json", {"stage": "combined", "step": 4, "ask": "copy"}
    write_found(path, about | {"instruments": {"recall": {"value": 0.25}}})
    write_found(path, about | {"instruments": {"information": {"value": 1.5}}})
    assert list(json.loads(path.read_text())["instruments"]) == ["recall", "information"]
    path.write_text(path.read_text().replace("0.75", "0.25"))
    write_found(path, about | {"texts": 8, "instruments": {"retrieval": {"value": 0.5}}})
    assert list(json.loads(path.read_text())["instruments"]) == ["retrieval"], "of other texts"
    path.write_text(path.read_text().replace("0.5", "0.75"))
    with pytest.raises(TextsError, match=rf"{path}: not what was written .* Delete it or use"):
        write_found(path, about | {"instruments": {}})


@pytest.fixture(scope="module")
def found(workdir):
    subject = prepare_subject(load(workdir / "stages" / "combined"), limit=34)
    short = dataclasses.replace(subject, reader=Training(steps=2, rows=8, width=16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "capacity", functools.partial(capacity.capacity, steps=3))
        return run_instruments(short, list(INSTRUMENTS))


def estimates(value):
    """All estimates in JSON."""
    if isinstance(value, dict):
        if value.keys() == {"value", "low", "high", "texts"}:
            return [value]
        return [one for part in value.values() for one in estimates(part)]
    return [one for part in value for one in estimates(part)] if isinstance(value, list) else []


@pytest.mark.slow
def test_every_instrument_gives_json_with_intervals(found):
    assert list(found["instruments"]) == list(INSTRUMENTS)
    assert (found["stage"], found["texts"], found["tokens_a_text"], found["memory_shape"]) == (
        "combined",
        34,
        16,
        [2, 16],
    )
    check_intervals(found)


def check_intervals(found):
    for name, numbers in json.loads(json.dumps(found["instruments"], allow_nan=False)).items():
        some = estimates(numbers)
        assert some, name
        for one in some:
            # The percentile bootstrap of a mean need not hold it where nothing but one text
            # differs.
            assert one["low"] is None or one["low"] <= one["high"], name


def test_quick_instruments_of_drawn_weights_give_intervals_and_tables(made):
    names = ["compression", "retrieval"]
    found = run_instruments(prepare_subject(load(made / "stages" / "combined"), limit=16), names)
    assert list(found["instruments"]) == names
    check_intervals(found)
    assert all(table.rows for table in tables_of(found))


def test_the_query_of_a_pair_is_the_chunk_before_it(made, monkeypatch):
    asked = {}
    monkeypatch.setattr(retrieval, "POOLS", (8,))
    monkeypatch.setattr(
        retrieval, "retrieval", lambda encode, texts, query, *_: asked.setdefault(query, texts)
    )
    subject = prepare_subject(load(made / "stages" / "combined"), limit=8)
    INSTRUMENTS["retrieval"].run(subject)
    length = subject.encoder.length
    every = subject.chunks("validation", 10**6, 1)[:, 0]
    assert len(every) > 8, "chunks are chosen"
    after = {(a.tobytes(), b.tobytes()) for a, b in itertools.pairwise(every)}
    pairs = asked["pair"].reshape(-1, 2, length)
    assert 0 < len(pairs) <= 4
    assert {(a.tobytes(), b.tobytes()) for a, b in pairs} <= after


def test_capacity_takes_texts_from_all_of_the_held_out_text(made, monkeypatch):
    subject = prepare_subject(load(made / "stages" / "combined"), limit=8)
    monkeypatch.setattr("memjax.evaluation.instruments.suite.CAPACITY_TEXTS", 4)
    monkeypatch.setattr(capacity, "capacity", lambda system, params, texts, batch: texts)
    np.testing.assert_array_equal(INSTRUMENTS["capacity"].run(subject), subject.texts[::2])


@pytest.mark.slow
def test_every_instrument_has_a_table(found):
    made = tables_of(found)
    assert len(made) >= len(INSTRUMENTS)
    for table in made:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_estimates_have_one_form_on_every_page():
    estimate = {"value": 0.99996, "low": 0.4, "high": 1.0, "texts": 3}
    assert show(estimate, percent=True) == "> 99.9% [40.0%, 100.0%]"
    assert show(estimate, 2) == "1.00 [0.40, 1.00]"
    assert show(estimate | {"low": None}) == "1.000"
    assert show(dict.fromkeys(estimate)) == "–"


@pytest.mark.slow
def test_the_command_prints_and_writes_and_the_page_shows(workdir, capsys):
    stage = workdir / "stages" / "autoencoder"
    for names in ("information", "compression,out_of_distribution"):
        assert (
            main(
                [
                    "measure",
                    str(stage),
                    f"--instruments={names}",
                    "--limit=8",
                    "--batch_size=4",
                ]
            )
            == 0
        )
    said = capsys.readouterr().out
    assert "Information about held-out text in memories" in said
    assert re.search(r"bits gained per number of the memory", said)
    written = json.loads((stage / "instruments.json").read_text())
    assert list(written["instruments"]) == ["information", "compression", "out_of_distribution"], (
        "what was there stays"
    )
    small = [
        "--protocol=steps=2,width=16,layers=1,heads=2,batch=8,controls=constant",
        "--limit=40",
        "--eval_examples=8",
    ]
    out = f"--out={workdir / 'probe.json'}"
    assert main(["probe", str(stage), *small, "--seeds=0", out]) == 0
    assert main(["report", str(workdir)]) == 0
    page = (workdir / "report.html").read_text()
    assert "Information about held-out text in memories" in page and "random tokens" in page
    assert "Reconstruction from frozen vectors, one-shot probe" in page
    assert "– constant" in page


def test_what_is_measured_before_a_failure_is_written(made, tmp_path, monkeypatch, capsys):
    def fail(subject):
        raise TextsError("texts: too few")

    failing = INSTRUMENTS["recall"]._replace(run=fail)
    monkeypatch.setitem(INSTRUMENTS, "recall", failing)
    out = tmp_path / "found.json"
    args = ["--instruments=compression,recall", "--limit=8", f"--out={out}"]
    assert main(["measure", str(made / "stages" / "combined"), *args]) == 2
    assert "texts: too few" in capsys.readouterr().err
    assert list(json.loads(out.read_text())["instruments"]) == ["compression"]


def test_what_cannot_be_measured_is_one_clear_line(made, tmp_path, capsys):
    stage = made / "stages" / "combined"
    wrong = {
        "PATH: missing, expected PATH.": [],
        "holds no model": [str(tmp_path)],
        "--instruments: 'soul', expected some of": [str(stage), "--instruments=soul"],
        "--split, --unscaled: given, expected none without --save": [
            str(stage),
            "--split=validation",
            "--unscaled",
        ],
        "tokenizer.model: cannot be read": [str(stage), f"--data={tmp_path}"],
        "cannot be read": [
            str(stage),
            "--corpus=/absent.txt",
            "--instruments=information,out_of_distribution",
        ],
    }
    for message, args in wrong.items():
        assert main(["measure", *args]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in said
        assert said.count("memjax:") == 1
        if message not in ("cannot be read",):
            assert message in said
    with pytest.raises(TextsError, match="instruments: 'soul', expected one of information"):
        run_instruments(prepare_subject(load(stage), limit=8), ["soul"])
