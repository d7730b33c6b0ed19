"""The command `memjax probe`: encoders compared by decoders trained on their frozen vectors."""

import dataclasses
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from memjax.cli.arguments import Arguments, UsageError, take
from memjax.cli.flags import Flag
from memjax.cli.joined import joined
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.evaluation.instruments.encoders import VectorReader
    from memjax.evaluation.instruments.vectors import Vectors

HELD_OUT_SHARE = 0.1
"""The share of a file's vectors that is held out, where no held-out file is given."""
HUGGINGFACE = "hf:"
FILES = (".npz", ".arrayrecord")
ENCODE_BATCH = 256
HF_LENGTH, MEAN = 16, "mean"
CONTROLS = ("constant", "untrained", "shuffled", "random_tokens")
PROTOCOL = {
    "kind": Flag(
        "All tokens at once, or each one from the vectors and the tokens before it.",
        choices=("one_shot", "autoregressive"),
        default="one_shot",
    ),
    "controls": Flag(
        f"Controls: {', '.join(CONTROLS)}; by default all that apply.",
        "texts",
        "NAME+NAME",
        choices=CONTROLS,
    ),
    "backbone": Flag("Backbone of the decoder.", choices=("mixer", "transformer"), default="mixer"),
    "width": Flag("Width of the decoder.", "int", minimum=1, default=256),
    "layers": Flag("Layers of the decoder.", "int", minimum=1, default=4),
    "heads": Flag("Heads of the decoder.", "int", minimum=1, default=16),
    "steps": Flag("Steps at most; 0 trains nothing.", "int", minimum=0, default=2000),
    "batch": Flag("Texts per step.", "int", minimum=1, default=64),
    "learning_rate": Flag("Peak learning rate.", "float", default=3e-3),
    "evaluate_every": Flag("Steps between evaluations.", "int", minimum=1, default=50),
    "patience": Flag(
        "Evaluations without progress that end the training.", "int", minimum=1, default=5
    ),
    "tolerance": Flag(
        "Share of the loss by which it must fall to be progress.", "float", default=0.005
    ),
}
TRANSFORMERS = {
    "layer": Flag(
        "Hidden state: 0 enters the first layer, -1 leaves the model.", "int", default=-1
    ),
    "device": Flag("Device, by its name in torch.", metavar="NAME", default="cpu"),
    "batch_size": Flag("Texts per batch.", "int", minimum=1, default=32),
    "text_field": Flag(
        "Field of a JSON line that is the document.", metavar="NAME", default="text"
    ),
}
ARGUMENTS = Arguments(
    example="memjax probe runs/a/stages/autoencoder bert.npz --out=probe.json",
    words={
        "ENCODER...": "Any of: a trained stage (PATH of other commands), a file of vectors"
        " (.npz, .arrayrecord; FILE,HELD_OUT_FILE for two), or hf:MODEL of transformers."
    },
    flags=take(
        protocol={"keys": PROTOCOL},
        seeds={"default": [0, 1]},
        readout={"choices": ("-1", "-2", MEAN)},
        sequence_length={"what": "by default the chunk length of a stage, and 16 of hf:MODEL"},
        limit={"what": "texts for training", "default": 20_000, "minimum": 2},
        eval_examples={"default": 1000, "minimum": 2},
        data={},
        corpus={"what": "hf:MODEL"},
        transformers={"keys": TRANSFORMERS},
        save={"what": "the vectors of hf:MODEL to this file (.npz or .arrayrecord)"},
        out={
            "what": "Write the results to this file; an empty name writes none",
            "metavar": "FILE",
            "default": "probe.json",
        },
    ),
    notes="""
    A decoder is trained from scratch to reconstruct texts from vectors that do not change. It is
    evaluated on texts that neither it nor the encoder was trained on. All encoders get the same
    decoder, the same texts and the same seeds, and each has its controls.

    The texts of a stage are the sequences of its run, or of --data. A file holds `vectors` [T, K,
    E] and `tokens` [T, L] (memjax/evaluation/instruments/vectors.py); its last tenth is held out if
    no held-out file is given. The controls untrained and random_tokens need a stage.

    hf:MODEL is a folder of save_pretrained, or a name on the Hugging Face Hub, that
    transformers.AutoModel loads; it needs pip install torch transformers. It reads --corpus, cut
    into texts of its own tokenizer. An .arrayrecord file is written as vectors come and may be
    larger than memory. --save=FILE --protocol=steps=0 writes the vectors and trains nothing.
    """,
)


