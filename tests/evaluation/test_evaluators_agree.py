"""The same quantity has one value wherever it is shown: curves of training, results, instruments,
scores of texts and a count by hand, on rows with and without padding."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.special import log_softmax

from memjax.config import Evaluator, Optimizer, Stage
from memjax.data import prepare
from memjax.evaluation.evaluators.accuracy import open_accuracy
from memjax.evaluation.evaluators.validation import open_validation
from memjax.evaluation.instruments.information import held, token_scores
from memjax.inference.codec import make_codec
from memjax.inference.likelihood import Scorer
from memjax.models import build, example
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.training.init_state import Run

MANY = Evaluator("accuracy", examples=1000)


@pytest.fixture(params=["packed", "first_n", "first_n_left"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A run of an autoencoder, a causal language model and a memory model."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", words=9)
    config = tiny_config(corpus, optimizer=Optimizer())
    stages = {
        "causal": Stage(family="causal_lm", objectives={"next_token": 1.0}),
        "auto": Stage(family="autoencoder", objectives={"reconstruction": 1.0}),
        "memory": Stage(objectives={"copy": 1.0}),
    }
    data = dataclasses.replace(config.data, packing=request.param)
    config = dataclasses.replace(config, data=data, stages=stages, curriculum=tuple(stages))
    config = dataclasses.replace(config, controls=())
    prepared = prepare(data, tmp_path / "data", lambda _: None)
    return Run(config, tmp_path, prepared, Reporter(Console(quiet=True)))


def shown(run: Run, name: str, draw: Callable[..., Any], objective: str, result: str) -> Any:
    """(module, parameters, [nats, accuracy] of the curve, results)."""
    module = build(run.config, run.config.stages[name])
    params = draw(module, example(module, run.config))["params"]
    curve = open_validation(run, name, MANY)(params, {})
    results = open_accuracy(run, name, MANY)(params, {})
    found = [curve[f"{objective}/{key}"] for key in ("nats", "accuracy")]
    same = [results[f"{result}_{key}"] for key in ("nats", "accuracy")]
    np.testing.assert_allclose(found, same, rtol=1e-5)
    return module, params, found, results


def held_out(run: Run) -> np.ndarray:
    return run.data.validation.read(range(len(run.data.validation)))


@pytest.mark.slow
def test_next_tokens(run: Run, draw: Callable[..., Any], quick: Any) -> None:
    module, params, found, results = shown(run, "causal", draw, "next_token", "next_token")
    pad, bos = run.ids.pad, run.ids.bos
    texts = [row[row != pad] for row in held_out(run)]
    assert results["next_token_tokens"] == sum(map(len, texts))
    # By hand, each text alone at the beginning of a row.
    rows = np.zeros((len(texts), 32), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = [bos, *text[:-1]]
    logits = quick(lambda params, rows: module.apply({"params": params}, rows))(params, rows)
    logs = log_softmax(logits.astype(np.float64), axis=-1)
    nats = [-log[np.arange(len(x)), x] for log, x in zip(logs, texts, strict=True)]
    right = [log[: len(x)].argmax(axis=-1) == x for log, x in zip(logs, texts, strict=True)]
    by_hand = [np.concatenate(one).mean() for one in (nats, right)]
    np.testing.assert_allclose(found, by_hand, rtol=1e-4)
    text_bytes = run.data.tokenizer.byte_lengths[np.concatenate(texts)].sum()
    assert results["next_token_bits_per_byte"] == pytest.approx(
        np.concatenate(nats).sum() / math.log(2) / text_bytes, rel=1e-4
    )
    # As `memjax eval` and `TrainedModel.score`.
    scorer = Scorer(module, params, run.ids)
    likelihoods = scorer.score([([], text) for text in texts])
    total = sum(one.log_probability for one in likelihoods)
    assert -total / sum(map(len, texts)) == pytest.approx(found[0], rel=1e-4)
    own, is_argmax = scorer.score_tokens([], texts[0])
    np.testing.assert_allclose(own, nats[0], rtol=1e-3)
    assert is_argmax.tolist() == right[0].tolist()


@pytest.mark.quick_cases("first_n_left")
def test_reconstruction(run: Run, draw: Callable[..., Any]) -> None:
    module, params, found, results = shown(run, "auto", draw, "reconstruction", "autoencoder")
    codec, chunks = make_codec(module, run.ids), held_out(run).reshape(-1, 8)
    scores = token_scores(codec, params, chunks, 64)
    measured = held(scores.of_texts(), codec.vocabulary)
    np.testing.assert_allclose(found, [measured.nats.value, measured.accuracy.value], rtol=1e-5)
    assert results["autoencoder_tokens"] == (chunks != run.ids.pad).sum() == scores.weight.sum()


@pytest.mark.slow
def test_copies(run: Run, draw: Callable[..., Any]) -> None:
    module, params, _, results = shown(run, "memory", draw, "copy", "copy")
    codec = make_codec(module, run.ids, results["asked_to_copy_by"])
    halves = held_out(run)[:, : codec.length]
    scores = token_scores(codec, params, halves, 64)
    measured = held(scores.of_texts(), codec.vocabulary)
    wanted = [results["copy_nats"], results["copy_accuracy"]]
    np.testing.assert_allclose([measured.nats.value, measured.accuracy.value], wanted, rtol=1e-5)
    assert results["copy_tokens"] == (halves != run.ids.pad).sum()
