"""The command `memjax expand STORE --checkpoint=STAGE`: the text of memories again, by a stage's decoder.

    memjax expand book.store --checkpoint=runs/quickstart/stages/autoencoder --out=book.txt --against=original/book.txt

An autoencoder says a chunk at once; a memory model is asked by blanks, so that all it says comes from memories. The stage may be another
than the one that compressed the text, if its encoder is the same. Text goes to standard output or to --out, all else to standard error.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from memjax.cli.arguments import read_one

EXAMPLE = "memjax expand book.store --checkpoint=runs/quickstart/stages/autoencoder"


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "Folder of the stage whose decoder it is.", flag_values=values)
    flags.DEFINE_integer("document", None, "Number of the one document to expand, from 0.", 0, flag_values=values)
    flags.DEFINE_string("out", "", "File to write; by default standard output.", flag_values=values)
    flags.DEFINE_string("against", "", "The source text, to count the tokens that are right.", flag_values=values)
    flags.DEFINE_integer("batch", 32, "Texts at a time.", 1, flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Expands, and compares if asked to."""
    found = read_one(args, define_flags(), __doc__ or "", EXAMPLE, ("checkpoint",), "one folder of a store")
    if found is None:
        return 0
    folder, given = found
    # These import JAX: after the flags are known to be right.
    from memjax.store import MemoryStore, accuracy_against, cut, expand, open_compressor, read_sources, text_of
    from memjax.store.encoding import groups
    from memjax.store.expanding import require_decoder
    from memjax.training.progress import Reporter

    reporter = Reporter(Console(stderr=True, soft_wrap=True))
    compressor = open_compressor(given["checkpoint"])
    system = require_decoder(compressor)
    store = MemoryStore.load(folder, expected=compressor.origin)
    store = store if given["document"] is None else store.of_document(given["document"])
    source = None
    if given["against"]:
        source = cut(read_sources([given["against"]]), compressor.tokenizer, compressor.origin.chunk_length)
    if not compressor.practised:
        reporter.say("this stage was not trained on blank_copy, by which it is asked: expect little of it")
    with reporter.bar("expand", -(-len(groups(store.spans[:, 0], system.held)) // given["batch"])) as bar:
        said = expand(compressor, store, given["batch"], bar.advance)
    text = text_of(compressor, store, said)
    if given["out"]:
        Path(given["out"]).write_text(text, encoding="utf-8", newline="")
        reporter.say(f"{given['out']}: {len(store)} chunks, {store.tokens:,} tokens")
    else:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    if source is not None:
        reporter.say(f"tokens right: {accuracy_against(store, said, source, given['against'])}")
    return 0