def run(given: Namespace) -> None:
    """Probes every encoder, prints a table and writes the results."""
    pretrained = [name for name in given.encoder if name.startswith(HUGGINGFACE)]
    if pretrained and not given.corpus:
        raise UsageError(
            f"--corpus: missing, expected text for {pretrained[0]}. Add for example"
            " --corpus=python-docs."
        )
    UsageError.require(
        not given.save or len(pretrained) == 1,
        f"--save: given with {len(pretrained)} encoders hf:MODEL, expected one of them.",
    )
    UsageError.require(
        given.readout != MEAN or len(pretrained) == len(given.encoder),
        f"--readout: {MEAN!r}, expected -1 or -2 for a stage or a file.",
    )
    for name in given.encoder:
        UsageError.require(
            name.startswith(HUGGINGFACE) or not name.endswith(FILES) or name.count(",") < 2,
            f"ENCODER: {name!r}, expected FILE or FILE,HELD_OUT_FILE.",
        )
    UsageError.require(given.seeds, "--seeds: no value, expected seeds such as 0,1.")
    if given.protocol["steps"] == 0:
        UsageError.require(
            given.save and len(given.encoder) == 1,
            "--protocol: steps=0, expected only with one hf:MODEL and --save.",
        )
        _embed(given.encoder[0], given, Path(given.save))
        return
    with joined(given) as reporter:
        # It imports JAX: after the flags are checked.
        from memjax.sharding import place

        UsageError.require(
            not pretrained or place()[1] == 1,
            f"ENCODER: {pretrained[:1]} in several processes, expected one. Write its vectors to a"
            " file by --save.",
        )
        _probe(given, reporter)


def _probe(given: Namespace, reporter: Reporter) -> None:
    # These import JAX: after the flags are checked.
    from memjax.evaluation.instruments.probe import CONTROLS, WITH_ENCODER, probe
    from memjax.evaluation.instruments.probe_decoders import Protocol
    from memjax.evaluation.instruments.tables import probe_table
    from memjax.files import sealed, write_json
    from memjax.objectives.uncertainty import to_json
    from memjax.sharding import leads

    settings = dict(given.protocol)
    chosen = settings.pop("controls")
    protocol = Protocol(**settings)
    results = []
    for name in given.encoder:
        encoder, train, held_out = _vectors(name, given, reporter)
        possible = [control for control in CONTROLS if encoder or control not in WITH_ENCODER]
        controls = possible if chosen is None else chosen
        with reporter.active():
            result = probe(train, held_out, protocol, given.seeds, controls, encoder)
        # By its name on the command line: a file and the stage that wrote it may both be there.
        results.append(dataclasses.replace(result, encoder=name.partition(",")[0]))
    contents = {"results": to_json(results)}
    reporter.table(*probe_table(contents))
    if len({(result.vocabulary, result.length) for result in results}) > 1:
        reporter.log("Texts differ in length or vocabulary: compare bits per number alone.")
    learning = {
        result.encoder for result in results for run in result.own.runs if not run.converged
    }
    if learning:
        reporter.log(
            f"Still learning after {protocol.steps} steps, so the vectors may hold more:"
            f" {', '.join(sorted(learning))}"
        )
    if given.out and leads():
        write_json(given.out, sealed(contents), indent=1)
        reporter.log(f"{given.out}: all results, and every decoder's curve")


def _vectors(
    name: str, given: Namespace, reporter: Reporter
) -> "tuple[VectorReader | None, Vectors, Vectors]":
    """The encoder if it is a stage, and its vectors for training and held out."""
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith(HUGGINGFACE):
            name = _embed(name, given, Path(given.save or f"{folder}/vectors.npz"))
        return _of_file(name, given) if name.endswith(FILES) else _of_stage(name, given, reporter)


def _embed(name: str, given: Namespace, out: Path) -> str:
    """Writes the vectors of hf:MODEL and returns their file."""
    from memjax.evaluation.huggingface_encoder import embed

    own = given.transformers
    embed(
        name.removeprefix(HUGGINGFACE),
        given.corpus,
        out,
        length=given.sequence_length or HF_LENGTH,
        limit=given.limit,
        readout=given.readout or "-1",
        layer=own["layer"],
        batch=own["batch_size"],
        device=own["device"],
        text_field=own["text_field"],
    )
    return str(out)


def _of_file(names: str, given: Namespace) -> "tuple[None, Vectors, Vectors]":
    """Vectors for training and vectors held out, of FILE or FILE,HELD_OUT_FILE."""
    from memjax.evaluation.instruments.vectors import open_vectors

    name, _, second = names.partition(",")
    vectors = open_vectors(name)
    if second:
        held_out, border = open_vectors(second), len(vectors)
    else:
        border = min(len(vectors) - 2, int(len(vectors) * (1 - HELD_OUT_SHARE)))
        held_out = vectors.part(max(border, 0), len(vectors))
    train = vectors.part(0, min(border, given.limit))
    return None, train, held_out.part(0, min(len(held_out), given.eval_examples))


def _of_stage(
    name: str, given: Namespace, reporter: Reporter
) -> "tuple[VectorReader, Vectors, Vectors]":
    """The encoder of a stage, and its vectors of training and held-out texts."""
    from memjax.evaluation.instruments.encoders import vector_reader, vectors_of
    from memjax.inference import load
    from memjax.inference.texts import held_out, with_data

    model = with_data(load(name), given.data or "")
    readout = int(given.readout) if given.readout else None
    encoder = vector_reader(model, readout, given.sequence_length or 0)
    tokenizer = model.required_tokenizer
    texts = [
        held_out(model.data, encoder.length, limit, tokenizer, split, model.config.data.packing)
        for split, limit in (("train", given.limit), ("validation", given.eval_examples))
    ]
    with reporter.active():
        train, validation = (vectors_of(encoder, part, ENCODE_BATCH) for part in texts)
    return encoder, train, validation
