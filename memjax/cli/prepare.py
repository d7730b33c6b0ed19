r"""The command `memjax prepare --config=FILE --workdir=DIR [--workers=N] [--config.data.KEY=VALUE ...]`: text to rows, without training.

    memjax prepare --config=configs/quickstart.py --workdir=runs/a --config.data.corpus=texts.jsonl --config.data.tokenizer=byte_level \
        --config.data.vocabulary=8000

writes what `memjax train` with the same flags would write first, DIR/data: the vocabulary and the rows of both splits. Processes share the work
block by block; what they write does not depend on how many they are. Killed or stopped, the same command goes on with the blocks that are
done. Where the data is there, it is checked against the settings and described.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from memjax.cli.arguments import read_flags
from memjax.config import Config
from memjax.data import Prepared, prepare

EXAMPLE = "memjax prepare --config=configs/quickstart.py --workdir=runs/quickstart --config.data.corpus=texts.jsonl"


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags."""
    flags.DEFINE_string("workdir", None, "Where the run will be; data goes to its folder `data`.", flag_values=values)
    flags.DEFINE_integer("workers", None, "Processes; by default one a processor.", 1, flag_values=values)


def run(args: Sequence[str]) -> int:
    """Prepares, and prints what came of it."""
    config, values = read_flags(args, EXAMPLE, define_flags, ("workdir",))
    workdir = str(values["workdir"].value)
    prepare_workdir(config, Path(workdir.partition("://")[2] or workdir).absolute(), values["workers"].value)
    return 0


def prepare_workdir(config: Config, workdir: Path, workers: int | None = None, console: Console | None = None) -> Prepared:
    """Builds or opens the data of a workdir and prints a table of it.

    Raises:
      CorpusError, TokenizerError, RowsError, OSError: as `memjax.data.prepare`.
    """
    from memjax.training.progress import Reporter  # Imports JAX: after the flags are known to be right.

    reporter = Reporter(console)
    folder = workdir / "data"
    there = (folder / "prepared.json").exists() and (folder / f"rows-{config.data.row_tokens}").exists()
    started = time.monotonic()
    prepared = prepare(config.data, folder, reporter.say, workers, reporter.bar)
    reporter.console.print(describe(prepared))
    reporter.say(notes(prepared))
    reporter.say(f"{folder}: was there already" if there else f"{folder}: made in {time.monotonic() - started:.1f} s")
    return prepared


def describe(prepared: Prepared) -> Table:
    """What there is, split by split."""
    info = prepared.info
    # What TFDS prepared says nothing of documents.
    counted = f": {info['documents']:,} documents, {info['characters']:,} characters" if "documents" in info else ""
    table = Table(title=f"{info['corpus']}{counted}", title_justify="left")
    for column in ("split", "documents", "rows", "tokens", "padding", "in no row", "bytes/token"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for split in ("train", "validation"):
        own: dict[str, Any] = info[split]
        counts = (own.get(key) for key in ("documents", "rows", "tokens", "padding", "dropped_tokens"))
        each = own["bytes"] / max(own["tokens"], 1) if "bytes" in own else info["bytes_per_token"]
        table.add_row(split, *("-" if count is None else f"{count:,}" for count in counts), f"{each:.2f}")
    return table


def notes(prepared: Prepared) -> str:
    """What else there is to say of it, in a line."""
    info = prepared.info
    said = [f"tokenizer {info['tokenizer']} of {prepared.tokenizer.vocabulary} ids"]
    if "near_duplicates" in info:
        near = info["near_duplicates"]
        said.append(f"near-duplicates of a document to train on: {near['validation']} of {near['of']} held out")
    if info.get("skipped"):
        said.append(f"damaged documents left out: {sum(info['skipped'].values())}")
    return "; ".join(said)
