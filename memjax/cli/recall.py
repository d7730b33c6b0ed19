"""The command `memjax recall`: chunks of a store by their numbers, or by a phrase."""

import re
import sys
from argparse import Namespace

from memjax.cli.arguments import Arguments, UsageError, refuse, take
from memjax.cli.flags import STAGE_PATH
from memjax.cli.joined import joined
from memjax.progress import Reporter

ARGUMENTS = Arguments(
    example="memjax recall runs/quickstart --memory=novel.store --chunk=5120",
    words={"PATH": STAGE_PATH},
    flags=take(
        memory={"what": "that `memjax compress` wrote", "required": True},
        document={},
        chunk={},
        find={},
        against={"what": "the original text, to measure the accuracy of --chunk"},
        recall_objective={"choices": ("recall", "blank_recall"), "default": ""},
        limit={"what": "chunks in the list of --find", "default": 10},
        batch_size={"what": "Recalled chunks", "default": 32},
    ),
    notes="""
    The decoder reads all memories of the store at once and gives back each chunk by its place, with
    the most likely token at every position. The stage must be trained on recall or blank_recall; by
    default it recalls as it was trained, and by recall if on both. --chunk takes numbers and
    ranges: 5120, or 3,10:20 for chunk 3 and chunks 10 to 19, or 0:9000:10 for every tenth chunk.
    With --document they count the chunks of that document. Chunks that do not follow each other are
    separated by the end of a line.

    With --find every memory is given back alone, and each line of the result is the number of a
    chunk, the share of the phrase that begins there, and its place in the source. A stage that was
    not trained on recall reconstructs the memories instead. Messages go to standard error.
    """,
)


def run(given: Namespace) -> None:
    """Writes chunks of a store, or the numbers of those in which a phrase begins."""
    if (given.chunk is None) == (given.find is None):
        what = "both missing" if given.find is None else "both given"
        raise UsageError(
            f"--chunk, --find: {what}, expected one of them. For example: {ARGUMENTS.example}"
        )
    if given.against and given.chunk is None:
        raise UsageError("--against: given with --find, expected --chunk. Leave it out.")
    if given.find is not None:
        refuse(ARGUMENTS, given, ("recall_objective",), "with --find")
    else:
        refuse(ARGUMENTS, given, ("limit",), "with --chunk")
    ranges = _ranges(given.chunk) if given.chunk is not None else []
    with joined(given, stderr=True) as reporter:
        _recall(given, ranges, reporter)


def _recall(given: Namespace, ranges: list[tuple[int, int, int]], reporter: Reporter) -> None:
    # These import JAX: after the flags are checked.
    from memjax.checkpoints.store import open_store
    from memjax.inference import load
    from memjax.inference.expansion import accuracy_against
    from memjax.sharding import leads

    model = load(given.path)
    store = open_store(given.memory, expected=model.provenance)
    store = store if given.document is None else store.of_document(given.document)
    if given.find is not None:
        with reporter.active():
            found = model.find(store, given.find, given.limit, batch=given.batch_size)
        for number, overlap in found if leads() else ():
            document, _, _, first, last = store.spans[number].tolist()
            where = f"{store.documents[document].name}, bytes {first} to {last}"
            sys.stdout.write(f"{number:>8}  {overlap:.2f}  {where}\n")
        return
    # Of a range one number outside the store is enough, for the message.
    ends = ((first, min(end, max(first, len(store)) + 1), step) for first, end, step in ranges)
    chunks = [number for each in ends for number in range(*each)]
    length = store.provenance.chunk_length
    source = model.chunks(given.against, chunk_length=length) if given.against else None
    with reporter.active():
        how = {"objective": given.recall_objective, "batch": given.batch_size}
        found = model.recall_tokens(store, chunks, **how)
    if not leads():
        return
    texts = model.chunk_texts(store, chunks, found)
    for number, after, text in zip(chunks, [*chunks[1:], -1], texts, strict=True):
        follows = after == number + 1 or text.endswith("\n")
        sys.stdout.write(text if follows else f"{text}\n")
    if source is not None:
        reporter.log(str(accuracy_against(store, found, source, given.against, chunks)))


def _ranges(text: str) -> list[tuple[int, int, int]]:
    """The first number, the one behind the last and the step of each part of `N,A:B,A:B:STEP`."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*(?::\s*(\d+)\s*)?)?", part)
        first, end, step = (
            (int(match[1]), int(match[2] or int(match[1]) + 1), int(match[3] or 1))
            if match
            else (0, 0, 1)
        )
        UsageError.require(
            first < end and step,
            f"--chunk: {part!r}, expected a number, or a range such as 10:20 or 0:9000:10.",
        )
        found.append((first, end, step))
    return found
