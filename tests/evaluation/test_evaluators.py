"""Evaluators as entries of a config: what is evaluated, when, and on how many sequences."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from memjax.config import (
    Config,
    ConfigError,
    Evaluator,
    Optimizer,
    from_config_dict,
    to_config_dict,
    usual_evaluators,
)
from memjax.data import prepare
from memjax.evaluation import evaluators
from memjax.evaluation.evaluators import open_evaluators, recall
from memjax.experiment.evaluate import evaluate_run
from memjax.experiment.preflight import check_targets
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.training.init_state import Run
from memjax.training.loop import train_stage

ONLY = "no_memory"


def run_of(
    folder: Path, entries: Mapping[str, Evaluator], words: int = 60, packing: str = "packed"
) -> Run:
    """A run of one stage, a memory model of four steps."""
    config = tiny_config(
        write_corpus(folder / "corpus.jsonl", documents=60, words=words), 4, optimizer=Optimizer()
    )
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, packing=packing),
        stages={ONLY: config.stages[ONLY]},
        curriculum=(ONLY,),
        controls=(),
        checkpoint_every=100,
        evaluators=entries,
    )
    data = prepare(config.data, folder / "data")
    return Run(config, folder, data, Reporter(Console(quiet=True)))


def curves(run: Run) -> dict[int, dict[str, Any]]:
    """The numbers on held-out sequences of every step that has some."""
    text = (run.folder(ONLY) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line]
    return {line.pop("step"): line for line in lines if line.pop("split") == "validation"}


def test_a_new_kind_is_one_entry_and_is_evaluated_when_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_toy(run: Run, name: str, settings: Evaluator) -> Any:
        def evaluate(params: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
            return {"examples": float(settings.examples), "before": float(len(found)), "name": name}

        return evaluate

    monkeypatch.setattr(evaluators, "KINDS", {**evaluators.KINDS, "toy": open_toy})
    run = run_of(
        tmp_path,
        {
            "often": Evaluator("toy", every=3, examples=5),
            "validation": Evaluator("validation", every=2),
            "late": Evaluator("toy", every=0, examples=7),
        },
    )
    meta = train_stage(run, ONLY, open_evaluators(run, ONLY, training=True))
    found = curves(run)
    losses = {"next_token/nats", "next_token/accuracy"}
    assert {step: set(values) for step, values in found.items()} == {
        2: losses,
        3: {"examples", "before"},
        4: losses | {"examples", "before"},
    }
    assert found[3] == {"examples": 5.0, "before": 0.0}, "texts are no numbers of a curve"
    assert meta["metrics"] == found[4]
    results = evaluate_run(run, {ONLY: meta})
    assert results["models"][ONLY] == {"examples": 7.0, "before": 0.0, "name": ONLY}
    assert results["data"]["evaluated_rows"] == 7


@pytest.mark.slow
def test_an_evaluator_of_the_end_can_evaluate_while_training_too(tmp_path: Path) -> None:
    accuracy = Evaluator("accuracy", examples=8)
    entries = {"accuracy": accuracy, "curve": dataclasses.replace(accuracy, every=4)}
    run = run_of(tmp_path, entries)
    meta = train_stage(run, ONLY, open_evaluators(run, ONLY, training=True))
    found, end = curves(run)[4], evaluate_run(run, {ONLY: meta})["models"][ONLY]
    assert found["copy_accuracy"] == end["copy_accuracy"]
    assert found == {key: value for key, value in end.items() if isinstance(value, float)}


@pytest.mark.parametrize(
    ("packing", "words"), [("first_n", 5), ("per_document", 5), ("first_n_left", 9)]
)
def test_neither_padding_nor_chunks_of_it_count_in_recall(
    packing: str, words: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is right at every token and nowhere else has the recall 1."""

    def right(module: Any, params: Any, tokens: Any, ids: Any, *rest: Any) -> Any:
        held = np.asarray(tokens).reshape(len(tokens), 4, 8)[:, :2]
        shown.append(held)
        return np.where(held == ids.pad, 9, held), held

    shown: list[np.ndarray] = []
    monkeypatch.setattr(recall, "regenerate", right)
    run = run_of(tmp_path, {"recall": Evaluator("recall", examples=32)}, words, packing)
    found = open_evaluators(run, ONLY, training=False)[0].evaluate({}, {})
    real = np.concatenate(shown) != run.ids.pad
    assert not real.all(axis=-1).all() and not real.any(axis=-1).all()
    assert found["free_running_exact_chunks"] == found["free_running_token_accuracy"] == 1
    assert found["free_running_chunks"] == real.any(axis=-1).sum()
    assert all(all(passage["correct"]) and passage["source"] for passage in found["passages"])


