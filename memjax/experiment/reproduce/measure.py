"""Measure every number of one seed, as sums and counts per held-out row or text.

Sums per row allow comparing models row by row. Processes divide models and probes: each of them is
measured whole by one process.
"""

import functools
from collections.abc import Mapping

import numpy as np

from memjax.data import evaluation_batches
from memjax.evaluation.instruments.encoders import vector_reader, vectors_of
from memjax.evaluation.instruments.probe import score_texts, train_reader
from memjax.evaluation.instruments.probe_decoders import Protocol
from memjax.evaluation.instruments.quantisation import rounded_sums
from memjax.experiment.reproduce.claims import EIGHT_BITS, Sums
from memjax.experiment.reproduce.plan import Scale
from memjax.inference import texts as sources
from memjax.inference.trained_model import load
from memjax.models import can
from memjax.objectives.accuracy import Accuracy, measure
from memjax.progress import Reporter
from memjax.sharding import batch_shards, divide, local_mesh, put_batch
from memjax.training.init_state import Run

BATCH_ROWS = 32
TEXTS_PER_ROW = 4
"""Chunks that encoders are measured on per row that decoders are measured on."""
DECODERS = (
    "next_token",
    "no_memory",
    "full_context",
    "recurrent",
    "at_once",
    "causal_combined",
    "autoencoder_combined",
)
AUTOENCODERS = {"mixer": "encoders", "transformer": "transformer"}
ENCODERS = {
    "autoencoder": ("encoders", "autoencoder"),
    "oracle": ("oracle", "oracle"),
    "causal": ("causal", "causal"),
    "retriever": ("causal", "retriever"),
    "untrained": ("encoders", "autoencoder"),
}
"""Run and stage of every encoder whose memories are probed."""
PROBES = (*ENCODERS, "constant")
"""Encoders that are probed by one protocol, and the constant memory, the protocol's zero."""
QUANTISED = ("plain", "noisy")
"""Runs whose autoencoder has a bottleneck that is rounded."""
PLACE = "bottleneck"
"""Where memories are rounded: where noise was added."""


def measure_seed(
    runs: Mapping[str, Run], scale: Scale, seed: int, limit: int, reporter: Reporter
) -> dict[str, Sums]:
    """Measure all numbers that the claims need.

    Args:
      runs: trained runs, by name.
      scale: scale of the runs.
      seed: seed of the probes; the runs have their own.
      limit: largest number of held-out rows; 0 is the scale's number.
      reporter: progress display.
    """
    rows = min(scale.evaluation_rows, limit or scale.evaluation_rows)
    texts = TEXTS_PER_ROW * rows
    parts = [
        *(functools.partial(_decoder, runs["memory"], stage, rows) for stage in DECODERS),
        *(
            functools.partial(_autoencoder, runs[run], name, rows)
            for name, run in AUTOENCODERS.items()
        ),
        *(functools.partial(_quantised, runs[name], name, texts) for name in QUANTISED),
        *(functools.partial(_probe, runs, name, scale, seed, texts) for name in PROBES),
    ]
    with reporter.active():
        found = divide(parts, f"measure {seed}")
    return {name: sums for part in found for name, sums in part.items()}


def _sums(sums: np.ndarray, counts: np.ndarray) -> Sums:
    return {
        "sums": np.asarray(sums, np.float64).tolist(),
        "counts": np.asarray(counts, np.float64).tolist(),
    }


def _measured(run: Run, name: str, objectives: tuple[str, ...], rows: int) -> dict[str, Accuracy]:
    stage = run.config.stages[name]
    model = load(run.checkpoints(name).parent)
    mesh = local_mesh()
    shards = batch_shards(mesh) if mesh else 1
    size = -(-min(BATCH_ROWS, rows) // shards) * shards
    batches = evaluation_batches(run.data.validation, size, rows, run.ids.pad)
    placed = (put_batch(batch, mesh) if mesh else batch for batch in batches)
    arguments = (model.module, model.params, placed, objectives, run.ids)
    return measure(*arguments, run.data.tokenizer.byte_lengths, stage=stage, mesh=mesh)


def _decoder(run: Run, name: str, rows: int) -> dict[str, Sums]:
    """Measure next-token loss and, for memory models, copying with the better of two prompts."""
    reads = can(run.config.stages[name].family, "reads_memories")
    prompts = ("copy", "plain_copy")
    found = _measured(run, name, ("next_token", *((*prompts, "blank_copy") if reads else ())), rows)
    one = found["next_token"]
    numbers = {f"next_token_nats/{name}": _sums(one.row_nats, one.row_tokens)}
    if reads:
        best = max((found[prompt] for prompt in prompts), key=lambda accuracy: accuracy.accuracy)
        for key, accuracy in (
            ("copy_accuracy", best),
            ("blank_copy_accuracy", found["blank_copy"]),
        ):
            numbers[f"{key}/{name}"] = _sums(accuracy.row_correct, accuracy.row_tokens)
    return numbers


def _autoencoder(run: Run, name: str, rows: int) -> dict[str, Sums]:
    found = _measured(run, "autoencoder", ("reconstruction",), rows)["reconstruction"]
    return {
        f"reconstruction_nats/{name}": _sums(found.row_nats, found.row_tokens),
        f"reconstruction_error/{name}": _sums(
            found.row_tokens - found.row_correct, found.row_tokens
        ),
    }


def _quantised(run: Run, name: str, count: int) -> dict[str, Sums]:
    """Measure an autoencoder whose bottleneck is rounded to 32 and to 8 bits per number."""
    model = load(run.folder("autoencoder"))
    codec = model.codec()
    texts = sources.held_out(run.workdir / "data", codec.length, count, run.data.tokenizer)
    rounding = tuple((PLACE, kind) for kind in EIGHT_BITS)
    nats, _, tokens = rounded_sums(codec, model.params, texts, rounding, BATCH_ROWS)
    kinds = ("float32", *EIGHT_BITS)
    return {
        f"quantised_nats/{name}/{kind}": _sums(nats[:, way], tokens)
        for way, kind in enumerate(kinds)
    }


def _probe(
    runs: Mapping[str, Run], name: str, scale: Scale, seed: int, count: int
) -> dict[str, Sums]:
    """Probe an encoder, or the constant memory in place of the autoencoder's."""
    # A decoder of the autoencoder's width and depth.
    protocol = Protocol(
        width=scale.width,
        layers=scale.layers,
        heads=scale.mixer_heads,
        steps=scale.probe_steps,
        batch=scale.rows * scale.chunks,
        learning_rate=scale.learning_rate,
        evaluate_every=min(50, scale.probe_steps),
        dtype=scale.dtype,
    )
    run_name, stage = ENCODERS.get(name, ENCODERS["autoencoder"])
    run = runs[run_name]
    encoder = vector_reader(load(run.folder(stage)))
    encoder = encoder.untrained(seed) if name == "untrained" else encoder
    texts = functools.partial(
        sources.held_out, run.workdir / "data", encoder.length, tokenizer=run.data.tokenizer
    )
    train = vectors_of(encoder, texts(limit=scale.probe_texts, split="train"))
    held_out = vectors_of(encoder, texts(limit=count))
    reader = train_reader(train, protocol, seed, name == "constant", name=f"probe {name}")
    sums = score_texts(reader, held_out)
    return {
        f"probe_nats/{name}": _sums(sums.nats, sums.tokens),
        f"probe_accuracy/{name}": _sums(sums.correct, sums.tokens),
    }
