"""Every number of one seed, as sums and counts of each held-out row or text, so that models can be compared row by row."""

import functools
from collections.abc import Mapping

import numpy as np

from memjax.checkpoints import load_params
from memjax.data import evaluation_batches
from memjax.instruments import texts as sources
from memjax.instruments.accuracy import Accuracy, measure
from memjax.instruments.encoders import open_encoder, vectors_of
from memjax.instruments.probe import score_texts, train_reader
from memjax.instruments.probe_decoders import Protocol
from memjax.instruments.quantisation import rounded_sums
from memjax.instruments.system import open_system
from memjax.models import build
from memjax.reproduce.claims import EIGHT_BITS, Sums
from memjax.reproduce.plan import Scale
from memjax.training import Reporter, Run

BATCH_ROWS = 32
TEXTS_A_ROW = 4
"""Chunks that encoders are measured on, for every row that decoders are."""
DECODERS = ("next_token", "no_memory", "full_context", "recurrent", "at_once", "causal_combined", "autoencoder_combined")
AUTOENCODERS = {"mixer": "encoders", "transformer": "transformer"}
ENCODERS = {
    "autoencoder": ("encoders", "autoencoder"),
    "oracle": ("oracle", "oracle"),
    "causal": ("causal", "causal"),
    "retriever": ("causal", "retriever"),
    "untrained": ("encoders", "autoencoder"),
}
"""Run and stage of every encoder that is probed."""
PLACE = "bottleneck"
"""Where memories are rounded: where noise was added."""


def measure_seed(runs: Mapping[str, Run], scale: Scale, seed: int, limit: int, reporter: Reporter) -> dict[str, Sums]:
    """All numbers that the claims are made of.

    Args:
      runs: by name, trained.
      scale: theirs.
      seed: of the probes; the runs have theirs.
      limit: rows of held-out text, at most; 0 is the scale's.
      reporter: where progress is shown.
    """
    rows = min(scale.evaluation_rows, limit or scale.evaluation_rows)
    texts = TEXTS_A_ROW * rows
    numbers: dict[str, Sums] = {}
    with reporter.bar(f"measure {seed}", len(DECODERS) + len(AUTOENCODERS) + 2) as bar:
        for stage in DECODERS:
            numbers |= _decoder(runs["memory"], stage, rows)
            bar.advance()
        for name, run in AUTOENCODERS.items():
            numbers |= _autoencoder(runs[run], name, rows)
            bar.advance()
        for name in ("plain", "noisy"):
            numbers |= _quantised(runs[name], name, texts)
            bar.advance()
    return numbers | _probes(runs, scale, seed, texts, reporter)


def _sums(sums: np.ndarray, counts: np.ndarray) -> Sums:
    return {"sums": np.asarray(sums, np.float64).tolist(), "counts": np.asarray(counts, np.float64).tolist()}


def _measured(run: Run, name: str, objectives: tuple[str, ...], rows: int) -> dict[str, Accuracy]:
    stage = run.config.stages[name]
    params, _ = load_params(run.checkpoints(name))
    batches = evaluation_batches(run.data.validation, min(BATCH_ROWS, rows), rows, run.ids.pad)
    lengths = run.data.tokenizer.byte_lengths
    return measure(build(run.config, stage), params, batches, objectives, run.ids, lengths, stage=stage)


def _decoder(run: Run, name: str, rows: int) -> dict[str, Sums]:
    """Next tokens, and what a memory model can copy in the way of asking it answers best."""
    reads = run.config.stages[name].family == "memory_model"
    asks = ("copy", "plain_copy")
    found = _measured(run, name, ("next_token", *((*asks, "blank_copy") if reads else ())), rows)
    one = found["next_token"]
    numbers = {f"next_token_nats/{name}": _sums(one.row_nats, one.row_tokens)}
    if reads:
        best = max((found[ask] for ask in asks), key=lambda accuracy: accuracy.accuracy)
        for key, accuracy in (("copy_accuracy", best), ("blank_copy_accuracy", found["blank_copy"])):
            numbers[f"{key}/{name}"] = _sums(accuracy.row_correct, accuracy.row_tokens)
    return numbers


def _autoencoder(run: Run, name: str, rows: int) -> dict[str, Sums]:
    found = _measured(run, "autoencoder", ("reconstruction",), rows)["reconstruction"]
    return {
        f"reconstruction_nats/{name}": _sums(found.row_nats, found.row_tokens),
        f"reconstruction_error/{name}": _sums(found.row_tokens - found.row_correct, found.row_tokens),
    }


def _quantised(run: Run, name: str, count: int) -> dict[str, Sums]:
    """An autoencoder read from the numbers of its bottleneck in 32 and in 8 bits."""
    trained = open_system(run.folder("autoencoder"))
    texts = sources.held_out(run.workdir / "data", trained.system.length, count, run.data.tokenizer)
    rounding = tuple((PLACE, kind) for kind in EIGHT_BITS)
    nats, _, tokens = rounded_sums(trained.system, trained.params, texts, rounding, BATCH_ROWS)
    kinds = ("float32", *EIGHT_BITS)
    return {f"quantised_nats/{name}/{kind}": _sums(nats[:, way], tokens) for way, kind in enumerate(kinds)}


def _probes(runs: Mapping[str, Run], scale: Scale, seed: int, count: int, reporter: Reporter) -> dict[str, Sums]:
    """All encoders by one protocol, and the constant memory that is the protocol's zero."""
    protocol = _protocol(scale)
    numbers: dict[str, Sums] = {}
    for name, (run_name, stage) in ENCODERS.items():
        run = runs[run_name]
        encoder = open_encoder(run.folder(stage), untrained=name == "untrained", seed=seed)
        texts = functools.partial(sources.held_out, run.workdir / "data", encoder.length, tokenizer=run.data.tokenizer)
        train = vectors_of(encoder, texts(limit=scale.probe_texts, split="train"))
        held_out = vectors_of(encoder, texts(limit=count))
        for called in (name, "constant") if name == "autoencoder" else (name,):
            with reporter.bar(f"probe {called}", protocol.steps) as bar:
                reader = train_reader(train, protocol, seed, called == "constant", advance=bar.advance)
            sums = score_texts(reader, held_out)
            numbers[f"probe_nats/{called}"] = _sums(sums.nats, sums.count)
            numbers[f"probe_accuracy/{called}"] = _sums(sums.correct, sums.count)
    return numbers


def _protocol(scale: Scale) -> Protocol:
    """One for all encoders: the decoder of the autoencoder, as wide and deep as it."""
    return Protocol(
        width=scale.width,
        layers=scale.layers,
        heads=scale.mixer_heads,
        steps=scale.probe_steps,
        batch=scale.rows * scale.chunks,
        learning_rate=scale.learning_rate,
        evaluate_every=min(50, scale.probe_steps),
        dtype=scale.dtype,
    )
