"""The evaluation at the end of a run, and the numbers in `results.json`."""

import datetime
import functools
import os
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.checkpoints.reading import load_sound, read_params
from memjax.config import Config, Stage
from memjax.evaluation.evaluators import open_evaluators
from memjax.evaluation.evaluators.held_out import BASE, COPY_BASE, held_out
from memjax.models import build, can
from memjax.progress import track
from memjax.sharding import on_mesh
from memjax.training.init_state import Run, abstract_params
from memjax.training.optimizer import Tree, split
from memjax.version import __version__

FORMAT_VERSION = 1
HEADLINES = (
    "copy_accuracy",
    "blank_copy_accuracy",
    "next_token_nats",
    "next_token_bits_per_byte",
    "free_running_exact_chunks",
)
"""Numbers of the final model and of every control that stand at the top of the results."""
READING = (
    "recall_accuracy",
    "recall_blank_accuracy",
    "recall_exact",
    "recall_blank_exact",
    "recall_exact_worst_tenth",
    "next_token_nats_by_memories",
)
"""Mappings from the number of memories, which stand there too where a model has them."""
EMPTY = {"next_token_nats": f"{BASE}_nats", "copy_accuracy": f"{COPY_BASE}_accuracy"}
"""Numbers of the final model with no memory in view, which stand there as those of `no_memory` in a
run without that control."""
AUTOENCODER = ("autoencoder_accuracy", "autoencoder_exact")
"""Shares of tokens and of whole chunks that the autoencoder reconstructs from memories."""
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")


def evaluate_run(run: Run, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Evaluate the model of every stage and return the contents of `results.json`.

    Args:
      run: the run; every stage has its last checkpoint.
      stages: the metadata of each stage's last checkpoint.
    """
    config = run.config
    order = config.curriculum + config.controls
    models: dict[str, dict[str, Any]] = {}
    with run.reporter.active():
        for name in track(order, "evaluation"):
            models[name] = _evaluate_model(run, name)
    passages, far = (
        {name: model.pop(key) for name, model in models.items() if key in model}
        for key in ("passages", "far_passages")
    )
    _inherit_autoencoder(run, models)
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "memjax_version": __version__,
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU"
        " cores",
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in VERSIONS},
        "command": shlex.join(["memjax", *sys.argv[1:]]) if sys.argv[1:2] == ["train"] else "",
        "curriculum": list(config.curriculum),
        "controls": list(config.controls),
        "data": _data(run),
        "chance": _chance(run),
        "stages": {name: _stage(run, name, stages[name]) for name in order},
        "models": models,
        "passages": _passages(run, passages),
        "far_passages": _passages(run, far),
    }
    return headline(results, config.curriculum[-1], config.controls) | results


def headline(results: dict[str, Any], final: str, controls: tuple[str, ...]) -> dict[str, Any]:
    """Return top-level numbers: the final model's without a suffix, a control's with `_NAME`."""
    models, stages = results["models"], results["stages"].values()
    suffixes = {"": final} | {f"_{control}": control for control in controls}
    seconds = sum(stage["seconds"] for stage in stages)
    empty = {} if "no_memory" in controls else EMPTY
    return {
        f"{key}{suffix}": models[name].get(key)
        for key in HEADLINES + READING
        for suffix, name in suffixes.items()
        if key in HEADLINES or key in models[name]
    } | {
        **{
            f"{key}_no_memory": models[final][found]
            for key, found in empty.items()
            if found in models[final]
        },
        **{key: models[final].get(key) for key in AUTOENCODER},
        "tokens_per_second": sum(stage["tokens"] for stage in stages) / max(seconds, 1e-9),
        "seconds_training": seconds,
    }


def _evaluate_model(run: Run, name: str) -> dict[str, Any]:
    """Return the numbers of all evaluators of the end of the run, for one stage."""
    path, _, _ = load_sound(run.checkpoints(name), run.config.stages[name].steps)
    params = read_params(path, run.places)
    found: dict[str, Any] = {}
    for evaluator in open_evaluators(run, name, training=False):
        found |= evaluator.evaluate(params, found)
    return found


def _examples(config: Config) -> int:
    """Return the number of held-out sequences of the largest evaluation of the end of the run."""
    return max((e.examples for e in config.evaluators.values() if not e.every), default=1)


def _inherit_autoencoder(run: Run, models: dict[str, Any]) -> None:
    """Give stages that freeze an autoencoder's encoder the numbers of that autoencoder."""
    for name in run.config.curriculum:
        origin = _encoder_origin(run, name)
        found = models[origin] if origin else {}
        models[name] |= {key: found[key] for key in AUTOENCODER if found.get(key) is not None}


def _encoder_origin(run: Run, name: str) -> str | None:
    stage = run.config.stages[name]
    if can(stage.family, "reconstructs"):
        return name
    _, trainable = _parameters(run, stage)
    whole = [source.path for source in stage.sources if source.part in ("", "encoder")]
    if "encoder" in trainable or not whole or whole[-1] not in run.config.stages:
        return None
    return _encoder_origin(run, whole[-1])


def _parameters(run: Run, stage: Stage) -> tuple[Tree, Tree]:
    """Return the shapes of a stage's parameters, and of those that it trains."""
    shapes = abstract_params(build(run.config, stage), run.config, stage)
    return shapes, split(shapes, stage.trainable, "trainable")[0]


def _stage(run: Run, name: str, meta: dict[str, Any]) -> dict[str, Any]:
    stage = run.config.stages[name]
    shapes, trainable = _parameters(run, stage)
    count = functools.partial(jax.tree.reduce, lambda n, x: n + x.size, initializer=0)
    tokens = run.tokens(name, stage.steps)
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
        "init_parts": dict(stage.init_parts),
    } | {key: meta[key] for key in ("before",) if meta.get(key)}


