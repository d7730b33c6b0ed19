"""The model card of an export: what it is, what it was trained for, what was measured on held-out text, how to load it."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from memjax import __version__
from memjax.checkpoints.reading import attempt
from memjax.config import Backbone, Config
from memjax.data import Tokenizer
from memjax.exporting.manifest import CARD, Manifest
from memjax.models import build, example
from memjax.report import numbers
from memjax.report.instruments import Table, tables
from memjax.report.run import ReportError, read_curves, read_run

LICENSE = "unknown"
"""What the Hugging Face Hub calls a license that nobody has stated."""
WHAT = {
    "autoencoder": "An encoder turns each chunk of a text into a memory; a decoder says all tokens of the chunk again from that alone.",
    "memory_model": "An encoder turns each earlier chunk of a text into a memory; a causal decoder reads those in place of its tokens.",
    "causal_lm": "A causal language model over tokens, the kind of decoder that memory models have, without memories.",
    "oracle": "A causal decoder that is also given a memory of the text it is to predict.",
    "recurrent_memory": "A causal model that carries memory slots from chunk to chunk of a text.",
    "retriever": "An encoder whose memories find passages: a query's lies close to that of its passage.",
    "ranker": "A model that reads a query's and passages' memories and says which passage answers.",
    "entropy_regressor": "A model that estimates, for each token, how hard it is.",
}
_UNITS = (
    ("_bits_per_byte", "bits a byte of text", False),
    ("_exact_chunks", "share of chunks without an error", True),
    ("_accuracy", "share of tokens right", True),
    ("_nats", "nats a token", False),
)
_WRITERS = ("memory_model", "causal_lm", "recurrent_memory")


def write_card(
    folder: Path,
    manifest: Manifest,
    shapes: Mapping[str, tuple[int, ...]],
    source: str | os.PathLike,
    name: str,
    tokenizer: Tokenizer | None,
    license_id: str = LICENSE,
) -> None:
    """Writes `README.md`.

    Args:
      folder: the export, being written.
      manifest: what it holds.
      shapes: of its parameters by path.
      source: the workdir, or a stage's folder in it; metrics and what instruments found are looked for there.
      name: what the export is called.
      tokenizer: of the run, if it is known.
      license_id: for the front matter.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memjax.exporting", ""),
        autoescape=False,  # It is Markdown; what is not memjax's own goes through `cell` or is JSON.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "quoted": json.dumps, "count": numbers.count}
    run, step = _workdir(Path(str(source).partition("://")[2] or source)), manifest.step
    config, stage = manifest.config, manifest.config.stages[manifest.stage]
    context = {
        "name": name,
        "license": license_id,
        "version": __version__,
        "manifest": manifest,
        "config": config,
        "stage": stage,
        "what": WHAT[stage.family],
        "tags": list(dict.fromkeys(("memjax", "jax", "flax", "memory-model", stage.family.replace("_", "-")))),
        "pipeline": "text-generation" if stage.family in _WRITERS else "",
        "corpus": _corpus(config) or "unknown",
        "sizes": list(_sizes(config, manifest.stage, shapes)),
        "parts": _parts(shapes),
        "lineage": list(_lineage(config, manifest.stage)),
        "measured": list(_measured(run, manifest.stage, step)),
        "tables": list(_instruments(run, manifest.stage, step)),
        "example": _example(stage.family),
        "padding": "" if tokenizer is None else f"; id {tokenizer.pad_id} is padding",
        "tokens": list(example(build(config, stage), config).shape),
        "limits": list(_limits(manifest)),
    }
    (folder / CARD).write_text(environment.get_template("card.md.jinja").render(context), encoding="utf-8")


def _corpus(config: Config) -> str:
    """What it was trained on, without the folders: of a mixture every part."""
    return re.sub(r"[^\s+*]*/", "", config.data.corpus)


def _workdir(source: Path) -> Path:
    return source if (source / "stages").is_dir() else source.parent.parent


def _cell(value: Any) -> str:
    """Text that stays within a cell of a table."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in text)


def _sizes(config: Config, stage: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    model, family = config.model, config.stages[stage].family
    yield "vocabulary", f"{config.data.vocabulary:,} tokens"
    yield "row", f"{config.data.row_tokens:,} tokens"
    yield "chunk", f"{model.chunk_length:,} tokens"
    if any(path.startswith("encoder/") for path in shapes):
        squeezed = f", squeezed through {model.bottleneck}" if model.bottleneck else ""
        yield "memory of a chunk", f"{model.vectors} × {model.encoder.width} numbers{squeezed}"
        yield "encoder", _stack(model.encoder)
    if any(path.startswith("backbone/") for path in shapes):
        yield "decoder", _stack(model.reconstructor if family == "autoencoder" else model.decoder)


def _stack(backbone: Backbone) -> str:
    return f"{backbone.kind.replace('_', ' ')}, {backbone.layers} layers of width {backbone.width}, {backbone.heads} heads"


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters of every part of the model."""
    parts: dict[str, int] = {}
    for path, shape in shapes.items():
        part = path.partition("/")[0]
        parts[part] = parts.get(part, 0) + int(np.prod(shape))
    return parts


