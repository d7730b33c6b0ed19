"""The command `memjax compress`: texts, or a prepared corpus, to stored memories."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from memjax.cli.arguments import Arguments, UsageError, refuse, take
from memjax.cli.flags import STAGE_PATH
from memjax.cli.joined import joined
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.checkpoints.store import MemoryStore
    from memjax.inference.chunking import Chunks
    from memjax.inference.trained_model import TrainedModel

DTYPES = ("float32", "bfloat16", "float8_e4m3", "int8", "int4")
CORPUS_DTYPES = DTYPES[:2]
PREPARED = "prepared.json"
"""The file by which a folder is a prepared corpus."""
ONLY_TEXTS = ("limit", "eval_examples", "vectors", "chunk_length")
ONLY_CORPUS = ("split", "sequence_length")
ARGUMENTS = Arguments(
    example="memjax compress runs/quickstart novel.txt --out=novel.store",
    words={
        "PATH": STAGE_PATH,
        "SOURCE...": "Texts (.txt, .jsonl, both also .gz, .zst, folders, globs), or one prepared"
        " corpus (a workdir or its folder data).",
    },
    flags=take(
        out={
            "what": "File of the store, folder of its parts (ends in /), or folder of the corpus's"
            " memories, to write",
            "required": True,
        },
        dtype={"choices": DTYPES, "default": "bfloat16"},
        vectors={},
        chunk_length={},
        batch_size={
            "what": "Chunks of texts (default 256), or sequences of a corpus (default 64),"
        },
        limit={"what": "chunks of texts"},
        eval_examples={"default": 64},
        split={"choices": ("train", "validation"), "default": "train"},
        sequence_length={"what": "by default config.data.sequence_length of the stage"},
    ),
    notes="""
    Texts become a store: every document is cut into chunks, and `memjax reconstruct` and `memjax
    generate --memory` read the store. The loss by rounding to --dtype is measured on
    --eval_examples texts, if the stage has a decoder that reads memories; 0 skips that. Stores of
    int8 and int4 have a scale per vector. A store of --vectors=K or --chunk_length=L is read as any
    other; its text is given back well by a stage that was trained on fewer vectors
    (dials.fewest_vectors) or shorter chunks (dials.shortest_chunk).

    --out=FOLDER/ writes a store in parts of about a megabyte of text. The same command completes it
    after a kill, and a command with further text adds parts; all that reads a store reads the
    folder. Several processes (docs/devices.md) divide the parts. The loss by rounding is then that
    of the first part of the text.

    A prepared corpus becomes a folder of the memories of all its sequences, as float32 or bfloat16,
    for training with a frozen encoder: config.data.memories=FOLDER. The stage that trains on it
    starts from this encoder (init_from, init_part='encoder') and keeps it frozen
    (trainable=(('^encoder/', False), ('.*', True))). --split and --sequence_length choose the
    sequences. Several processes divide them too, and the same command completes what a kill left.
    """,
)


def run(given: Namespace) -> None:
    """Encodes texts or a prepared corpus and writes the memories."""
    corpora = [folder for source in given.source if (folder := prepared_folder(source))]
    if not corpora:
        refuse(ARGUMENTS, given, ONLY_CORPUS, "with texts")
        _compress_texts(given)
        return
    refuse(ARGUMENTS, given, ONLY_TEXTS, "with a prepared corpus")
    UsageError.require(
        len(given.source) == 1,
        f"SOURCE: {len(given.source)} sources with a prepared corpus, expected that one alone.",
    )
    UsageError.require(
        given.dtype in CORPUS_DTYPES,
        f"--dtype: {given.dtype!r}, expected {' or '.join(CORPUS_DTYPES)} for a prepared corpus.",
    )
    # It imports JAX: after the flags are checked.
    from memjax.training.encode_corpus import encode_corpus

    with joined(given) as reporter:
        encode_corpus(
            given.path,
            corpora[0],
            given.out,
            given.split,
            given.sequence_length or 0,
            given.dtype,
            given.batch_size or 64,
            reporter,
        )


def prepared_folder(source: str) -> Path | None:
    """The data folder of a prepared corpus, given that or its workdir; None for texts."""
    for folder in (Path(source), Path(source) / "data"):
        if (folder / PREPARED).is_file():
            return folder
    return None


def _compress_texts(given: Namespace) -> None:
    with joined(given) as reporter:
        # These import JAX: after the flags are checked.
        import jax

        from memjax.checkpoints.store import open_store
        from memjax.checkpoints.store_folder import bytes_of, is_folder
        from memjax.inference import load

        out = Path(given.out)
        folder = given.out.endswith("/") or is_folder(out)
        if folder:
            refuse(ARGUMENTS, given, ("limit",), "with a folder of parts")
        else:
            UsageError.require(
                jax.process_count() == 1,
                f"--out: {given.out!r}, a file, expected a folder of parts, which several processes"
                " can write. End it with /",
            )
            _check_new(out)
        model = load(given.path)
        # An error before the text is read.
        length = model.stored_as(given.vectors, given.chunk_length).chunk_length
        with reporter.active():
            chunks = (_write_folder if folder else _write_file)(given, model, length)
        _describe(open_store(out, verify=False), str(out), bytes_of(out), reporter)
        _measure_rounding(given, model, chunks, reporter)


def _check_new(out: Path) -> None:
    from memjax.checkpoints.store_records import StoreError
    from memjax.files import check_writable

    StoreError.require(
        not out.exists(),
        f"--out={out}: exists, expected a new file. Delete it, or name another.",
    )
    check_writable(out)


def _write_file(given: Namespace, model: "TrainedModel", length: int) -> "Chunks":
    """Write a store of one file, and return its chunks."""
    from memjax.inference.chunking import cut, read_sources

    sources, tokenizer = read_sources(given.source), model.required_tokenizer
    chunks = cut(sources, tokenizer, length, given.limit or 0, model.padding_side)
    batch = given.batch_size or 256
    store = model.compress(chunks, dtype=given.dtype, batch=batch, vectors=given.vectors)
    store.save(given.out)
    return chunks


def _write_folder(given: Namespace, model: "TrainedModel", length: int) -> "Chunks | None":
    """Write the parts of a store that are missing, and return the chunks of the first."""
    from memjax.inference.compression_parts import TextParts, compress_parts

    texts = TextParts(given.source)
    how = {"vectors": given.vectors, "chunk_length": given.chunk_length}
    compress_parts(model, texts, given.out, dtype=given.dtype, batch=given.batch_size or 256, **how)
    return texts.chunks(0, model, length) if given.eval_examples else None


def _describe(store: "MemoryStore", name: str, taken: int, reporter: Reporter) -> None:
    """Print the sizes of a store of `taken` bytes."""
    memories, text = store.nbytes, store.text_bytes
    shapes = ", ".join(str(list(shape)) for shape in store.provenance.leaves.values())
    reporter.log(
        f"{name}: {len(store)} chunks of {len(store.documents)} documents, {shapes} {store.dtype}"
        " each"
    )
    own, whole, raw = (f"{8 * size / store.tokens:.1f}" for size in (memories, taken, text))
    facts = {
        "tokens": f"{store.tokens:,}",
        "bytes of text": f"{text:,}",
        "bytes of the store": f"{taken:,} ({taken / text:.2f} per byte of text)",
        "bytes of memories": f"{memories:,}",
        "bits per token": f"{own} (the whole store {whole}, the text {raw})",
    }
    reporter.table("", ("", ""), facts.items(), left=2)


def _measure_rounding(
    given: Namespace, model: "TrainedModel", chunks: "Chunks | None", reporter: Reporter
) -> None:
    """Print the decoder's loss from memories as they are and as they are stored."""
    from memjax.checkpoints import CheckpointError
    from memjax.evaluation.instruments.rounding_loss import rounding_loss

    try:
        model.reconstructor.codec()
    except CheckpointError as error:
        reporter.log(f"this stage does not reconstruct text: {error}")
        return
    if given.eval_examples and chunks:
        loss = rounding_loss(
            model, chunks, given.dtype, given.eval_examples, vectors=given.vectors or 0
        )
        facts = {
            "unrounded": f"{loss.nats} nats per token, {loss.accuracy} of tokens right"
            f" ({loss.nats.texts} texts)"
        }
        stored = next(iter(loss.rounded), None)
        facts |= (
            {
                "as stored": f"{stored.nats} nats per token, {stored.accuracy} of tokens right",
                "rounding costs": f"{stored.difference} nats per token ({given.dtype})",
            }
            if stored
            else {"float32": "is not rounded"}
        )
        reporter.table("", ("", ""), facts.items(), left=2)
