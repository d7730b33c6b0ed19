"""The final look at every model of a run, on held-out rows, and the numbers that `results.json` holds."""

import datetime
import functools
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax import __version__
from memjax.checkpoints import load_params
from memjax.config import REGRESSIONS, WEIGHTINGS, Stage
from memjax.data import evaluation_batches
from memjax.instruments import Accuracy, measure, regenerate
from memjax.models import Autoencoder, MemoryModel, build
from memjax.sharding import batch_shards, local_rows, on_mesh, put_batch
from memjax.training.optimizer import split
from memjax.training.pretrained import EMPTY, without_memory
from memjax.training.start import Run, abstract_params

PASSAGES = 6
"""Held-out passages shown in the report."""

FORMAT_VERSION = 1
BATCH_ROWS = 32
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")


def evaluate_run(run: Run, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Measures the model each stage left and gathers what `results.json` says.

    Args:
      run: the run; every stage has its last checkpoint.
      stages: what the last checkpoint of each stage says of it (`seconds` trained above all).
    """
    config = run.config
    order = config.curriculum + config.controls
    total = sum(_count(run, config.evaluation_rows) + _count(run, config.recall_rows) for _ in order)
    models, regenerated = {}, {}
    with run.reporter.bar("evaluation", total) as bar:
        for name in order:
            models[name], regenerated[name] = _evaluate_model(run, name, bar.advance)
    _inherit_autoencoder(run, models)
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "memjax_version": __version__,
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "versions": {"python": platform.python_version()} | {package: metadata.version(package) for package in VERSIONS},
        "command": shlex.join(["memjax", *sys.argv[1:]]) if sys.argv[1:2] == ["train"] else "",
        "curriculum": list(config.curriculum),
        "controls": list(config.controls),
        "data": _data(run),
        "chance": _chance(run),
        "stages": {name: _stage(run, name, stages[name]) for name in order},
        "models": models,
        "passages": _passages(run, regenerated),
    }
    return headline(results, config.curriculum[-1], config.controls) | results


def headline(results: dict[str, Any], final: str, controls: tuple[str, ...]) -> dict[str, Any]:
    """The top-level numbers: the final model's without a suffix, each control's under `_NAME`."""
    models, top = results["models"], {}
    for key in (
        "copy_accuracy",
        "blank_copy_accuracy",
        "next_token_nats",
        "next_token_bits_per_byte",
        "free_running_exact_chunks",
    ):
        top[key] = models[final].get(key)
        top |= {f"{key}_{control}": models[control].get(key) for control in controls}
    top["autoencoder_accuracy"] = models[final].get("autoencoder_accuracy")
    seconds = sum(stage["seconds"] for stage in results["stages"].values())
    top["tokens_per_second"] = sum(stage["tokens"] for stage in results["stages"].values()) / max(seconds, 1e-9)
    top["seconds_training"] = seconds
    return top


def _batch_rows(run: Run) -> int:
    """Rows in a batch: at least `BATCH_ROWS`, and as many on every device."""
    shards = batch_shards(run.mesh)
    return -(-BATCH_ROWS // shards) * shards


def _count(run: Run, rows: int) -> int:
    """Batches that hold `rows` of the held-out rows."""
    return -(-min(rows, len(run.data.validation)) // _batch_rows(run))


def _batches(run: Run, rows: int) -> Iterator[jax.Array]:
    """Up to `rows` held-out rows, over all devices."""
    batch_rows = _batch_rows(run)
    part = local_rows(run.mesh, batch_rows)
    for batch in evaluation_batches(run.data.validation, batch_rows, rows, run.ids.pad, part):
        yield put_batch(batch, run.mesh, batch_rows)


def _evaluate_model(run: Run, name: str, advance: Any) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
    config, stage, data = run.config, run.config.stages[name], run.data
    params, _ = load_params(run.checkpoints(name), place=run.places)
    module = build(config, stage)
    rows = _batches(run, config.evaluation_rows)
    lengths = data.tokenizer.byte_lengths
    base, empty = without_memory(module, stage), {}
    if base is not None:
        held_out = _batches(run, config.evaluation_rows)
        asked = measure(base, params, held_out, ("next_token",), run.ids, lengths, stage=stage, mesh=run.mesh)
        empty = _numbers({EMPTY: asked["next_token"]})
    if not isinstance(module, MemoryModel):
        names = _measurable(stage)
        found = measure(module, params, rows, names, run.ids, lengths, advance, stage, run.mesh) if names else {}
        advance(_count(run, config.recall_rows))
        if isinstance(module, Autoencoder):
            found["autoencoder"] = found.pop("reconstruction")
        return _numbers(found) | empty, None
    found = measure(
        module, params, rows, ("next_token", "copy", "plain_copy", "blank_copy"), run.ids, lengths, advance, stage, run.mesh
    )
    # Each model is asked in the way it answers best: one that never trained to copy knows neither delimiter nor mark.
    ask = max(("copy", "plain_copy"), key=lambda name: found[name].accuracy)
    found["copy"] = found[ask]
    said, held = _recall(run, module, params, ask, stage, advance)
    exact = (said == held).all(axis=-1)
    return _numbers(found) | empty | {
        "asked_to_copy_by": ask,
        "free_running_exact_chunks": float(exact.mean()),
        "free_running_token_accuracy": float((said == held).mean()),
        "free_running_chunks": int(exact.size),
    }, (said, held)


def _measurable(stage: Stage) -> tuple[str, ...]:
    """What held-out rows tell of the stage's model: its objectives in their plain form."""
    if stage.family == "autoencoder":
        return tuple(sorted({"reconstruction", *stage.objectives}))
    plain = {"next_token" if name in WEIGHTINGS else name for name in stage.objectives}
    return tuple(sorted(plain - set(REGRESSIONS)))


def _numbers(found: dict[str, Accuracy]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, accuracy in found.items():
        numbers[f"{name}_nats"] = accuracy.nats
        for key, estimate in (("nats", accuracy.nats_estimate), ("accuracy", accuracy.accuracy_estimate)):
            numbers[f"{name}_{key}_interval"] = [estimate.low, estimate.high]
        numbers[f"{name}_bits_per_byte"] = accuracy.bits_per_byte
        numbers[f"{name}_accuracy"] = accuracy.accuracy
        numbers[f"{name}_accuracy_by_position"] = accuracy.by_position
        numbers[f"{name}_tokens"] = accuracy.tokens
    return numbers


def _recall(run: Run, module: MemoryModel, params: Any, ask: str, stage: Stage, advance: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the model regenerates of held-out chunks, and the chunks: int [chunks, L] each."""
    said, held = [], []
    for batch in _batches(run, run.config.recall_rows):
        found = regenerate(module, params, batch, run.ids, ask, stage.compat, run.mesh)
        one, other = map(np.asarray, found)
        # The last batch is filled up with rows of padding.
        real = (other != run.ids.pad).any(axis=(1, 2))
        said.append(one[real])
        held.append(other[real])
        advance()
    return tuple(np.concatenate(x).reshape(-1, module.config.chunk_length) for x in (said, held))  # type: ignore[return-value]


def _inherit_autoencoder(run: Run, models: dict[str, Any]) -> None:
    """A stage whose encoder came frozen from an autoencoder has that autoencoder's accuracy."""
    for name in run.config.curriculum:
        origin = _encoder_origin(run, name)
        if origin and "autoencoder_accuracy" not in models[name]:
            models[name]["autoencoder_accuracy"] = models[origin]["autoencoder_accuracy"]


def _encoder_origin(run: Run, name: str) -> str | None:
    stage = run.config.stages[name]
    if stage.family == "autoencoder":
        return name
    shapes = abstract_params(build(run.config, stage), run.config, stage)
    trainable, _ = split(shapes, stage.trainable, "trainable")
    if "encoder" in trainable or stage.init_from not in run.config.stages or stage.init_part not in ("", "encoder"):
        return None
    return _encoder_origin(run, stage.init_from)


def _stage(run: Run, name: str, meta: dict[str, Any]) -> dict[str, Any]:
    stage: Stage = run.config.stages[name]
    shapes = abstract_params(build(run.config, stage), run.config, stage)
    trainable, _ = split(shapes, stage.trainable, "trainable")
    count = functools.partial(jax.tree.reduce, lambda n, x: n + x.size, initializer=0)
    tokens = stage.steps * stage.rows * run.config.data.row_tokens
    return {
        "steps": stage.steps,
        "seconds": meta["seconds"],
        "tokens": tokens,
        "tokens_per_second": tokens / max(meta["seconds"], 1e-9),
        "parameters": count(shapes),
        "trainable_parameters": count(trainable),
        "objectives": dict(stage.objectives),
        "init_from": stage.init_from,
        "init_part": stage.init_part,
        "memory": stage.memory,
        "learning_rate": stage.learning_rate,
    } | {key: meta[key] for key in ("before",) if meta.get(key)}


def _data(run: Run) -> dict[str, Any]:
    config, data = run.config, run.data
    return {
        "corpus": config.data.corpus,
        "documents": data.info.get("documents"),
        "train_tokens": data.train.info["tokens"],
        "validation_tokens": data.validation.info["tokens"],
        "evaluated_rows": min(config.evaluation_rows, len(data.validation)),
        "vocabulary": config.data.vocabulary,
        "bytes_per_token": data.info["bytes_per_token"],
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "row_tokens": config.data.row_tokens,
        "chunk_length": config.model.chunk_length,
        "chunks": config.chunks,
    }


def _chance(run: Run) -> dict[str, float]:
    """What guessing gives: uniform over the vocabulary, and always the most frequent token."""
    vocabulary = run.config.data.vocabulary
    count = on_mesh(lambda rows: jnp.bincount(rows.ravel(), length=vocabulary), run.mesh)
    counts = np.sum([count(batch) for batch in _batches(run, run.config.evaluation_rows)], axis=0)
    counts[run.ids.pad] = 0  # What the last batch is filled up with.
    return {
        "uniform_nats": float(np.log(vocabulary)),
        "most_frequent_token_accuracy": float(counts.max() / counts.sum()),
    }


def _passages(run: Run, regenerated: dict[str, tuple[np.ndarray, np.ndarray] | None]) -> list[dict[str, Any]]:
    """Held-out chunks beside what the final model, and the first control, make of their memories."""
    final = regenerated[run.config.curriculum[-1]]
    if final is None:
        return []
    control = next((regenerated[name] for name in run.config.controls if regenerated[name] is not None), None)
    pieces = run.data.tokenizer.pieces
    said, held = final
    # Chunks spread evenly over the held-out text, not chosen by how well they came out.
    chosen = np.linspace(0, len(held) - 1, min(PASSAGES, len(held))).astype(int)
    passages = []
    for i in chosen:
        passage = {
            "source": pieces(held[i]),
            "regenerated": pieces(said[i]),
            "correct": (said[i] == held[i]).tolist(),
        }
        if control is not None:
            passage |= {"control": pieces(control[0][i]), "control_correct": (control[0][i] == held[i]).tolist()}
        passages.append(passage)
    return passages


def write_results(results: dict[str, Any], path: Path) -> None:
    """Writes `results.json` whole or not at all."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
