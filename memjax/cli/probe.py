"""The command `memjax probe --encoder=CHECKPOINT|FILE[,...] [--probe=one_shot|autoregressive]`: how much of a text its vectors hold.

A decoder is trained from scratch to say texts again from vectors that do not move, and is then scored on texts that neither it nor the
encoder was trained on. All encoders get the same decoder, the same texts and the same seeds; beside each stand its controls.

    memjax probe --encoder=runs/a/stages/autoencoder,runs/a/stages/causal_control --out=probe.json

An encoder is the folder of a stage, whose texts are the rows of its run (--data=FOLDER: other rows of the same tokenizer), or a file
of vectors from anywhere, .npz with `vectors` [T, K, E] and `tokens` [T, L], or .arrayrecord (memjax/instruments/vectors.py):

    memjax probe --encoder=bert.npz --against_file=bert_held_out.npz

Without --against_file the last tenth of a file is held out. The controls `untrained` and `random_tokens` need a checkpoint.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from memjax.cli.arguments import read_own

if TYPE_CHECKING:
    from memjax.instruments.encoders import TextEncoder
    from memjax.instruments.probe import ProbeResult, Reading
    from memjax.instruments.uncertainty import Estimate
    from memjax.instruments.vectors import Vectors
    from memjax.training.progress import Reporter

EXAMPLE = "memjax probe --encoder=runs/a/stages/autoencoder"
HELD_OUT_SHARE = 0.1
"""Of a file without another to hold it against."""
WIDTH = 160
"""Columns where the output is no terminal."""
_SETTINGS = {
    "steps": "Updates of a decoder, at most (2000).",
    "batch": "Texts of an update (64).",
    "width": "Width of the decoder (256).",
    "layers": "Layers of the decoder (4).",
    "heads": "Heads of the decoder (16).",
    "evaluate_every": "Updates between two looks at texts set aside (50).",
    "patience": "Looks without progress after which a decoder has converged (5).",
}
"""Fields of `Protocol` that are whole numbers, and their defaults."""


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_list("encoder", None, "Folders of stages, or files of vectors, with commas.", flag_values=values)
    flags.DEFINE_enum(
        "probe",
        "one_shot",
        ("one_shot", "autoregressive"),
        "All tokens at once, or each from the vectors and the tokens before it.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "read_out",
        None,
        ("-1", "-2"),
        "Where vectors are read: at a text's last token, or the last but one; by default where the model itself reads.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "length", 0, "Tokens of a text of a causal language model; 0 is its chunk length.", 0, flag_values=values
    )
    flags.DEFINE_integer("seeds", 2, "Decoders trained for each kind of vectors.", 1, flag_values=values)
    flags.DEFINE_integer("limit", 20_000, "Texts to train on, at most.", 2, flag_values=values)
    flags.DEFINE_integer("held_out_limit", 1000, "Texts held out, at most.", 2, flag_values=values)
    flags.DEFINE_string("data", None, "Data folder of a workdir; by default that of each checkpoint's.", flag_values=values)
    flags.DEFINE_list("against_file", None, "Held-out vectors, a file for each file in --encoder.", flag_values=values)
    flags.DEFINE_list(
        "controls", None, "Of constant, untrained, shuffled, random_tokens; by default all that can be had.", flag_values=values
    )
    flags.DEFINE_enum("backbone", None, ("mixer", "transformer"), "The decoder's stack (mixer).", flag_values=values)
    for name, what in _SETTINGS.items():
        flags.DEFINE_integer(name, None, what, 1, flag_values=values)
    flags.DEFINE_float("learning_rate", None, "Peak rate (3e-3).", flag_values=values)
    flags.DEFINE_float("tolerance", None, "Share of its loss by which a decoder must get better (0.005).", flag_values=values)
    flags.DEFINE_string("out", "probe.json", "File to write; empty writes none.", flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Probes every encoder and prints a table."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("encoder",))
    if given is None:
        return 0
    encoders = [name for name in given["encoder"] or () if name]
    if not encoders:
        raise flags.IllegalFlagValueError(f"--encoder is missing; for example: {EXAMPLE}")
    files = [name for name in encoders if _is_file(name)]
    against = given["against_file"] or []
    if against and len(against) != len(files):
        raise flags.IllegalFlagValueError(
            f"--against_file names {len(against)} files, and --encoder {len(files)} files of vectors; give one for each, in their order"
        )
    for name in encoders:
        if "://" in name and not given["data"]:
            raise flags.IllegalFlagValueError(f"--data is missing: a checkpoint in a bucket ({name}) has no data beside it")
    _run(encoders, dict(zip(files, against, strict=False)), given)
    return 0


def _is_file(name: str) -> bool:
    return name.endswith((".npz", ".arrayrecord"))


def _run(encoders: Sequence[str], against: Mapping[str, str], given: Mapping[str, Any]) -> None:
    # Imports JAX: after the flags are known to be right.
    from memjax.instruments.probe import CONTROLS, WITH_ENCODER, probe, trainings
    from memjax.instruments.probe_decoders import Protocol
    from memjax.instruments.uncertainty import to_json
    from memjax.training.progress import Reporter

    names = (*_SETTINGS, "backbone", "learning_rate", "tolerance")
    protocol = Protocol(kind=given["probe"], **{name: given[name] for name in names if given[name] is not None})
    reporter, seeds, results = Reporter(), range(given["seeds"]), []
    for name in encoders:
        encoder, train, held_out = (
            _of_file(name, against.get(name), given) if _is_file(name) else _of_stage(name, given, reporter)
        )
        possible = [control for control in CONTROLS if encoder or control not in WITH_ENCODER]
        controls = possible if given["controls"] is None else given["controls"]
        with reporter.bar("probe", protocol.steps * trainings(seeds, controls)) as bar:
            result = probe(train, held_out, protocol, seeds, controls, encoder, bar.advance)
        # Named as it was asked for: a file and the stage that made it may stand side by side.
        results.append(dataclasses.replace(result, encoder=name))
    console = reporter.console
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_table(results))
    if len({(result.vocabulary, result.length) for result in results}) > 1:
        reporter.say(
            "Texts differ in length or vocabulary: nats and I_e of different encoders do not compare, bits a number do."
        )
    stopped = {result.encoder for result in results for run in result.own.runs if not run.converged}
    if stopped:
        reporter.say(
            f"Still learning after {protocol.steps} steps, so that more may be in the vectors: {', '.join(sorted(stopped))}"
        )
    if given["out"]:
        out = Path(given["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"results": to_json(results)}, indent=1) + "\n", encoding="utf-8")
        reporter.say(f"{out}: all of it, and every decoder's curve")


def _of_file(name: str, against: str | None, given: Mapping[str, Any]) -> "tuple[None, Vectors, Vectors]":
    """Vectors to train on and vectors held out."""
    from memjax.instruments.vectors import open_vectors

    vectors = open_vectors(name)
    if against:
        held_out, border = open_vectors(against), len(vectors)
    else:
        border = min(len(vectors) - 2, int(len(vectors) * (1 - HELD_OUT_SHARE)))
        held_out = vectors.part(max(border, 0), len(vectors))
    train = vectors.part(0, min(border, given["limit"]))
    return None, train, held_out.part(0, min(len(held_out), given["held_out_limit"]))


def _of_stage(name: str, given: Mapping[str, Any], reporter: "Reporter") -> "tuple[TextEncoder, Vectors, Vectors]":
    """The encoder of a stage, and its vectors of training and held-out texts."""
    from memjax.data import RowsError, Tokenizer
    from memjax.instruments.encoders import open_encoder, vectors_of
    from memjax.instruments.texts import batch_count, held_out

    encoder = open_encoder(name, read_out=given["read_out"] and int(given["read_out"]), length=given["length"])
    data = Path(given["data"] or encoder.data)
    tokenizer = Tokenizer.load(data)
    if encoder.fingerprint and tokenizer.fingerprint != encoder.fingerprint:
        raise RowsError(
            f"{data}: made by tokenizer {tokenizer.fingerprint}, while {name} was trained with {encoder.fingerprint}; give --data made by"
            " that one"
        )
    if tokenizer.vocabulary != encoder.vocabulary:
        raise RowsError(
            f"{data}: of a vocabulary of {tokenizer.vocabulary}, while {name} was trained with {encoder.vocabulary}"
        )
    texts = [
        held_out(data, encoder.length, given[limit], tokenizer, split)
        for split, limit in (("train", "limit"), ("validation", "held_out_limit"))
    ]
    batch = 256
    with reporter.bar("encode", sum(batch_count(part, batch) for part in texts)) as bar:
        train, validation = (vectors_of(encoder, part, batch, bar.advance) for part in texts)
    return encoder, train, validation


def _table(results: "Sequence[ProbeResult]") -> Any:
    from rich.markup import escape
    from rich.table import Table

    first = results[0].protocol
    table = Table(
        title=f"{first.kind} probe",
        caption="held-out texts, mean over seeds; in brackets the interval of the mean over texts (95 %)",
    )
    for number, column in enumerate(("vectors", "nats a token", "I_e", "accuracy", "below constant", "bits a number", "steps")):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for result in results:
        size = "×".join(map(str, result.shape))
        gain, bits = result.gains.get("constant"), result.bits_a_dimension
        table.add_row(
            escape(f"{result.encoder} ({size})"),
            *_cells(result.own),
            _cell(gain),
            _cell(bits),
            _steps(result.own),
            style="bold",
        )
        for name, reading in result.controls.items():
            table.add_row(f"  {name}", *_cells(reading), "", "", _steps(reading))
        table.add_section()
    return table


def _cells(reading: "Reading") -> tuple[str, ...]:
    return _cell(reading.nats), f"{reading.information.value:.3f}", f"{reading.accuracy.value:.1%}"


def _cell(estimate: "Estimate | None") -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return ""
    between = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{between}"


def _steps(reading: "Reading") -> str:
    """Of every seed; a plus where the decoder was still learning."""
    return ", ".join(f"{run.steps}{'' if run.converged else '+'}" for run in reading.runs)
