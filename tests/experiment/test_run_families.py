"""Every family of models trains, is saved, evaluated and reported on by the same run; test_run.py
does it for autoencoder and memory model.
"""

import dataclasses
import json

import numpy as np
import pytest

from memjax.config import usual_evaluators
from memjax.data import prepare
from memjax.experiment.run import run_experiment
from memjax.testing import tiny_config, write_corpus
from memjax.testing.families import FAMILY_OBJECTIVES, REGRESSIONS, WEIGHTINGS

pytestmark = pytest.mark.slow

OTHERS = {
    family: names
    for family, names in FAMILY_OBJECTIVES.items()
    if family not in ("autoencoder", "memory_model")
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=2)
    data = prepare(config.data, folder / "data", lambda _: None)
    rows = data.train
    np.save(
        folder / "attributions.npy",
        np.random.default_rng(0).random((len(rows), rows.row_tokens), np.float32),
    )
    stage = dataclasses.replace(
        config.stages["combined"],
        init_from="",
        init_part="",
        trainable=((".*", True),),
        batch_size=8,
    )
    stages = {
        family: dataclasses.replace(
            stage,
            family=family,
            objectives=dict.fromkeys(names, 1.0),
            dials={"query_tokens": 3} if family in ("retriever", "ranker") else {},
        )
        for family, names in OTHERS.items()
    }
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, attributions=str(folder / "attributions.npy")),
        stages=stages,
        curriculum=tuple(stages),
        controls=(),
        evaluators=usual_evaluators(every=2, examples=16),
    )
    workdir = folder / "run"
    run_experiment(config, workdir)
    return workdir, json.loads((workdir / "results.json").read_text())


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_is_trained_and_measured(results, family):
    workdir, found = results
    lines = [
        json.loads(line)
        for line in (workdir / "stages" / family / "metrics.jsonl").read_text().splitlines()
    ]
    trained = [line for line in lines if line["split"] == "train"]
    assert len(trained) == 2
    for name in OTHERS[family]:
        assert all(np.isfinite(line[f"{name}/nats"]) for line in trained), name
    for name in set(OTHERS[family]) - set(REGRESSIONS) - set(WEIGHTINGS):
        # A cosine of 1 against one of -1 is 100 nats at temperature 0.02; the others start near ln
        # 320.
        bound = 100 if "retrieval" in name else 8
        assert 0 < found["models"][family][f"{name}_nats"] < bound, name
    assert found["stages"][family]["parameters"] > 0


def test_the_page_is_written_for_a_run_without_memory_model(results):
    workdir, _ = results
    assert (workdir / "report.html").stat().st_size > 1000
