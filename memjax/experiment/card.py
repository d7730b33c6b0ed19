"""The model card of an export: the model, its training, its held-out numbers and how to load it."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from memjax.checkpoints.reading import attempt
from memjax.config import Backbone, Config
from memjax.evaluation import numbers
from memjax.evaluation.instruments import suite
from memjax.evaluation.instruments.tables import Table
from memjax.experiment.report.run import ReportError, read_curves, read_run
from memjax.experiment.report.words import corpus_name
from memjax.experiment.templates import render
from memjax.files import read_json
from memjax.inference.codec import CODECS
from memjax.inference.generator import STRATEGIES
from memjax.inference.trained_model import TrainedModel
from memjax.models import can, example, find
from memjax.version import __version__

LICENSE = "unknown"
"""The Hugging Face Hub's name of a license that is not stated."""
_UNITS = (
    ("_bits_per_byte", "bits per byte of text", False),
    ("_exact_chunks", "share of chunks without an error", True),
    ("_accuracy", "share of tokens right", True),
    ("_nats", "nats per token", False),
)


def card_text(
    model: TrainedModel, name: str, dtype: str = "float32", license_id: str = LICENSE
) -> str:
    """Return the text of an export's `README.md`.

    Args:
      model: the model; metrics and results of instruments are read from its run's folder.
      name: the name of the export.
      dtype: of the weights that are written.
      license_id: for the front matter.
    """
    leaves = flatten_dict(model.params, sep="/")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    run, step, tokenizer = model.folder.parent.parent, model.step, model.tokenizer
    config, stage = model.config, model.settings
    context = {
        "name": name,
        "license": license_id,
        "version": __version__,
        "stage_name": model.stage,
        "step": step,
        "dtype": dtype,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "config": config,
        "stage": stage,
        "what": find(stage.family).summary,
        "tags": list(
            dict.fromkeys(("memjax", "jax", "flax", "memory-model", stage.family.replace("_", "-")))
        ),
        "pipeline": "text-generation" if _generates(stage.family) else "",
        "corpus": corpus_name(config.data.corpus) or "unknown",
        "sizes": list(_sizes(config, model.stage, shapes)),
        "size_by_part": _parts(shapes),
        "lineage": list(_lineage(config, model.stage)),
        "measured": list(_measured(run, model.stage, step)),
        "tables": list(_instruments(run, model.stage, step)),
        "example": _example(model),
        "padding": "" if tokenizer is None else f"; id {tokenizer.pad_id} is padding",
        "tokens": list(example(model.module, config).shape),
        "limits": list(_limits(model, dtype)),
    }
    filters = {"cell": _cell, "quoted": json.dumps, "count": numbers.count}
    return render("card.md.jinja", filters, **context)


def _cell(value: Any) -> str:
    """Text that stays within a cell of a table."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in text)


def _sizes(
    config: Config, stage: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, str]]:
    model, family = config.model, find(config.stages[stage].family)
    yield "vocabulary", f"{config.data.vocab_size:,} tokens"
    yield "row", f"{config.data.sequence_length:,} tokens"
    yield "chunk", f"{model.chunk_length:,} tokens"
    if any(path.startswith("encoder/") for path in shapes):
        squeezed = f", squeezed through {model.bottleneck}" if model.bottleneck else ""
        yield (
            "memory of a chunk",
            f"{model.memory_vectors} × {model.encoder.width} numbers{squeezed}",
        )
        yield "encoder", _stack(model.encoder)
    if any(path.startswith("backbone/") for path in shapes):
        yield "decoder", _stack(getattr(model, family.backbone))


def _stack(backbone: Backbone) -> str:
    return (
        f"{backbone.kind.replace('_', ' ')}, {backbone.layers} layers of width"
        f" {backbone.width}, {backbone.heads} heads"
    )


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters of every part of the model."""
    parts: Counter[str] = Counter()
    for path, shape in shapes.items():
        parts[path.partition("/")[0]] += math.prod(shape)
    return parts


