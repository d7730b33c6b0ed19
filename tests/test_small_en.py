"""The released model small-en: what it weighs, what its memories hold, and training it further."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import memjax
from memjax import released
from memjax.cli.arguments import read_config
from memjax.evaluation.instruments.rounding_loss import rounding_loss
from memjax.inference.expansion import accuracy_against

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "memjax" / "released" / "small-en"
CARD = json.loads((ROOT / "docs" / "small_en.json").read_text(encoding="utf-8"))
TEXT = (
    "The letter came on a Tuesday, when the rain had stopped and the road to the mill was only mud."
    " Nobody at the farm could read it but the boy, and he stood by the window with his back to"
    " them all, turning it over in his hands, as if the outside of it might say enough."
)
"""Written for this test."""


@pytest.fixture(scope="module")
def model():
    return memjax.load("small-en")


def test_it_is_small_and_has_a_card():
    assert released.names() == ("small-en",)
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(book["sha256"] in card for book in CARD["texts"])
    assert not any("Eliot_Adam" in book["file"] for book in CARD["texts"])


def test_the_bars_were_reached():
    """Of a novel that it was not trained on, as the card's command measured them."""
    whole, recall = CARD["whole"], CARD["recall"]["recall"]
    assert whole["chunks"] > 10_000 and CARD["asked"] >= 1000
    assert whole["right"] >= 0.99 and whole["exact"] >= 0.92
    assert recall["right"] >= 0.98 and recall["exact"] >= 0.88
    assert CARD["nats"]["small_en"] <= 1.02 * CARD["nats"]["causal_control"]


@pytest.mark.slow
def test_a_text_is_given_back_recalled_and_continued(model):
    chunks = model.chunks([TEXT])
    store = model.compress(chunks)
    assert model.reconstruct(store)[0] == TEXT
    every = range(len(store))
    found = model.recall_tokens(store, every)
    assert accuracy_against(store, found, chunks, "the text", every).tokens.value >= 0.98
    assert "".join(model.generate("", 12, store)).strip()


def test_the_loss_of_a_short_text_is_that_of_what_is_given_back(model):
    """It has no chunk that is full."""
    loss = rounding_loss(model, model.chunks(["It was late, and he had left."]), "bfloat16")
    assert loss.accuracy.value == 1 and loss.rounded[0].accuracy.value == 1


@pytest.mark.slow
def test_it_trains_further_on_other_text(tmp_path):
    """By the config's own variant: next tokens of held-out text of that kind become likelier."""
    generator = np.random.default_rng(0)
    nouns, verbs = ("lamp", "river", "engine", "teacup", "ledger"), ("weighs", "follows", "repairs")
    lines = (
        f"Item {n}: the {generator.choice(nouns)} {generator.choice(verbs)} the"
        f" {generator.choice(nouns)}; see page {generator.integers(100)}.\n"
        for n in range(20_000)
    )
    (tmp_path / "own.txt").write_text("".join(lines))
    overrides = {
        "data.corpus": str(tmp_path / "own.txt"),
        "stages.small_en.steps": "20",
        "stages.small_en.warmup_steps": "2",
        "stages.small_en.batch_size": "1",
    }
    config = read_config("config", str(ROOT / "configs/release.py:continue"), overrides.items())
    evaluators = {
        "validation": dataclasses.replace(config.evaluators["validation"], every=0, examples=4)
    }
    config = dataclasses.replace(config, evaluators=evaluators)
    memjax.run_experiment(config, tmp_path / "run")
    before, after = memjax.load("small-en"), memjax.load(tmp_path / "run")
    assert after.provenance.sha256 == before.provenance.sha256
    text = (tmp_path / "own.txt").read_text()[-2000:]
    nats = [np.mean(model.score(text).nats) for model in (before, after)]
    assert nats[1] < 0.7 * nats[0]