def _data(run: Run) -> dict[str, Any]:
    config, data = run.config, run.data
    return {
        "corpus": config.data.corpus,
        "documents": data.info.get("documents"),
        "train_tokens": data.train.info["tokens"],
        "validation_tokens": data.validation.info["tokens"],
        "evaluated_rows": min(_examples(config), len(data.validation)),
        "vocabulary": config.data.vocab_size,
        "bytes_per_token": data.info["bytes_per_token"],
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "row_tokens": config.data.sequence_length,
        "chunk_length": config.model.chunk_length,
        "chunks": config.chunks,
    } | _memory(config)


def _memory(config: Config) -> dict[str, int]:
    """Return the size of a memory, and that of the decoder's keys and values.

    Empty where the final model reads no memories, or its decoder has no KV cache.
    """
    stage, model = config.stages[config.curriculum[-1]], config.model
    decoder = model.decoder
    reads = can(stage.family, "reads_memories") and stage.memory
    if not reads or decoder.kind != "transformer":
        return {}
    return {
        "memory_vectors": model.memory_vectors,
        "memory_width": model.encoder.width,
        "decoder_layers": decoder.layers,
        "decoder_kv_heads": decoder.kv_heads or decoder.heads,
        "decoder_head_dim": decoder.attention_head_dim,
    }


def _chance(run: Run) -> dict[str, float]:
    """Return the numbers of guessing: uniformly, and always the most frequent token."""
    vocabulary = run.config.data.vocab_size
    count = on_mesh(lambda rows: jnp.bincount(rows.ravel(), length=vocabulary), run.mesh)
    counts = np.sum([count(batch) for batch in held_out(run, _examples(run.config))], axis=0)
    counts[run.ids.pad] = 0  # The last batch is filled up with padding.
    return {
        "uniform_nats": float(np.log(vocabulary)),
        "most_frequent_token_accuracy": float(counts.max() / counts.sum()),
    }


def _passages(run: Run, passages: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return held-out chunks beside the reconstructions of the final model and of one control."""
    final = passages.get(run.config.curriculum[-1], [])
    control = next((passages[name] for name in run.config.controls if name in passages), None)
    if control is None:
        return final
    return [
        ours | {"control": theirs["regenerated"], "control_correct": theirs["correct"]}
        for ours, theirs in zip(final, control, strict=False)
    ]
