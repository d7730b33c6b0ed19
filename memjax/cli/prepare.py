"""The command `memjax prepare`: text to stored sequences, without training."""

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from memjax.cli.arguments import Arguments, read_config, take
from memjax.files import is_remote, on_this_machine
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.config import Config
    from memjax.data import Prepared

ARGUMENTS = Arguments(
    example="memjax prepare --config=configs/quickstart.py --workdir=runs/quickstart"
    " --config.data.corpus=texts.jsonl",
    flags=take(config={"required": True}, workdir={"required": True}, workers={}),
    configs=("config",),
    notes="""
    Writes WORKDIR/data, which `memjax train` with the same config would write first: the tokenizer
    and the sequences of both splits. Several processes share the work; their number does not change
    the result. An interrupted preparation resumes. Existing data is checked against the config and
    described.
    """,
)


def run(given: Namespace) -> None:
    """Prepares the data of a workdir and prints a table of it."""
    config = read_config("config", given.config, given.overrides["config"])
    if is_remote(given.workdir):
        from memjax.checkpoints.reading import absolute

        absolute(given.workdir)  # Raises where `memjax train` could not write checkpoints.
    prepare_workdir(config, on_this_machine(given.workdir).absolute(), given.workers)


def prepare_workdir(
    config: "Config", workdir: Path, workers: int | None = None, console: Console | None = None
) -> "Prepared":
    """Builds or opens the data of a workdir and prints a table of it.

    Raises:
      CorpusError, TokenizerError, RowsError, OSError: as `memjax.data.prepare`.
    """
    from memjax.data import prepare

    reporter = Reporter(console)
    folder = workdir / "data"
    there = (folder / "prepared.json").exists() and (
        folder / f"rows-{config.data.sequence_length}"
    ).exists()
    started = time.monotonic()
    with reporter.active():
        prepared = prepare(config.data, folder, reporter.log, workers)
    describe(prepared, reporter)
    reporter.log(
        f"{folder}: was there already"
        if there
        else f"{folder}: made in {time.monotonic() - started:.1f} s"
    )
    return prepared


def describe(prepared: "Prepared", reporter: Reporter) -> None:
    """Prints a table with a line per split, and a line of notes."""
    info = prepared.info
    # Data that TFDS prepared has no count of documents.
    counted = (
        f": {info['documents']:,} documents, {info['characters']:,} characters"
        if "documents" in info
        else ""
    )
    rows = []
    for split in ("train", "validation"):
        own: dict[str, Any] = info[split]
        counts = (
            own.get(key) for key in ("documents", "rows", "tokens", "padding", "dropped_tokens")
        )
        each = own["bytes"] / max(own["tokens"], 1) if "bytes" in own else info["bytes_per_token"]
        shown = ("-" if count is None else f"{count:,}" for count in counts)
        rows.append((split, *shown, f"{each:.2f}"))
    reporter.table(
        f"{info['corpus']}{counted}",
        ("split", "documents", "rows", "tokens", "padding", "in no row", "bytes/token"),
        rows,
    )
    facts = [f"tokenizer {info['tokenizer']} of {prepared.tokenizer.vocabulary} ids"]
    if "near_duplicates" in info:
        near = info["near_duplicates"]
        facts.append(
            f"near-duplicates of a document to train on: {near['validation']} of {near['of']} held"
            " out"
        )
    if info.get("skipped"):
        facts.append(f"damaged documents left out: {sum(info['skipped'].values())}")
    reporter.log("; ".join(facts))
    for error in info.get("damaged", ()):
        reporter.log(f"left out: {error}")
