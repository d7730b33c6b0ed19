"""Fixtures for tests of memjax and of code that uses it: a small corpus and a run that takes seconds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from memjax.config import Backbone, Config, Data, Model, Optimizer, Stage

WORDS = (
    "a memory holds what the chunk said and the decoder reads it in place of words while tokens pass by one after another"
    " until the row ends or the text does"
).split()
FROZEN_ENCODER = (("^encoder/", False), (".*", True))
MATRICES = r"blocks/.*(kernel|mixing)$"


def write_corpus(path: Path, documents: int = 60, words: int = 60, seed: int = 0) -> Path:
    """A JSON-lines file of random sentences over a few words; the same for the same arguments."""
    generator = np.random.default_rng(seed)
    lines = (f'{{"text": "{" ".join(generator.choice(WORDS, words))}."}}\n' for _ in range(documents))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def tiny_model(**changes: Any) -> Model:
    """Width 16, one layer, chunks of 8 tokens."""
    small: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 2.0}
    model = Model(
        chunk_length=8,
        encoder=Backbone(kind="mixer", mlp="gelu", **small),
        decoder=Backbone(kind="transformer", output_gate=True, **small),
        reconstructor=Backbone(kind="mixer", mlp="gelu", **small),
    )
    return dataclasses.replace(model, **changes)


def tiny_config(corpus: Path | str, steps: int = 8, **changes: Any) -> Config:
    """Autoencoder, combined on its frozen encoder, and both controls; `steps` each, a checkpoint every other step."""
    stage = Stage(rows=8, steps=steps, warmup_steps=2, learning_rate=3e-3)
    both = {"next_token": 1.0, "copy": 1.0}
    control = dataclasses.replace(stage, objectives={"next_token": 1.0})
    config = Config(
        name="tiny",
        data=Data(corpus=str(corpus), vocabulary=320, row_tokens=32),
        model=tiny_model(),
        optimizer=Optimizer(rules=((MATRICES, "muon"), (".*", "adamw")), rate_rules=((MATRICES, 10.0), (".*", 1.0))),
        stages={
            "autoencoder": dataclasses.replace(stage, family="autoencoder", objectives={"reconstruction": 1.0}),
            "combined": dataclasses.replace(
                stage, objectives=both, init_from="autoencoder", init_part="encoder", trainable=FROZEN_ENCODER
            ),
            "causal_control": control,
            "no_memory": dataclasses.replace(control, memory=False),
        },
        curriculum=("autoencoder", "combined"),
        controls=("causal_control", "no_memory"),
        log_every=1,
        checkpoint_every=2,
        evaluate_every=4,
        evaluation_rows=16,
    )
    return dataclasses.replace(config, **changes)


__all__ = ["tiny_config", "tiny_model", "write_corpus"]
