"""Weights of another run whose rows are padded on the other side."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

from memjax.checkpoints import CheckpointError
from memjax.config import Optimizer
from memjax.data import RowsError, prepare
from memjax.models import build, example
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.testing.workdir import write_stage
from memjax.training.encode_corpus import encode_corpus
from memjax.training.init_state import Run, init_train_state

NAME = "autoencoder"


@pytest.mark.quick_cases("first_n_left-per_document", "packed-first_n_left")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("first_n", "first_n_left"), ("first_n_left", "per_document"), ("packed", "first_n_left")],
)
def test_rows_padded_on_the_other_side_are_refused(
    theirs: str, ours: str, tmp_path: Path, draw: Callable[..., Any]
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", words=5)
    config = tiny_config(corpus, optimizer=Optimizer())
    source = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=theirs))
    there = dataclasses.replace(
        config.stages[NAME], init_from=str(tmp_path / "a" / "stages" / NAME)
    )
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, packing=ours),
        stages=dict(config.stages) | {NAME: there},
    )
    data = prepare(config.data, tmp_path / "b" / "data", lambda _: None)
    module = build(config, config.stages[NAME])
    params = draw(module, example(module, config))["params"]
    write_stage(tmp_path / "a", source, NAME, data.tokenizer.fingerprint, params)
    run = Run(config, tmp_path / "b", data, Reporter())
    side = {"first_n": "right", "first_n_left": "left", "per_document": "right", "packed": "right"}
    said = f"rows padded on the {side[ours]}, expected the {side[theirs]}, as in training"
    said = re.escape(f"{said} (config.data.packing={theirs!r})")
    if theirs == "packed":
        init_train_state(run, NAME, module, optax.sgd(1.0))
    else:
        with pytest.raises(CheckpointError, match=rf"^config\.data\.packing='{ours}': {said}"):
            init_train_state(run, NAME, module, optax.sgd(1.0))
    with pytest.raises(RowsError, match=rf"/b/data/rows-32: {said}"):
        encode_corpus(there.init_from, tmp_path / "b" / "data", tmp_path / "memories")


@pytest.mark.parametrize("packing", ["packed", "per_document", "first_n_left"])
def test_steps_are_counted_in_tokens_without_padding(packing: str, tmp_path: Path) -> None:
    """One epoch has the tokens of the training rows."""
    corpora = [write_corpus(tmp_path / f"{n}.jsonl", words=n, seed=n) for n in (5, 20)]
    config = tiny_config(
        f"0.5*{corpora[0]} + 0.5*{corpora[1]}" if packing == "per_document" else corpora[1]
    )
    data = dataclasses.replace(config.data, packing=packing)
    prepared = prepare(data, tmp_path / "data", lambda _: None)
    run = Run(config, tmp_path, prepared, Reporter())
    rows, batch = prepared.train, config.stages[NAME].batch_size
    parts = getattr(rows, "parts", [rows])
    tokens = [
        (part.read(range(len(part))) != prepared.tokenizer.pad_id).sum(axis=1) for part in parts
    ]
    # The parts of a mixture have equal weights.
    mean = np.mean([own.mean() for own in tokens])
    assert run.tokens(NAME, 1000) == round(1000 * batch * mean)
    if packing == "packed":
        assert run.tokens(NAME, 7) == 7 * batch * 32
