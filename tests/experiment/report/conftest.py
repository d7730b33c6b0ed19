"""A made-up run on disk for the report's tests. `python tests/experiment/report/conftest.py DIR`
writes one, and its page, to look at."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LENGTH, CHUNKS = 32, 4
TEXT = """Return the absolute value of a number. The argument may be an integer, a floating-point \
number, or an object
implementing __abs__(). If the argument is a complex number, its magnitude is returned. Return an \
asynchronous iterator for
an asynchronous iterable. Return True if all elements of the iterable are true (or if the \
iterable is empty). Equivalent to:
    def all(iterable):
        for element in iterable:
            if not element:
                return False
        return True
Return a string containing a printable representation of an object, but escape the non-ASCII \
characters in the string
returned by repr() using \\x, \\u, or \\U escapes. This generates a string similar to that \
returned by repr() in Python 2.
Convert an integer number to a binary string prefixed with "0b". The result is a valid Python \
expression. If integer is not
an int object, it has to define an __index__() method that returns an integer. Return the Boolean \
value of the argument.
"""
STAGES: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "steps": 450,
        "objectives": {"reconstruction": 1.0},
        "init_from": "",
        "share": 1.0,
    },
    "blank_copy": {
        "steps": 200,
        "objectives": {"blank_copy": 1.0, "next_token": 0.5},
        "init_from": "autoencoder",
        "share": 0.52,
    },
    "copy": {
        "steps": 60,
        "objectives": {"copy": 1.0, "blank_copy": 0.5, "next_token": 0.5},
        "init_from": "blank_copy",
        "share": 0.52,
    },
    "combined": {
        "steps": 500,
        "objectives": {"next_token": 1.0, "copy": 1.0},
        "init_from": "copy",
        "share": 0.52,
    },
    "causal_control": {
        "steps": 500,
        "objectives": {"next_token": 1.0},
        "init_from": "",
        "share": 1.0,
    },
    "no_memory": {"steps": 500, "objectives": {"next_token": 1.0}, "init_from": "", "share": 1.0},
}
# Loss in nats at the start and end of each term of a stage, and accuracy at its end.
ENDS: dict[tuple[str, str], tuple[float, float, float]] = {
    ("autoencoder", "reconstruction"): (6.9, 0.05, 0.985),
    ("blank_copy", "blank_copy"): (6.8, 0.16, 0.96),
    ("blank_copy", "next_token"): (6.8, 4.6, 0.2),
    ("copy", "copy"): (1.1, 0.09, 0.975),
    ("copy", "blank_copy"): (0.16, 0.14, 0.965),
    ("copy", "next_token"): (4.6, 4.4, 0.22),
    ("combined", "next_token"): (4.4, 3.75, 0.3),
    ("combined", "copy"): (0.12, 0.1, 0.97),
    ("causal_control", "next_token"): (6.9, 3.6, 0.32),
    ("no_memory", "next_token"): (6.9, 3.7, 0.31),
}


def make_results() -> dict[str, Any]:
    """The results of a run that supports the claim."""
    draw = random.Random(0)
    copied = {"combined": 0.97, "causal_control": 0.25, "no_memory": 0.22, "copy": 0.975}
    nats = {"combined": 3.75, "causal_control": 3.6, "no_memory": 3.7, "copy": 4.4}
    models: dict[str, Any] = {
        "autoencoder": {"autoencoder_accuracy": 0.985, "autoencoder_nats": 0.05}
    }
    for name, share in copied.items():
        trained = name in ("combined", "copy")
        rise = [
            share * (1 - (0.12 if trained else 0.9) * math.exp(-i / (3 if trained else 5)))
            for i in range(LENGTH)
        ]
        models[name] = {
            "next_token_nats": nats[name],
            "next_token_bits_per_byte": nats[name] / math.log(2) / 2.9,
            "next_token_accuracy": 0.3,
            "copy_accuracy": share,
            "copy_nats": 0.1 if trained else 4.0,
            "copy_accuracy_by_position": [
                min(1.0, max(0.0, value + draw.gauss(0, 0.006))) for value in rise
            ],
            "blank_copy_accuracy": {"combined": 0.9, "copy": 0.965}.get(name, 0.05),
            "free_running_exact_chunks": {"combined": 0.71, "copy": 0.74}.get(name, 0.0),
            "free_running_token_accuracy": 0.95 if trained else 0.06,
            "free_running_chunks": 128,
            "autoencoder_accuracy": 0.985 if trained else None,
        }
    stages = {}
    for name, facts in STAGES.items():
        seconds = facts["steps"] * 0.28
        stages[name] = {
            "steps": facts["steps"],
            "seconds": seconds,
            "tokens": facts["steps"] * 4096,
            "tokens_per_second": 4096 / 0.28,
            "parameters": 2_300_000,
            "trainable_parameters": int(2_300_000 * facts["share"]),
            "objectives": facts["objectives"],
            "init_from": facts["init_from"],
        }
    return {
        "format_version": 1,
        "name": "quickstart",
        "memjax_version": "0.1.0",
        "created": "2026-11-20T12:00:00",
        "device": "2 × cpu cores",
        "command": "memjax train --config=configs/quickstart.py --workdir=runs/quickstart",
        "versions": {
            "python": "3.11.7",
            "jax": "0.10.2",
            "flax": "0.13.0",
            "optax": "0.2.9",
            "orbax-checkpoint": "0.12.1",
        },
        "copy_accuracy": 0.97,
        "copy_accuracy_causal_control": 0.25,
        "copy_accuracy_no_memory": 0.22,
        "autoencoder_accuracy": 0.985,
        "next_token_nats": 3.75,
        "next_token_nats_causal_control": 3.6,
        "next_token_nats_no_memory": 3.7,
        "free_running_exact_chunks": 0.71,
        "tokens_per_second": 21000,
        "seconds_total": 560.0,
        "curriculum": ["autoencoder", "blank_copy", "copy", "combined"],
        "controls": ["causal_control", "no_memory"],
        "data": {
            "corpus": "python-docs",
            "documents": 500,
            "train_tokens": 550_000,
            "validation_tokens": 60_000,
            "vocabulary": 1024,
            "bytes_per_token": 2.9,
            "tokenizer_fingerprint": "ab12cd34",
            "row_tokens": LENGTH * CHUNKS,
            "chunk_length": LENGTH,
            "chunks": CHUNKS,
            "memory_vectors": 1,
            "memory_width": 256,
            "decoder_layers": 4,
            "decoder_kv_heads": 2,
            "decoder_head_dim": 64,
        },
        "chance": {"uniform_nats": 6.93, "most_frequent_token_accuracy": 0.06},
        "stages": stages,
        "models": models,
        "passages": make_passages(draw),
    }


def make_passages(draw: random.Random) -> list[dict[str, Any]]:
    """Passages of two chunks: nearly all of it regenerated by the memory model, nearly none by the
    control."""
    pieces = [
        part
        for word in re.findall(r"\n| *\w+| *[^\w\s]", TEXT)
        for part in re.findall(r" *\S{1,5}|\s", word)
    ]
    common = [" the", ".", ",", " a", " of", " is", "\n", " to", "s", " object", " and", "("]
    passages = []
    for start in range(0, len(pieces) - 2 * LENGTH, 2 * LENGTH):
        source = pieces[start : start + 2 * LENGTH]
        made = [piece if draw.random() < 0.97 else draw.choice(pieces) for piece in source]
        control = [draw.choice(common) for _ in source]
        passages.append(
            {
                "source": source,
                "regenerated": made,
                "correct": [one == other for one, other in zip(source, made, strict=True)],
                "control": control,
                "control_correct": [
                    one == other for one, other in zip(source, control, strict=True)
                ],
            }
        )
    return passages[:4]


def make_metrics(stage: str) -> list[dict[str, Any]]:
    """Lines of a stage's metrics.jsonl, a few of them twice as after a resume."""
    draw, facts, lines = random.Random(stage), STAGES[stage], []
    for step in range(10, facts["steps"] + 1, 10):
        done = step / facts["steps"]
        for split in (
            ("train", "validation") if step % 50 == 0 or step == facts["steps"] else ("train",)
        ):
            line: dict[str, Any] = {"step": step, "split": split}
            for term in facts["objectives"]:
                first, last, accuracy = ENDS[stage, term]
                blur = math.exp(draw.gauss(0, 0.05 if split == "train" else 0.01))
                line[f"{term}/nats"] = (last + (first - last) * math.exp(-5 * done)) * blur
                fresh = first > 2 or term == "next_token"
                line[f"{term}/accuracy"] = (
                    accuracy * (1 - math.exp(-5 * done)) if fresh else accuracy
                )
            if split == "train":
                extra = {
                    "learning_rate": 0.03 * (1 - done),
                    "gradient_norm": 1.2,
                    "tokens_per_second": 14600.0,
                    "seconds": step * 0.28,
                }
                line |= {"loss": sum(v for k, v in line.items() if k.endswith("/nats")), **extra}
            lines.append(line)
    return lines[:3] + lines


def write_run(
    workdir: Path, change: Callable[[dict[str, Any]], None] | None = None, curves: bool = True
) -> Path:
    """Writes a synthetic run under `workdir`; `change` edits its results in place before they are
    written.

    Without `curves` no stage has logged anything, which makes for fewer plots and a faster page.
    """
    results = make_results()
    if change:
        change(results)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for stage in STAGES if curves else ():
        folder = workdir / "stages" / stage
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in make_metrics(stage))
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return workdir


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(change, curves)` writes a synthetic run to a fresh folder and returns it; see
    `write_run`."""
    return lambda change=None, curves=True: write_run(tmp_path / "run", change, curves)


if __name__ == "__main__":
    from memjax.experiment.report import write_report

    print(write_report(write_run(Path(sys.argv[1]))))
