"""The command `memjax reconstruct`: stored memories to text."""

import sys
from argparse import Namespace

from memjax.cli.arguments import Arguments, take
from memjax.cli.flags import STAGE_PATH
from memjax.cli.joined import joined
from memjax.progress import Reporter

ARGUMENTS = Arguments(
    example="memjax reconstruct runs/quickstart novel.store --out=text.txt --against=novel.txt",
    words={"PATH": STAGE_PATH, "STORE": "A store that `memjax compress` wrote."},
    flags=take(
        out={
            "what": "Write the text to this file; by default to standard output",
            "metavar": "FILE",
        },
        against={"what": "the original text, to measure accuracy"},
        document={},
        batch_size={"what": "Reconstructed texts", "default": 32},
    ),
    notes="""
    An autoencoder reconstructs a chunk at once. A memory model on the frozen encoder of an
    autoencoder of its run reconstructs by that one. Another memory model reconstructs by the
    objective blank_copy, or blank_recall if it was trained to recall, so that all its text comes
    from memories; trained on recall alone, it reads the tokens that it has reconstructed too. The
    stage may be another than the one that compressed the text, if both have the same encoder.
    Messages go to standard error.
    """,
)


def run(given: Namespace) -> None:
    """Reconstructs the text of a store, and measures its accuracy if the original is given."""
    with joined(given, stderr=True) as reporter:
        _reconstruct(given, reporter)


def _reconstruct(given: Namespace, reporter: Reporter) -> None:
    # These import JAX: after the flags are checked.
    from memjax.checkpoints.store import open_store
    from memjax.files import write_text
    from memjax.inference import load
    from memjax.inference.expansion import accuracy_against, text_of
    from memjax.sharding import leads

    model = load(given.path)
    store = open_store(given.store, expected=model.provenance)
    store = store if given.document is None else store.of_document(given.document)
    length = store.provenance.chunk_length
    source = model.chunks(given.against, chunk_length=length) if given.against else None
    untrained = model.reconstructor.untrained_objective
    if untrained:
        reporter.log(
            f"{given.path}: not trained on {untrained}, by which it reconstructs; expect low"
            " accuracy"
        )
    with reporter.active():
        found = model.reconstruct_tokens(store, batch=given.batch_size)
    if not leads():
        return
    text = text_of(model.required_tokenizer, store, found)
    if given.out:
        write_text(given.out, text)
        reporter.log(f"{given.out}: {len(store)} chunks, {store.tokens:,} tokens")
    else:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    if source is not None:
        reporter.log(str(accuracy_against(store, found, source, given.against)))
