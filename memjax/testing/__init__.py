"""Fixtures for tests of memjax and of code that uses it: a small corpus and a short run."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from memjax.config import (
    FREEZING,
    Backbone,
    Config,
    Data,
    Model,
    Optimizer,
    Stage,
    to_json,
    usual_evaluators,
)

WORDS = (
    "a memory holds what the chunk said and the decoder reads it in place of words while tokens"
    " pass by one after another"
    " until the row ends or the text does"
).split()
MATRICES = r"blocks/.*(kernel|mixing)$"


def write_corpus(path: Path, documents: int = 60, words: int = 60, seed: int = 0) -> Path:
    """Write a JSON-lines file of random sentences over a few words, determined by the arguments."""
    generator = np.random.default_rng(seed)
    lines = (
        f'{{"text": "{" ".join(generator.choice(WORDS, words))}."}}\n' for _ in range(documents)
    )
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_config(path: Path, config: Config) -> Path:
    """A config file for `--config`."""
    path.write_text(
        "from memjax.config import from_json, to_config_dict\n\n\ndef get_config():\n"
        f"    return to_config_dict(from_json({to_json(config)!r}))\n",
        encoding="utf-8",
    )
    return path


def tiny_model(**changes: Any) -> Model:
    """Return a model of width 16 with one layer and chunks of 8 tokens."""
    small: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 2.0}
    model = Model(
        chunk_length=8,
        encoder=Backbone(kind="mixer", mlp="gelu", **small),
        decoder=Backbone(kind="transformer", output_gate=True, **small),
        reconstructor=Backbone(kind="mixer", mlp="gelu", **small),
    )
    return dataclasses.replace(model, **changes)


def tiny_config(corpus: Path | str, steps: int = 8, **changes: Any) -> Config:
    """Return a run of an autoencoder, a memory model on its frozen encoder, and both controls.

    Every stage has `steps` steps and a checkpoint every other step.
    """
    stage = Stage(batch_size=8, steps=steps, warmup_steps=2, learning_rate=3e-3)
    both = {"next_token": 1.0, "copy": 1.0}
    control = dataclasses.replace(stage, objectives={"next_token": 1.0})
    config = Config(
        name="tiny",
        data=Data(corpus=str(corpus), vocab_size=320, sequence_length=32),
        model=tiny_model(),
        optimizer=Optimizer(
            rules=((MATRICES, "muon"), (".*", "adamw")), rate_rules=((MATRICES, 10.0), (".*", 1.0))
        ),
        stages={
            "autoencoder": dataclasses.replace(
                stage, family="autoencoder", objectives={"reconstruction": 1.0}
            ),
            "combined": dataclasses.replace(
                stage,
                objectives=both,
                init_from="autoencoder",
                init_part="encoder",
                trainable=FREEZING["frozen_all"],
            ),
            "causal_control": control,
            "no_memory": dataclasses.replace(control, memory=False),
        },
        curriculum=("autoencoder", "combined"),
        controls=("causal_control", "no_memory"),
        log_every=1,
        checkpoint_every=2,
        evaluators=usual_evaluators(every=4, examples=16),
    )
    return dataclasses.replace(config, **changes)


__all__ = ["tiny_config", "tiny_model", "write_config", "write_corpus"]
