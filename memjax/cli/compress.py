"""The command `memjax compress FILES... --checkpoint=STAGE --out=FOLDER`: text files to memories, once, to use later.

    memjax compress book.txt notes/ --checkpoint=runs/quickstart/stages/autoencoder --out=book.store

reads what a corpus can be (.txt, .jsonl, both also .gz, folders, globs), cuts every document into chunks of the model's length, and writes
a folder of their memories, which `memjax expand` turns into text again and `memjax.store.MemoryStore.load` opens. What rounding to --dtype
costs is measured on a sample of the text, where the stage has a decoder that reads memories.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from memjax.cli.arguments import read_words, require

if TYPE_CHECKING:
    from memjax.store import Loss, MemoryStore

EXAMPLE = "memjax compress book.txt --checkpoint=runs/quickstart/stages/autoencoder --out=book.store"
DTYPES = ("float32", "bfloat16", "float8_e4m3", "int8")


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "Folder of the stage whose encoder it is.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write.", flag_values=values)
    flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "What is stored; int8 has a scale for every vector.", flag_values=values)
    flags.DEFINE_integer("limit", 0, "Chunks, at most; 0 is all.", 0, flag_values=values)
    flags.DEFINE_integer("batch", 256, "Chunks at a time.", 1, flag_values=values)
    flags.DEFINE_integer("sample", 64, "Texts that rounding is measured on; 0 leaves that out.", 0, flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Compresses, writes and says what it took."""
    found = read_words(args, define_flags(), __doc__ or "")
    if found is None:
        return 0
    files, given = found
    if not files:
        raise flags.IllegalFlagValueError(f"there is no file to compress; for example: {EXAMPLE}")
    require(given, ("checkpoint", "out"), EXAMPLE)
    # These import JAX: after the flags are known to be right.
    from memjax.store import StoreError, compress, cut, open_compressor, read_sources, rounding_loss
    from memjax.training.progress import Reporter

    out = Path(given["out"]).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"{out}: is there already; give --out a new folder, or delete it first")
    reporter = Reporter()
    compressor = open_compressor(given["checkpoint"])
    sources = read_sources(files)
    chunks = cut(sources, compressor.tokenizer, compressor.origin.chunk_length, given["limit"])
    with reporter.bar("compress", -(-len(chunks) // min(given["batch"], len(chunks)))) as bar:
        store = compress(compressor, chunks, given["dtype"], given["batch"], bar.advance)
    store.save(out)
    for line in (*_sizes(store, out), *_losses(rounding_loss(compressor, chunks, given["dtype"], given["sample"]), given)):
        reporter.say(line)
    if compressor.system is None:
        reporter.say(f"this stage cannot turn memories into text: {compressor.why}")
    return 0


def _sizes(store: "MemoryStore", out: Path) -> list[str]:
    taken = sum(path.stat().st_size for path in out.iterdir())
    memories = store.stored.nbytes + (0 if store.scales is None else store.scales.nbytes)
    vectors, width = store.origin.shape
    return [
        f"{out}: {len(store)} chunks of {len(store.documents)} documents, [{vectors}, {width}] {store.dtype} each",
        f"  tokens               {store.tokens:,}",
        f"  bytes of text        {store.text_bytes:,}",
        f"  bytes of the store   {taken:,} ({taken / store.text_bytes:.2f} a byte of text)",
        f"  bytes of memories    {memories:,}",
        f"  bits a token         {8 * memories / store.tokens:.1f} (all of the store {8 * taken / store.tokens:.1f},"
        f" the text {8 * store.text_bytes / store.tokens:.1f})",
    ]


def _losses(loss: "Loss | None", given: dict[str, Any]) -> list[str]:
    if loss is None:
        return []
    lines = [f"  unrounded            {loss.nats} nats a token, {loss.accuracy} of tokens right ({loss.nats.texts} texts)"]
    if loss.rounded is None:
        return [*lines, "  float32 is not rounded"]
    rounded = loss.rounded
    return [
        *lines,
        f"  as stored            {rounded.nats} nats a token, {rounded.accuracy} of tokens right",
        f"  rounding costs       {rounded.difference} nats a token ({given['dtype']})",
    ]