def _lineage(config: Config, name: str) -> Iterator[dict[str, Any]]:
    """The stages whose weights went into this one, the first one first."""
    stage = config.stages[name]
    if stage.init_from in config.stages:
        yield from _lineage(config, stage.init_from)
    taken = ""
    if stage.init_from:
        source = stage.init_from if stage.init_from in config.stages else "/".join(Path(stage.init_from).parts[-3:])
        taken = f"{stage.init_part or 'all'} of {source}"
    objectives = ", ".join(f"{objective} × {weight:g}" for objective, weight in stage.objectives.items())
    frozen = ", ".join(pattern for pattern, moves in stage.trainable if not moves)
    yield {
        "name": name,
        "family": stage.family,
        "objectives": objectives,
        "steps": stage.steps,
        "rows": stage.rows,
        "taken": taken or "–",
        "frozen": frozen or "–",
    }


def _measured(workdir: Path, name: str, step: int) -> Iterator[tuple[str, str]]:
    """Held-out numbers of the stage at this step: those of the final evaluation, or the last ones logged while it trained."""
    try:
        run = read_run(workdir)
        found = dict(run.section("models", name))
        if run.section("stages", name).get("steps") != step:
            found = {}
    except ReportError:
        found = {}
    for key, value in found.items():
        kind = next(((end, unit, share) for end, unit, share in _UNITS if key.endswith(end)), None)
        if kind is None or numbers.number(value) is None:
            continue
        end, unit, share = kind
        what = key.removesuffix(end).replace("_", " ").replace("free running token", "free running")
        yield f"{what}, {unit}", _interval(value, found.get(f"{key}_interval"), share)
    path = workdir / "stages" / name / "metrics.jsonl"
    if found or not path.is_file():
        return
    for (split, key), (steps, values) in read_curves(path).items():
        what, _, unit = key.partition("/")
        if split == "validation" and unit in ("nats", "accuracy") and steps[-1] == step:
            share = unit == "accuracy"
            label = "share of tokens right" if share else "nats a token"
            yield f"{what.replace('_', ' ')}, {label}", _interval(values[-1], None, share)


def _interval(value: Any, between: Any, share: bool) -> str:
    show = numbers.percent if share else (lambda x: numbers.decimal(x, 3))
    if isinstance(between, list) and len(between) == 2:
        return f"{show(value)} ({show(between[0])} to {show(between[1])})"
    return show(value)


def _instruments(workdir: Path, name: str, step: int) -> Iterator[Table]:
    """What `memjax measure` found of the stage at this step."""
    path = workdir / "stages" / name / "instruments.json"
    if path.is_file():
        found, _ = attempt(lambda: json.loads(path.read_text(encoding="utf-8")))
        if isinstance(found, dict) and found.get("step") == step:
            yield from attempt(lambda: tables(found))[0] or ()


def _example(family: str) -> str:
    if family in ("autoencoder", "memory_model", "oracle", "retriever", "ranker"):
        return "memories = module.apply(variables, tokens, method='encode')"
    return "logits = module.apply(variables, tokens)"


def _limits(manifest: Manifest) -> Iterator[str]:
    config, stage = manifest.config, manifest.config.stages[manifest.stage]
    corpus = _cell(_corpus(config))
    if corpus:
        yield f"It was trained on {corpus} alone. On other kinds of text expect less than the numbers above."
    else:
        yield "What it was trained on is not known here."
    if stage.family in ("autoencoder", "memory_model", "oracle"):
        yield (
            f"A memory is a lossy copy of {config.model.chunk_length} tokens. What is said from one may read well and be wrong: check names"
            " and numbers against the text."
        )
    if stage.family in _WRITERS:
        yield "What it writes is neither checked nor filtered, and repeats what its training text says."
    if manifest.dtype != "float32":
        yield f"Weights are rounded to {manifest.dtype}; the numbers above are of the float32 ones."
    if not manifest.tokenizer:
        yield "The weights do not say which tokenizer is theirs."