def _lineage(config: Config, name: str) -> Iterator[dict[str, Any]]:
    """The stages whose weights went into this one, the first one first."""
    stage = config.stages[name]
    taken = []
    for source in stage.sources:
        path = source.path
        if path in config.stages:
            yield from _lineage(config, path)
        else:
            path = "/".join(Path(path).parts[-3:])
        taken.append(f"{source.part or 'all'} of {path}")
    objectives = ", ".join(
        f"{objective} × {weight:g}" for objective, weight in stage.objectives.items()
    )
    frozen = ", ".join(pattern for pattern, moves in stage.trainable if not moves)
    yield {
        "name": name,
        "family": stage.family,
        "objectives": objectives,
        "steps": stage.steps,
        "rows": stage.batch_size,
        "taken": ", ".join(taken) or "–",
        "frozen": frozen or "–",
    }


def _measured(workdir: Path, name: str, step: int) -> Iterator[tuple[str, str]]:
    """Yield held-out numbers of the stage at this step.

    They are those of the evaluation at the end of the run, or the last ones of its training.
    """
    found: Mapping[str, Any] = {}
    with contextlib.suppress(ReportError):
        run = read_run(workdir)
        if run.section("stages", name).get("steps") == step:
            found = run.section("models", name)
    for key, value in found.items():
        for end, unit, share in _UNITS:
            if key.endswith(end) and numbers.number(value) is not None:
                what = key.removesuffix(end).replace("_", " ")
                what = what.replace("free running token", "free running")
                yield f"{what}, {unit}", _interval(value, found.get(f"{key}_interval"), share)
    path = workdir / "stages" / name / "metrics.jsonl"
    if found or not path.is_file():
        return
    for (split, key), (steps, values) in read_curves(path).items():
        what, _, unit = key.partition("/")
        if split == "validation" and unit in ("nats", "accuracy") and steps[-1] == step:
            share = unit == "accuracy"
            label = "share of tokens right" if share else "nats per token"
            yield f"{what.replace('_', ' ')}, {label}", _interval(values[-1], None, share)


def _interval(value: Any, between: Any, share: bool) -> str:
    show = numbers.percent if share else (lambda x: numbers.decimal(x, 3))
    if isinstance(between, list) and len(between) == 2:
        return f"{show(value)} ({show(between[0])} to {show(between[1])})"
    return show(value)


def _instruments(workdir: Path, name: str, step: int) -> Iterator[Table]:
    """Yield tables of the results of `memjax measure` for the stage at this step."""
    path = workdir / "stages" / name / suite.FILE
    if path.is_file():
        found, _ = attempt(lambda: read_json(path, ReportError))
        if found and found.get("step") == step:
            yield from attempt(lambda: suite.tables_of(found))[0] or ()


def _generates(family: str) -> bool:
    return any(can(family, kept) for kept in STRATEGIES)


def _decodes_memories(family: str) -> bool:
    return any(can(family, way) for way in CODECS)


def _example(model: TrainedModel) -> str:
    if model.tokenizer is not None and "encoder" in model.params:
        return 'memories = model.encode(["A text to remember."])'
    if model.tokenizer is not None and _generates(model.family):
        return 'print(*model.generate("A text to continue", max_new_tokens=50), sep="")'
    return 'output = model.module.apply({"params": model.params}, tokens)'


def _limits(model: TrainedModel, dtype: str) -> Iterator[str]:
    config, stage = model.config, model.settings
    corpus = _cell(corpus_name(config.data.corpus))
    if corpus:
        yield (
            f"It was trained on {corpus} alone. On other kinds of text expect less than the"
            " numbers above."
        )
    else:
        yield "What it was trained on is not known here."
    if _decodes_memories(stage.family):
        yield (
            f"A memory is a lossy copy of {config.model.chunk_length} tokens. A"
            " reconstruction may read well and be wrong: check names and numbers against the text."
        )
    if _generates(stage.family):
        yield (
            "Generated text is neither checked nor filtered, and repeats claims of the training"
            " text."
        )
    if dtype != "float32":
        yield f"Weights are rounded to {dtype}; the numbers above are of the float32 ones."
    if model.tokenizer is None:
        yield "The tokenizer of these weights is unknown."