@pytest.mark.slow
def test_an_evaluation_leaves_out_what_has_no_target(tmp_path: Path) -> None:
    """Texts of less than half a sequence, padded before them: there is nothing to copy."""
    run = run_of(tmp_path, usual_evaluators(every=4, examples=8), 1, "first_n_left")
    stage = dataclasses.replace(run.config.stages[ONLY], objectives={"copy": 1.0, "next_token": 1})
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, stages={ONLY: stage}))
    meta = train_stage(run, ONLY, open_evaluators(run, ONLY, training=True))
    assert set(curves(run)[4]) == {"next_token/nats", "next_token/accuracy"}
    found = evaluate_run(run, {ONLY: meta})
    assert found["next_token_nats"] > 0 and found["passages"] == []
    assert found["copy_accuracy"] is found["free_running_exact_chunks"] is None
    log = (run.folder(ONLY) / "metrics.jsonl").read_text()
    assert "next_token/nats" in log and "copy/nats" not in log


@pytest.mark.parametrize("length", [32, 8])
def test_an_objective_without_a_target_is_refused_before_training(
    length: int, tmp_path: Path
) -> None:
    """The advice works: sequences that a document fills to more than a half have something to
    copy."""
    config = tiny_config(write_corpus(tmp_path / "short.jsonl", words=1))
    packed = dataclasses.replace(config.data, packing="first_n_left", sequence_length=length)
    model = dataclasses.replace(config.model, chunk_length=length // 4)
    config = dataclasses.replace(config, data=packed, model=model)
    data = prepare(config.data, tmp_path / "data", lambda _: None)
    message = r"^config\.stages\.combined\.objectives: copy, which has no target"
    refused = pytest.raises(ConfigError, match=message) if length == 32 else nullcontext()
    with refused:
        check_targets(config, data)


def test_the_command_line_changes_one_entry() -> None:
    config = from_config_dict(
        to_config_dict(tiny_config("unused")), [("evaluators.validation.every", "50")]
    )
    assert config.evaluators == usual_evaluators(every=50, examples=16)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluators.validatoin.every", "50", "did you mean config.evaluators.validation"),
        ("evaluators.validation.evry", "50", "did you mean config.evaluators.validation.every"),
        ("evaluators.validation.every", "often", r"evaluators\.validation\.every: expected int"),
        ("evaluators.validation.every", "-1", r"evaluators\.validation\.every=-1"),
        ("evaluators.recall.examples", "0", r"evaluators\.recall\.examples=0"),
        ("evaluators", "(1, 2)", r"config\.evaluators=\(1, 2\)"),
    ],
)
def test_an_error_names_the_key(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config_dict(to_config_dict(tiny_config("unused")), [(key, value)])


def test_an_unknown_kind_lists_those_there_are() -> None:
    config = tiny_config("unused", evaluators={"mine": Evaluator("acuracy")})
    assert isinstance(config, Config)
    with pytest.raises(ConfigError) as caught:
        evaluators.check_evaluators(config)
    assert str(caught.value) == (
        "config.evaluators.mine.kind: 'acuracy', expected one of validation, accuracy, recall,"
        " reading, base_validation, base_accuracy"
    )
