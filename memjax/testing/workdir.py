"""A workdir as training leaves one: random weights, real data, and the numbers of an evaluation."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from memjax.checkpoints import Checkpoints
from memjax.config import Config, Optimizer, to_json
from memjax.data import prepare
from memjax.experiment.run import claim_workdir
from memjax.models import build, example
from memjax.testing import tiny_config, write_corpus

STEP = 8


def write_stage(
    workdir: Path,
    config: Config,
    name: str,
    fingerprint: str,
    params: Mapping[str, Any],
    step: int = STEP,
) -> None:
    """Write the checkpoint of a stage as training leaves one."""
    meta = {
        "stage": name,
        "config": to_json(config),
        "tokenizer": fingerprint,
        "next_row": 0,
        "seconds": 0.0,
    }
    with Checkpoints(workdir / "stages" / name / "checkpoints") as checkpoints:
        checkpoints.save(step, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(step)}, meta)


def write_workdir(folder: Path, draw: Callable[..., Any]) -> Path:
    """Write the stages `autoencoder`, `combined` (on the same encoder) and `causal_control`.

    Args:
      folder: where the corpus and the workdir `run` are written.
      draw: variables of a module, from the module, an example and a seed.

    Returns:
      The workdir.
    """
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), optimizer=Optimizer())
    stages = {name: config.stages[name] for name in ("autoencoder", "combined")}
    stages["causal_control"] = dataclasses.replace(
        config.stages["causal_control"], family="causal_lm"
    )
    config = dataclasses.replace(config, stages=stages, controls=("causal_control",))
    workdir = folder / "run"
    claim_workdir(config, workdir)
    tokenizer = prepare(config.data, workdir / "data", lambda _: None).tokenizer
    encoder = None
    for seed, (name, stage) in enumerate(stages.items()):
        module = build(config, stage)
        params = draw(module, example(module, config), seed=seed)["params"]
        encoder = encoder or params["encoder"]
        params = params | {"encoder": encoder} if "encoder" in params else params
        write_stage(workdir, config, name, tokenizer.fingerprint, params)
    numbers = {
        "next_token_nats": 4.0625,
        "next_token_nats_interval": [4.0, 4.125],
        "copy_accuracy": 0.5,
        "free_running_exact_chunks": 0.25,
        "asked_to_copy_by": "copy",
        "copy_tokens": 64,
    }
    results = {"stages": {"combined": {"steps": STEP}}, "models": {"combined": numbers}}
    (workdir / "results.json").write_text(json.dumps(results))
    logged = [
        {"step": 4, "split": "validation", "reconstruction/nats": 5.0},
        {
            "step": STEP,
            "split": "validation",
            "reconstruction/nats": 4.5,
            "reconstruction/accuracy": 0.125,
        },
        {"step": STEP, "split": "train", "reconstruction/nats": 1.0},
    ]
    lines = "\n".join(map(json.dumps, logged))
    (workdir / "stages" / "autoencoder" / "metrics.jsonl").write_text(lines + "\n")
    return workdir
